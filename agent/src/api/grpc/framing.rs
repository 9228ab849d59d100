//! How messages stand in the body of a call: a flag (compressed or not), four bytes of length, the message.
//!
//! [`Framing`] cuts messages out of the frames of HTTP/2 as they come, without copying them; a compressed one is
//! unpacked piece by piece under the same limit. [`Messages`] does so for a whole call.

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;

use crate::api::body::{Body, Limit, Room, too_large};
use crate::api::coding::{Coding, Unpacker};
use crate::api::error::ApiError;

/// What stands before each message.
pub const PREFIX: usize = 5;

/// Cuts messages out of bytes.
pub struct Framing {
    coding: Option<Coding>,
    prefix: [u8; PREFIX],
    /// Of the prefix, so many bytes have come.
    prefixed: usize,
    /// Of the message, so many bytes are still to come.
    missing: usize,
    unpacker: Option<Unpacker>,
    body: Body,
}

impl Framing {
    /// `coding`: how messages are compressed, if any is.
    pub fn new(coding: Option<Coding>) -> Self {
        Self {
            coding,
            prefix: [0; PREFIX],
            prefixed: 0,
            missing: 0,
            unpacker: None,
            body: Body::default(),
        }
    }

    /// Takes some bytes off the front of `data`; a message, once one is whole.
    pub fn take(
        &mut self,
        data: &mut Bytes,
        limit: Limit<'_>,
        room: &Room,
    ) -> Result<Option<Body>, ApiError> {
        if self.prefixed < PREFIX {
            let count = data.len().min(PREFIX - self.prefixed);
            data.copy_to_slice(&mut self.prefix[self.prefixed..self.prefixed + count]);
            self.prefixed += count;
            if self.prefixed < PREFIX {
                return Ok(None);
            }
            self.begin(limit)?;
        }
        let count = data.len().min(self.missing);
        match &mut self.unpacker {
            None => {
                self.missing -= count;
                self.body.push(data.split_to(count), room)?;
            }
            Some(unpacker) if count > 0 => {
                let mut packed = data.slice(..count);
                let unpacked = unpacker.unpack(&mut packed)?;
                let taken = count - packed.len();
                data.advance(taken);
                self.missing -= taken;
                self.body.push(unpacked, room)?;
            }
            Some(_) => {}
        }
        if self.missing == 0 {
            if let Some(mut unpacker) = self.unpacker.take() {
                self.body.push(unpacker.finish()?, room)?;
            }
            self.prefixed = 0;
        }
        if self.body.len() as u64 > limit.bytes {
            return Err(too_large(limit));
        }
        Ok((self.prefixed == 0).then(|| std::mem::take(&mut self.body).whole()))
    }

    /// The prefix is there: what it says.
    fn begin(&mut self, limit: Limit<'_>) -> Result<(), ApiError> {
        let [flag, length @ ..] = self.prefix;
        let length = u32::from_be_bytes(length);
        if u64::from(length) > limit.bytes {
            return Err(too_large(limit));
        }
        self.missing = length as usize;
        self.unpacker = match (flag, self.coding) {
            (0, _) => None,
            (1, Some(coding)) => Some(Unpacker::new(coding)),
            (1, None) => {
                return Err(ApiError::invalid(
                    "a message says that it is compressed, and the call has no grpc-encoding that says how",
                ));
            }
            _ => return Err(ApiError::invalid("what came is no gRPC message")),
        };
        Ok(())
    }

    /// Nothing more comes: all must have been whole.
    pub fn end(&self) -> Result<(), ApiError> {
        if self.prefixed == 0 {
            Ok(())
        } else {
            Err(ApiError::invalid("the last message did not arrive whole"))
        }
    }
}

/// The messages of one call, in order.
pub struct Messages {
    incoming: Incoming,
    framing: Framing,
    /// What came and was not looked at.
    data: Bytes,
}

impl Messages {
    pub fn new(incoming: Incoming, coding: Option<Coding>) -> Self {
        Self {
            incoming,
            framing: Framing::new(coding),
            data: Bytes::new(),
        }
    }

    /// The next one; `None` after the last. Dropping the future loses nothing.
    pub async fn next(&mut self, limit: Limit<'_>, room: &Room) -> Result<Option<Body>, ApiError> {
        loop {
            while !self.data.is_empty() {
                if let Some(message) = self.framing.take(&mut self.data, limit, room)? {
                    return Ok(Some(message));
                }
                if self.framing.unpacker.is_some() {
                    // One frame may swell a thousandfold; other callers share this thread.
                    tokio::task::yield_now().await;
                }
            }
            let Some(frame) = self.incoming.frame().await else {
                self.framing.end()?;
                return Ok(None);
            };
            let frame = frame.map_err(|error| {
                ApiError::invalid(format!("the call did not arrive whole: {error}")).gone()
            })?;
            self.data = frame.into_data().unwrap_or_default();
        }
    }

