//! How documents travel over carriers that nobody trusts.
//!
//! Digests are of uncompressed bytes; chunks are zstd. A document of at most one chunk is the chunk of its
//! own digest; a larger one is cut by content (fastcdc) into chunks named by a list document, which obeys the
//! same rule, at most three levels. A packed metadata file is either the zstd of the file or its list, told
//! apart by the list's first bytes, which no metadata file has.
//!
//! `sign` packs, `verify` and the agent's transfer fetch. Nothing here believes a carrier: every length is
//! bounded before it is allocated, decompression stops at the declared length, and a chunk is handed out only
//! when it has the digest it was asked for by.

mod fetch;
mod list;
mod pack;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::name::FileName;

pub use fetch::{fetch_chunk, fetch_metadata, gather, list_chunks, list_digests};
pub use pack::{pack_metadata, pack_target};

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

#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("chunk {0} is not there")]
    Missing(Digest),
    #[error("chunk {digest} was tampered with or damaged: {problem}")]
    Damaged { digest: Digest, problem: String },
    #[error("{file} as it was delivered was tampered with or damaged: {problem}")]
    Metadata { file: FileName, problem: String },
    #[error("{what} is larger than the {limit} bytes allowed")]
    TooLarge { what: String, limit: u64 },
    #[error(
        "{what} was cut into {pieces} pieces where {most} are enough: nothing that this fleet's tools wrote"
    )]
    TooManyPieces {
        what: String,
        pieces: usize,
        most: u64,
    },
    #[error("cannot compress {what}")]
    Compress {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

/// Decompresses one chunk, stopping at the declared length, and checks its digest.
pub fn open_chunk(chunk: &ChunkRef, compressed: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let damaged = |problem: String| ChunkError::Damaged {
        digest: chunk.sha256,
        problem,
    };
    if chunk.length as usize > MAX_CHUNK_BYTES {
        return Err(ChunkError::TooLarge {
            what: format!("chunk {}", chunk.sha256),
            limit: MAX_CHUNK_BYTES as u64,
        });
    }
    let bytes = decompress(compressed, chunk.length as usize).map_err(damaged)?;
    if bytes.len() != chunk.length as usize {
        return Err(damaged(format!(
            "it has {} bytes, not the {} that were announced",
            bytes.len(),
            chunk.length
        )));
    }
    if Digest::of(&bytes) != chunk.sha256 {
        return Err(damaged("its content has another digest".to_owned()));
    }
    Ok(bytes)
}

/// Checks a chunk that is to be kept as it travelled.
#[cfg(feature = "sign")]
pub(crate) fn check_chunk(digest: &Digest, compressed: &[u8]) -> Result<(), ChunkError> {
    let damaged = |problem: String| ChunkError::Damaged {
        digest: *digest,
        problem,
    };
    let bytes = decompress(compressed, MAX_CHUNK_BYTES).map_err(damaged)?;
    match Digest::of(&bytes) == *digest {
        true => Ok(()),
        false => Err(damaged("it has another digest".to_owned())),
    }
}

/// At most `limit` bytes come out, whatever the frame claims.
fn decompress(compressed: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    if compressed.len() > MAX_CHUNK_BYTES {
        return Err(format!(
            "it travelled as {} bytes, more than the {MAX_CHUNK_BYTES} allowed",
            compressed.len()
        ));
    }
    zstd::bulk::decompress(compressed, limit)
        .map_err(|e| format!("not zstd, or more than the {limit} bytes announced ({e})"))
}

#[cfg(test)]
mod one_chunk {
    use super::*;
    use proptest::prelude::*;

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).expect("compress")
    }

    #[test]
    fn a_decompression_bomb_stops_at_the_declared_length() {
        let bomb = compressed(&vec![0; 50 * 1024 * 1024]);
        assert!(bomb.len() < MAX_CHUNK_BYTES);
        let chunk = ChunkRef {
            sha256: Digest::of(b"small"),
            length: 5,
        };
        let error = open_chunk(&chunk, &bomb).expect_err("bomb");
        assert!(
            error.to_string().contains("more than the 5 bytes"),
            "{error}"
        );
    }

    #[test]
    fn a_chunk_with_another_content_or_length_is_refused() {
        let chunk = |bytes: &[u8], length| ChunkRef {
            sha256: Digest::of(bytes),
            length,
        };
        assert_eq!(
            open_chunk(&chunk(b"abc", 3), &compressed(b"abc")).expect("good"),
            b"abc"
        );
        assert!(open_chunk(&chunk(b"abc", 3), &compressed(b"abd")).is_err());
        assert!(open_chunk(&chunk(b"abc", 4), &compressed(b"abc")).is_err());
        assert!(open_chunk(&chunk(b"abc", 2), &compressed(b"abc")).is_err());
        assert!(open_chunk(&chunk(b"abc", u32::MAX), &compressed(b"abc")).is_err());
        assert!(open_chunk(&chunk(b"abc", 3), b"").is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            length in any::<u32>(),
        ) {
            let chunk = ChunkRef { sha256: Digest::of(b"other"), length };
            prop_assert!(open_chunk(&chunk, &bytes).is_err());
            prop_assert!(open_chunk(&chunk, &compressed(&bytes)).is_err());
        }
    }
}
