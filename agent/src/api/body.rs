//! A request's body: gathered within its limits, never joined when it need not be.
//!
//! The frames stay as the HTTP library read them. The JSON part is joined if it crosses a frame border;
//! tensors are copied once, from the frames into the slot. Size is checked before anything is kept: from
//! Content-Length at once, otherwise with each frame. A compressed body is unpacked frame by frame, and the
//! same limit holds for what came and for what it became. All bodies together have a limit too ([`Room`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::coding::{Coding, Unpacker};
use super::error::ApiError;

/// A body that ends early with an error is read on up to this many bytes, so that a client which writes
/// first and reads later still gets to see the answer.
const LINGER_BYTES: usize = 1 << 20;
const LINGER_TIME: Duration = Duration::from_millis(500);

/// Small frames (one byte per chunk) are joined to pieces of this size, so that the list stays short.
const JOIN_BELOW: usize = 4096;

/// Memory for the bodies of all requests, of every door.
#[derive(Debug, Clone)]
pub struct Room {
    /// One permit per KiB.
    kibibytes: Arc<Semaphore>,
    bytes: u64,
}

impl Room {
    /// A body up to this size needs no room of its own: every connection may have as much read ahead.
    const FREE: usize = 64 << 10;
    const RETRY_AFTER_SECONDS: u64 = 1;

    pub fn new(bytes: u64) -> Self {
        let kibibytes = usize::try_from(bytes >> 10).unwrap_or(usize::MAX);
        Self {
            kibibytes: Arc::new(Semaphore::new(kibibytes.min(Semaphore::MAX_PERMITS))),
            bytes,
        }
    }

    /// Sees to it that `taken` covers `length` bytes; 429 where that is more than is left.
    fn take(
        &self,
        taken: &mut Option<OwnedSemaphorePermit>,
        length: usize,
    ) -> Result<(), ApiError> {
        let covered = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = length.div_ceil(1024).saturating_sub(covered);
        if length <= Self::FREE || missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        match Arc::clone(&self.kibibytes).try_acquire_many_owned(missing) {
            Ok(more) => {
                match taken {
                    Some(taken) => taken.merge(more),
                    None => *taken = Some(more),
                }
                Ok(())
            }
            Err(_) => Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "the {} bytes that all bodies may take together are in use: try again later",
                    self.bytes
                ),
            )
            .retry_after(Self::RETRY_AFTER_SECONDS)),
        }
    }
}

/// A whole body.
#[derive(Default)]
pub struct Body {
    frames: Vec<Bytes>,
    /// Small frames that are being joined; empty once the body is whole.
    small: BytesMut,
    length: usize,
    /// Its part of the [`Room`].
    taken: Option<OwnedSemaphorePermit>,
}

/// How large a body may be, and who says so.
#[derive(Debug, Clone, Copy)]
pub struct Limit<'a> {
    pub bytes: u64,
    pub whose: &'a str,
}

/// Refuses a body that travels in a form which the HTTP library passes on as it is: it undoes `chunked`, once,
/// and leaves any other transfer coding before that to us.
pub fn check_transfer(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let plain = codings
        .next()
        .is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if plain && codings.next().is_none() {
        return Ok(());
    }
    Err(ApiError::invalid(
        "Transfer-Encoding must be \"chunked\" and nothing else: a compressed body says so in Content-Encoding",
    )
    .closing())
}

pub fn too_large(limit: Limit<'_>) -> ApiError {
    let Limit { bytes, whose } = limit;
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {bytes} bytes, the limit of {whose}"),
    )
}

/// Reads a body of at most `limit` bytes within `time`, unpacking it if it is compressed.
pub async fn gather(
    body: &mut Incoming,
    coding: Option<Coding>,
    limit: Limit<'_>,
    room: &Room,
    time: Duration,
) -> Result<Body, ApiError> {
    let too_large = || too_large(limit);
    let limit = limit.bytes;
    let size = body.size_hint();
    if size.lower() > limit {
        return Err(too_large());
    }
    let declared = size.exact();
    let read = async {
        let mut whole = Body::default();
        let mut unpacker = coding.map(Unpacker::new);
        let mut arrived = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::invalid(format!("the body did not arrive whole: {error}")).gone()
            })?;
            let Ok(mut data) = frame.into_data() else {
                continue;
            };
            arrived += data.len();
            if arrived as u64 > limit {
                return Err(too_large());
            }
            let Some(unpacker) = &mut unpacker else {
                whole.push(data, room)?;
                continue;
            };
            while !data.is_empty() {
                whole.push(unpacker.unpack(&mut data)?, room)?;
                if whole.length as u64 > limit {
                    return Err(too_large());
                }
                // One frame may swell a thousandfold; other callers share this thread.
                tokio::task::yield_now().await;
            }
        }
        if let Some(unpacker) = &mut unpacker {
            whole.push(unpacker.finish()?, room)?;
            if whole.length as u64 > limit {
                return Err(too_large());
            }
        }
        Ok(whole.whole())
    };
    tokio::time::timeout(time, read).await.unwrap_or_else(|_| {
        let text = match declared {
            Some(length) => format!("the body of {length} bytes did not arrive within {time:?}"),
            None => format!("the body did not arrive within {time:?}"),
        };
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text))
    })
}

