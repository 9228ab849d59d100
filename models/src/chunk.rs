//! How documents travel over carriers that nobody trusts. (Contract; bodies to be written.)
//!
//! Digests are of uncompressed bytes; chunks are zstd. A document of at most one chunk is the chunk of its
//! own digest; a larger one is cut by content (fastcdc) into chunks named by a list document, which obeys the
//! same rule, at most three levels. A packed metadata file is either the zstd of the file or its list.
#![allow(dead_code, unused_variables)]
use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::name::FileName;

/// The largest chunk, uncompressed and as it travels: Azure Event Grid keeps 64 KB, AWS IoT passes 128 KB.
pub const MAX_CHUNK_BYTES: usize = 60 * 1024;

/// Where untrusted bytes come from: a broker's retained topics, an HTTPS cache, a directory.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// A metadata file as packed; `None`: it is certain (as far as the carrier can be) that there is none.
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError>;
    /// A chunk as it travels; `None`: not there.
    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError>;
}

/// The carrier failed (not: the thing is absent).
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch {what}")]
pub struct SourceError {
    pub what: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One piece of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    pub sha256: Digest,
    /// Uncompressed bytes, at most [`MAX_CHUNK_BYTES`].
    pub length: u32,
}

/// A document ready to travel.
#[derive(Debug, Clone)]
pub struct Packed {
    /// For a metadata topic: its payload. For a target: empty.
    pub head: Vec<u8>,
    /// For a target larger than one chunk: digest and length of its list document (goes into signed metadata).
    pub list: Option<ChunkRef>,
    /// Every chunk with its compressed bytes, lists included.
    pub chunks: Vec<(Digest, Vec<u8>)>,
}

/// Packs a metadata file (`head` is what its topic carries).
pub fn pack_metadata(bytes: &[u8]) -> Packed {
    todo!()
}

/// Packs a target.
pub fn pack_target(bytes: &[u8]) -> Packed {
    todo!()
}

/// Fetches and unpacks a metadata file of at most `limit` bytes; `None` when the source has none.
pub async fn fetch_metadata(
    source: &dyn Source,
    file: &FileName,
    limit: u64,
) -> Result<Option<Vec<u8>>, ChunkError> {
    todo!()
}

/// Decompresses one chunk, stopping at the declared length, and checks its digest.
pub fn open_chunk(chunk: &ChunkRef, compressed: &[u8]) -> Result<Vec<u8>, ChunkError> {
    todo!()
}

#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("chunk {0} is not there")]
    Missing(Digest),
    #[error("chunk {digest} was tampered with or damaged: {problem}")]
    Damaged { digest: Digest, problem: String },
    #[error("{what} is larger than the {limit} bytes allowed")]
    TooLarge { what: String, limit: u64 },
}