    /// The one message of a call that has one.
    pub async fn only(&mut self, limit: Limit<'_>, room: &Room) -> Result<Body, ApiError> {
        let message = self.next(limit, room).await?;
        let message = message.ok_or_else(|| ApiError::invalid("the call has no message"))?;
        match self.next(limit, room).await? {
            None => Ok(message),
            Some(_) => Err(ApiError::invalid("the call has more than one message")),
        }
    }
}

/// The beginning of a message that is to be sent, with room for its prefix and `length` bytes.
pub fn begin(length: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(PREFIX + length);
    message.resize(PREFIX, 0);
    message
}

/// A message that is to be sent, with room for its prefix.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = begin(message.encoded_len());
    // Fails only where there is no room, and a vector makes room.
    let _ = message.encode(&mut bytes);
    bytes
}

/// Writes the prefix of a message that [`begin`] began.
pub fn seal(mut message: Vec<u8>, compressed: bool) -> Result<Bytes, ApiError> {
    let length = u32::try_from(message.len() - PREFIX).map_err(|_| {
        ApiError::new(
            hyper::StatusCode::INTERNAL_SERVER_ERROR,
            "the answer is longer than a gRPC message can be",
        )
    })?;
    message[0] = compressed.into();
    message[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    Ok(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;
    use proptest::prelude::*;

    const LIMIT: Limit<'static> = Limit {
        bytes: 1 << 20,
        whose: "this device",
    };

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![flag];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    fn cut(
        coding: Option<Coding>,
        bytes: &[u8],
        step: usize,
        limit: Limit<'_>,
    ) -> Result<Vec<Vec<u8>>, ApiError> {
        let room = Room::new(u64::MAX);
        let mut framing = Framing::new(coding);
        let mut messages = Vec::new();
        for part in bytes.chunks(step) {
            let mut part = Bytes::copy_from_slice(part);
            while !part.is_empty() {
                if let Some(message) = framing.take(&mut part, limit, &room)? {
                    messages.push(message.joined().to_vec());
                }
            }
        }
        framing.end()?;
        Ok(messages)
    }

    #[test]
    fn a_message_that_lies_about_its_length_is_cut_off_or_too_large() {
        let whole = framed(0, b"message");
        for length in 1..whole.len() {
            let error = cut(None, &whole[..length], 3, LIMIT).expect_err("cut off");
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{length}");
        }
        let error = cut(None, &[0, 0xff, 0xff, 0xff, 0xff], 5, LIMIT).expect_err("too large");
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        for wrong in [framed(2, b"x"), framed(1, b"x")] {
            assert!(cut(None, &wrong, 9, LIMIT).is_err());
        }
    }

    #[test]
    fn a_message_that_swells_beyond_the_limit_is_refused_before_it_is_whole() {
        let packed = Coding::Gzip.packed(&vec![0; 32 << 20]).expect("packed");
        assert!(packed.len() < 1 << 20);
        let bomb = framed(1, &packed);
        let error = cut(Some(Coding::Gzip), &bomb, 1000, LIMIT).expect_err("a bomb");
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn what_is_sealed_is_what_is_cut() {
        let mut message = begin(3);
        message.extend(b"abc");
        let sealed = seal(message, false).expect("short");
        assert_eq!(cut(None, &sealed, 1, LIMIT).expect("cut"), [b"abc"]);
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            messages in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..20_000), any::<bool>()), 0..5),
            step in 1usize..20_000,
        ) {
            for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
                let mut bytes = Vec::new();
                for (message, compressed) in &messages {
                    bytes.extend(match compressed {
                        true => framed(1, &coding.packed(message).expect("packed")),
                        false => framed(0, message),
                    });
                }
                let found = cut(Some(coding), &bytes, step, LIMIT).expect("messages");
                let sent: Vec<_> = messages.iter().map(|(message, _)| message.clone()).collect();
                prop_assert_eq!(&found, &sent);
            }
        }

        #[test]
        fn any_bytes_are_messages_or_refused_in_peace(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            for coding in [None, Some(Coding::Gzip)] {
                let _ = cut(coding, &bytes, step, LIMIT);
            }
        }
    }
}