/// Reads and forgets what is left of a body after an early answer. `true`: all of it is gone, and the
/// connection may be used again. `asks_first`: the client may be waiting for "100 Continue", which reading on
/// would send.
pub async fn discard(body: &mut Incoming, asks_first: bool) -> bool {
    if body.is_end_stream() {
        return true;
    }
    if asks_first || body.size_hint().lower() > LINGER_BYTES as u64 {
        return false;
    }
    let drain = async {
        let mut left = LINGER_BYTES;
        while let Some(frame) = body.frame().await {
            let length = frame.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(length)?;
        }
        Some(())
    };
    matches!(tokio::time::timeout(LINGER_TIME, drain).await, Ok(Some(())))
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self {
            length: bytes.len(),
            frames: vec![bytes],
            ..Self::default()
        }
    }
}

impl Body {
    pub(super) fn push(&mut self, data: Bytes, room: &Room) -> Result<(), ApiError> {
        self.length += data.len();
        room.take(&mut self.taken, self.length)?;
        // The first frame is often the only one, and is not copied.
        if data.len() < JOIN_BELOW && !self.frames.is_empty() {
            self.small.extend_from_slice(&data);
            if self.small.len() >= JOIN_BELOW {
                self.join_small();
            }
        } else if !data.is_empty() {
            self.join_small();
            self.frames.push(data);
        }
        Ok(())
    }

    fn join_small(&mut self) {
        if !self.small.is_empty() {
            self.frames.push(self.small.split().freeze());
        }
    }

    /// The body, once nothing more comes.
    pub(super) fn whole(mut self) -> Self {
        self.join_small();
        self
    }

    /// Something made here in place of the body's own bytes; it keeps their part of the room.
    pub(super) fn rewritten(self, data: Bytes) -> Self {
        Self {
            length: data.len(),
            frames: vec![data],
            ..self
        }
    }

    /// Adds bytes that were made here out of the body's own, and says where they begin.
    pub(super) fn append(&mut self, data: Vec<u8>) -> usize {
        let start = self.length;
        self.length += data.len();
        self.frames.push(data.into());
        start
    }

    pub(super) fn frames(&self) -> &[Bytes] {
        &self.frames
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The first `length` bytes in one piece. `None`: there are fewer.
    pub fn head(&self, length: usize) -> Option<Bytes> {
        if length > self.length {
            return None;
        }
        match self.frames.first() {
            _ if length == 0 => Some(Bytes::new()),
            Some(first) if first.len() >= length => Some(first.slice(..length)),
            _ => {
                let mut joined = vec![0; length];
                self.copy_to(0, &mut joined).then(|| joined.into())
            }
        }
    }

    /// All bytes in one piece.
    pub fn joined(&self) -> Bytes {
        self.head(self.length).unwrap_or_default()
    }

    /// Copies the bytes from `offset` on into all of `out`. `false`: there are too few.
    pub fn copy_to(&self, mut offset: usize, out: &mut [u8]) -> bool {
        if offset
            .checked_add(out.len())
            .is_none_or(|end| end > self.length)
        {
            return false;
        }
        let mut written = 0;
        for frame in &self.frames {
            if written == out.len() {
                break;
            }
            if offset >= frame.len() {
                offset -= frame.len();
                continue;
            }
            let part = &frame[offset..];
            let count = part.len().min(out.len() - written);
            out[written..written + count].copy_from_slice(&part[..count]);
            written += count;
            offset = 0;
        }
        written == out.len()
    }

    #[cfg(test)]
    pub fn of(frames: &[&[u8]]) -> Self {
        let mut body = Self::default();
        let room = Room::new(u64::MAX);
        for frame in frames {
            let pushed = body.push(Bytes::copy_from_slice(frame), &room);
            assert!(pushed.is_ok());
        }
        body.whole()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_part_of_any_frames_is_the_part_of_the_whole(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 0..6),
            offset in 0usize..30_000,
            length in 0usize..30_000,
        ) {
            let whole = frames.concat();
            let body = Body::of(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(body.len(), whole.len());
            let expected = whole.get(offset..offset + length);
            let mut out = vec![0; length];
            prop_assert_eq!(body.copy_to(offset, &mut out), expected.is_some());
            if let Some(expected) = expected {
                prop_assert_eq!(&out, expected);
            }
            let head = body.head(length);
            prop_assert_eq!(head.as_deref(), whole.get(..length));
        }
    }

    #[test]
    fn all_bodies_together_find_room_or_are_told_to_come_later() {
        let room = Room::new(256 << 10);
        let piece = Bytes::from(vec![0; 100 << 10]);
        let (mut first, mut second) = (Body::default(), Body::default());
        first.push(piece.clone(), &room).expect("room");
        second.push(piece.clone(), &room).expect("room");
        let error = second.push(piece.clone(), &room).expect_err("too much");
        assert_eq!(error.status, StatusCode::TOO_MANY_REQUESTS);
        let mut small = Body::default();
        small
            .push(Bytes::from_static(b"small"), &room)
            .expect("small ones always pass");
        drop(first);
        drop(second);
        let mut third = Body::default();
        for _ in 0..2 {
            third.push(piece.clone(), &room).expect("room again");
        }
        drop(third);
        assert_eq!(room.kibibytes.available_permits(), 256);
    }

    #[test]
    fn tiny_frames_become_few_pieces() {
        let body = Body::of(&[&b"x"[..]; 10_000]);
        assert_eq!(body.len(), 10_000);
        assert!(body.frames.len() < 5, "{}", body.frames.len());
    }
}
