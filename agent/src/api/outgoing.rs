//! The body of an answer: whole, one gRPC message with its trailers, or frames as they come to be.
//!
//! An answer over HTTP/1.1 is always whole. A stream is polled by its connection, so that a caller who hangs up
//! drops whatever was still being worked on for it, and one who does not read is not written for.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use http_body_util::Full;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};

pub type Frames = Pin<Box<dyn Stream<Item = Frame<Bytes>> + Send>>;

pub enum Outgoing {
    Whole(Full<Bytes>),
    Message {
        data: Option<Bytes>,
        trailers: Option<HeaderMap>,
    },
    Stream(Frames),
}

impl From<Full<Bytes>> for Outgoing {
    fn from(whole: Full<Bytes>) -> Self {
        Self::Whole(whole)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Message { data, trailers } => {
                let data = data.take().map(Frame::data);
                let frame = data.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Self::Stream(frames) => frames
                .as_mut()
                .poll_next(context)
                .map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Message { data, trailers } => data.is_none() && trailers.is_none(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Message { .. } | Self::Stream(_) => SizeHint::default(),
        }
    }
}
