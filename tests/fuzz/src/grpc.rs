//! gRPC: messages cut out of a stream, and what stands in one that asks for an inference.

use bytes::Bytes;
use edgeward_agent::api::body::{Body, Limit, Room};
use edgeward_agent::api::coding::Coding;
use edgeward_agent::api::grpc::framing::Framing;
use edgeward_agent::api::oip_grpc::request::{Target, prepare};

use crate::doors::{check, manifests};

const LIMIT: Limit<'static> = Limit {
    bytes: 1 << 20,
    whose: "this device",
};

/// A stream of messages in parts of as many bytes as the first byte says: they are the same as in one part, and none
/// is larger than allowed.
pub fn framing(data: &[u8]) {
    let Some((step, stream)) = data.split_first() else {
        return;
    };
    let cut = |step: usize| {
        let room = Room::new(u64::MAX);
        let mut framing = Framing::new(Some(Coding::Gzip));
        let mut messages = Vec::new();
        for part in stream.chunks(step) {
            let mut part = Bytes::copy_from_slice(part);
            while !part.is_empty() {
                let message = framing.take(&mut part, LIMIT, &room).ok()?;
                if let Some(message) = message.map(|message| message.joined()) {
                    assert!(message.len() as u64 <= LIMIT.bytes);
                    messages.push(message);
                }
            }
        }
        framing.end().ok()?;
        Some(messages)
    };
    let whole = cut(stream.len().max(1));
    assert_eq!(whole, cut(usize::from(*step) + 1));
}

/// The message of `ModelInfer` against the models that it may be for.
pub fn infer(data: &[u8]) {
    let body = Body::from(Bytes::copy_from_slice(data));
    let _ = Target::of(&body);
    for manifest in manifests() {
        if let Ok(asked) = prepare(manifest, &body) {
            assert!(asked.typed.len() as u64 <= manifest.request_bytes());
            check(&asked.prepared, data.len() + asked.typed.len());
        }
    }
}
