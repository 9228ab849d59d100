//! Cutting and compressing: the writing half.
//!
//! Cut points depend on content alone, so two versions of a model share the chunks of what they share, and
//! the same bytes always become the same chunks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use fastcdc::v2020::FastCDC;

use super::list::{List, MARK, MAX_LEVEL, MAX_LIST_BYTES};
use super::{ChunkError, ChunkRef, MAX_CHUNK_BYTES, Packed};
use crate::digest::Digest;

/// Incompressible bytes grow a little in zstd, and the grown chunk must still fit.
const MAX_PIECE: usize = MAX_CHUNK_BYTES - 64;
const AVERAGE_PIECE: usize = 32 * 1024;
pub(super) const MIN_PIECE: usize = 16 * 1024;
const COMPRESSION_LEVEL: i32 = 3;

/// Packs a metadata file (`head` is what its topic carries).
pub fn pack_metadata(bytes: &[u8]) -> Result<Packed, ChunkError> {
    let mut chunks = Chunks::default();
    // Only a file that nobody would sign begins like a list; in a list of its own it cannot be mistaken.
    let head = if bytes.len() <= MAX_PIECE && !bytes.starts_with(MARK) {
        compress(bytes)?
    } else {
        compress(&chunks.list(bytes)?)?
    };
    Ok(Packed {
        head,
        list: None,
        chunks: chunks.compressed.into_iter().collect(),
    })
}

/// Packs a target.
pub fn pack_target(bytes: &[u8]) -> Result<Packed, ChunkError> {
    let mut chunks = Chunks::default();
    let list = if bytes.len() <= MAX_PIECE {
        chunks.add(bytes)?;
        None
    } else {
        let list = chunks.list(bytes)?;
        Some(chunks.add(&list)?)
    };
    Ok(Packed {
        head: Vec::new(),
        list,
        chunks: chunks.compressed.into_iter().collect(),
    })
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
    zstd::bulk::compress(bytes, COMPRESSION_LEVEL).map_err(|source| ChunkError::Compress {
        what: format!("{} bytes", bytes.len()),
        source,
    })
}

#[derive(Default)]
struct Chunks {
    compressed: BTreeMap<Digest, Vec<u8>>,
}

impl Chunks {
    /// Adds one piece of at most [`MAX_PIECE`] bytes.
    fn add(&mut self, piece: &[u8]) -> Result<ChunkRef, ChunkError> {
        let sha256 = Digest::of(piece);
        if let Entry::Vacant(vacant) = self.compressed.entry(sha256) {
            vacant.insert(compress(piece)?);
        }
        Ok(ChunkRef {
            sha256,
            length: piece.len() as u32,
        })
    }

    fn add_cut(&mut self, bytes: &[u8]) -> Result<Vec<ChunkRef>, ChunkError> {
        FastCDC::new(bytes, MIN_PIECE, AVERAGE_PIECE, MAX_PIECE)
            .map(|cut| self.add(&bytes[cut.offset..cut.offset + cut.length]))
            .collect()
    }

    /// Adds a document's pieces, and the pieces of lower lists; returns the highest list, which fits a chunk.
    fn list(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
        let mut chunks = self.add_cut(bytes)?;
        for level in 1..=MAX_LEVEL {
            let list = List { level, chunks }.to_json();
            if list.len() <= MAX_PIECE {
                return Ok(list);
            }
            if list.len() as u64 > MAX_LIST_BYTES {
                break;
            }
            chunks = self.add_cut(&list)?;
        }
        Err(ChunkError::TooLarge {
            what: format!("the list of chunks of a document of {} bytes", bytes.len()),
            limit: MAX_LIST_BYTES,
        })
    }
}
