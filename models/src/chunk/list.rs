//! The list document: which chunks make up a larger document.
//!
//! A list of level 1 names the pieces of the document itself; a list of level N + 1 names the pieces of a list
//! of level N. A reader follows levels strictly downwards, so a list can never lead back to itself.

use serde::{Deserialize, Serialize};

use super::{ChunkRef, MAX_CHUNK_BYTES};
use crate::digest::Digest;

/// The first bytes of every list. A metadata file begins with its field `signatures` or `signed`.
pub const MARK: &[u8] = b"{\"chunk_list\":";
/// The format written and read.
const FORMAT: u32 = 1;
/// Lists of lists of lists: more than three gigabytes.
pub const MAX_LEVEL: u8 = 3;
/// The largest list, put together from its pieces.
pub const MAX_LIST_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    chunk_list: u32,
    level: u8,
    /// Digest and uncompressed length of each piece, in order.
    chunks: Vec<(Digest, u32)>,
}

/// A list that was checked: no piece is empty or larger than a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    pub level: u8,
    pub chunks: Vec<ChunkRef>,
}

impl List {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(MARK) {
            return Err("it is not a list of chunks".to_owned());
        }
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|e| format!("it is not a list of chunks ({e})"))?;
        if document.chunk_list != FORMAT {
            return Err(format!(
                "it is a list of format {}; this program reads format {FORMAT}: update it",
                document.chunk_list
            ));
        }
        if !(1..=MAX_LEVEL).contains(&document.level) {
            return Err(format!("it is a list of level {}", document.level));
        }
        let allowed = |length: u32| length > 0 && length as usize <= MAX_CHUNK_BYTES;
        if document.chunks.is_empty() || !document.chunks.iter().all(|&(_, l)| allowed(l)) {
            return Err("it lists an impossible piece, or none".to_owned());
        }
        let chunks = document.chunks.into_iter();
        Ok(Self {
            level: document.level,
            chunks: chunks
                .map(|(sha256, length)| ChunkRef { sha256, length })
                .collect(),
        })
    }

    pub fn to_json(&self) -> Vec<u8> {
        let document = Document {
            chunk_list: FORMAT,
            level: self.level,
            chunks: self.chunks.iter().map(|c| (c.sha256, c.length)).collect(),
        };
        // Integers and strings always encode.
        serde_json::to_vec(&document).unwrap_or_default()
    }
}

/// The most bytes that a list of so many pieces takes: a digest in hexadecimal, a length and their punctuation each.
pub fn longest(pieces: u64) -> u64 {
    const HEAD: u64 = 64;
    const ENTRY: u64 = 64 + 16;
    HEAD + pieces.saturating_mul(ENTRY)
}

/// The length of what `chunks` make up.
pub fn total(chunks: &[ChunkRef]) -> u64 {
    chunks.iter().map(|c| u64::from(c.length)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_begins_with_its_mark_and_comes_back() {
        let list = List {
            level: 2,
            chunks: vec![ChunkRef {
                sha256: Digest::of(b"x"),
                length: 1,
            }],
        };
        let json = list.to_json();
        assert!(json.starts_with(MARK));
        assert_eq!(List::parse(&json).expect("list"), list);
        for wrong in [
            r#"{"chunk_list":2,"level":1,"chunks":[]}"#.to_owned(),
            r#"{"chunk_list":1,"level":1,"chunks":[]}"#.to_owned(),
            String::from_utf8(json.clone())
                .expect("text")
                .replace("\"level\":2", "\"level\":4"),
            String::from_utf8(json.clone())
                .expect("text")
                .replace("\"level\":2", "\"level\":0"),
            String::from_utf8(json)
                .expect("text")
                .replace(",1]", ",61441]"),
        ] {
            assert!(List::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn foreign_lists_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = List::parse(&tail);
            let _ = List::parse(&[MARK, &tail].concat());
        }
    }
}
