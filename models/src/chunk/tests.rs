//! Packing and fetching together: what goes in comes out, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::list::{List, MARK};
use super::{
    ChunkError, ChunkRef, MAX_CHUNK_BYTES, Packed, Source, SourceError, fetch_metadata, gather,
    list_chunks, list_digests, pack_metadata, pack_target,
};
use crate::digest::Digest;
use crate::name::FileName;

#[derive(Debug, Default)]
struct Carrier {
    head: Option<Vec<u8>>,
    chunks: BTreeMap<Digest, Vec<u8>>,
}

#[async_trait]
impl Source for Carrier {
    async fn metadata(&self, _file: &FileName) -> Result<Option<Bytes>, SourceError> {
        Ok(self.head.clone().map(Bytes::from))
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        Ok(self.chunks.get(digest).cloned().map(Bytes::from))
    }
}

fn carrier(packed: &Packed) -> Carrier {
    Carrier {
        head: Some(packed.head.clone()),
        chunks: packed.chunks.iter().cloned().collect(),
    }
}

fn file() -> FileName {
    "1.releases.json".parse().expect("name")
}

/// Bytes that do not compress and look different everywhere (a counter through SHA-256).
fn noise(length: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|i| *Digest::of(&i.to_be_bytes()).as_bytes())
        .take(length)
        .collect()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("runtime")
        .block_on(future)
}

fn unpack_target(bytes: &[u8], packed: &Packed) -> Result<Vec<u8>, ChunkError> {
    let source = carrier(packed);
    wait(async {
        let length = bytes.len() as u64;
        let chunks = match &packed.list {
            None => vec![ChunkRef {
                sha256: Digest::of(bytes),
                length: bytes.len() as u32,
            }],
            Some(list) => list_chunks(&source, list, length).await?,
        };
        gather(&source, "target", &chunks, length).await
    })
}

#[test]
fn documents_of_every_size_come_back_and_every_chunk_fits_a_message() {
    // 32 MiB need a list of lists.
    for length in [0, 1, 61_375, 61_376, 61_377, 300_000, 32 << 20] {
        let bytes = noise(length);
        let packed = pack_target(&bytes).expect("pack");
        assert_eq!(packed.list.is_some(), length > 61_376);
        assert!(
            packed
                .chunks
                .iter()
                .all(|(_, z)| z.len() <= MAX_CHUNK_BYTES)
        );
        assert_eq!(unpack_target(&bytes, &packed).expect("unpack"), bytes);
        if let Some(list) = &packed.list {
            let source = carrier(&packed);
            let needed = wait(list_digests(&source, list, length as u64)).expect("list");
            let needed: BTreeSet<_> = needed.into_iter().collect();
            assert_eq!(needed, packed.chunks.iter().map(|(d, _)| *d).collect());
        }
    }
}

#[test]
fn metadata_over_one_chunk_travels_as_a_list_and_stays_within_the_limit() {
    for length in [0, 100, 61_376, 61_377, 1 << 20] {
        let bytes = noise(length);
        let packed = pack_metadata(&bytes).expect("pack");
        assert!(packed.head.len() <= MAX_CHUNK_BYTES);
        let source = carrier(&packed);
        let fetched = wait(fetch_metadata(&source, &file(), length as u64)).expect("fetch");
        assert_eq!(fetched, Some(bytes));
        if length > 0 {
            let error = wait(fetch_metadata(&source, &file(), length as u64 - 1));
            assert!(matches!(error, Err(ChunkError::TooLarge { .. })));
        }
    }
    assert_eq!(
        wait(fetch_metadata(&Carrier::default(), &file(), 10)).expect("fetch"),
        None
    );
}

#[test]
fn a_file_that_begins_like_a_list_is_not_mistaken_for_one() {
    let bytes = [MARK, b"1,\"level\":1,\"chunks\":[]}"].concat();
    let source = carrier(&pack_metadata(&bytes).expect("pack"));
    let fetched = wait(fetch_metadata(&source, &file(), 1000)).expect("fetch");
    assert_eq!(fetched, Some(bytes));
}

#[test]
fn a_missing_a_swapped_and_a_tampered_chunk_are_told() {
    let bytes = noise(300_000);
    let packed = pack_target(&bytes).expect("pack");
    let list = packed.list.expect("list").sha256;
    let victim = packed
        .chunks
        .iter()
        .position(|(d, _)| *d != list)
        .expect("data");

    let mut missing = packed.clone();
    let (digest, _) = missing.chunks.remove(victim);
    assert!(matches!(unpack_target(&bytes, &missing), Err(ChunkError::Missing(d)) if d == digest));

    let mut tampered = packed.clone();
    let last = tampered.chunks[victim].1.len() - 1;
    tampered.chunks[victim].1[last] ^= 1;
    let error = unpack_target(&bytes, &tampered).expect_err("tampered");
    assert!(error.to_string().contains(&digest.to_hex()), "{error}");

    // A genuine list of another document has another length.
    let other = pack_target(&noise(200_000)).expect("pack");
    let error = wait(list_chunks(
        &carrier(&other),
        &other.list.expect("list"),
        300_000,
    ));
    assert!(
        error
            .expect_err("length")
            .to_string()
            .contains("of a document of 300000")
    );
}

#[test]
fn a_list_that_skips_a_level_or_claims_terabytes_is_refused() {
    let put = |source: &mut Carrier, bytes: &[u8]| {
        let packed = pack_target(bytes).expect("pack");
        source.chunks.extend(packed.chunks);
        ChunkRef {
            sha256: Digest::of(bytes),
            length: bytes.len() as u32,
        }
    };
    let mut source = Carrier::default();
    let data = put(&mut source, b"data");
    let low = List {
        level: 1,
        chunks: vec![data],
    }
    .to_json();
    let low = put(&mut source, &low);
    let high = List {
        level: 3,
        chunks: vec![low],
    }
    .to_json();
    let high = put(&mut source, &high);
    let error = wait(list_chunks(&source, &high, 4)).expect_err("level");
    assert!(error.to_string().contains("level"), "{error}");

    let huge = ChunkRef {
        sha256: Digest::of(b"x"),
        length: 60_000,
    };
    let huge = List {
        level: 2,
        chunks: vec![huge; 800],
    }
    .to_json();
    let huge = put(&mut source, &huge);
    let error = wait(list_chunks(&source, &huge, 4)).expect_err("size");
    assert!(matches!(error, ChunkError::TooLarge { .. }), "{error}");

    // Small in bytes, and thousands of questions to whoever carries it: refused before the first one.
    let crumb = ChunkRef {
        sha256: Digest::of(b"not there"),
        length: 1,
    };
    let crumbs = List {
        level: 2,
        chunks: vec![crumb; 700],
    }
    .to_json();
    let crumbs = put(&mut source, &crumbs);
    let error = wait(list_chunks(&source, &crumbs, 1 << 20)).expect_err("pieces");
    assert!(
        matches!(error, ChunkError::TooManyPieces { pieces: 700, .. }),
        "{error}"
    );
    // A document of four bytes needs no list of seven hundred.
    let error = wait(list_chunks(&source, &crumbs, 4)).expect_err("size");
    assert!(
        matches!(error, ChunkError::TooLarge { limit: 144, .. }),
        "{error}"
    );
}

#[test]
fn two_versions_share_the_chunks_of_what_they_share() {
    let one = noise(2 << 20);
    let mut two = one.clone();
    two.splice(1_000_000..1_000_010, *b"changed here, and longer");
    let digests = |bytes: &[u8]| -> std::collections::BTreeSet<Digest> {
        pack_target(bytes)
            .expect("pack")
            .chunks
            .into_iter()
            .map(|(d, _)| d)
            .collect()
    };
    let (one, two) = (digests(&one), digests(&two));
    let new = two.difference(&one).count();
    assert!(new <= 4, "{new} of {} chunks are new", two.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_document_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let packed = pack_metadata(&bytes).expect("pack");
        let fetched = wait(fetch_metadata(&carrier(&packed), &file(), 5000)).expect("fetch");
        prop_assert_eq!(fetched, Some(bytes.clone()));
        prop_assert_eq!(unpack_target(&bytes, &pack_target(&bytes).expect("pack")).expect("unpack"), bytes);
    }

    #[test]
    fn any_delivered_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..500), marked in any::<bool>()) {
        let bytes = if marked { [MARK, &bytes].concat() } else { bytes };
        let raw = Carrier { head: Some(bytes.clone()), ..Carrier::default() };
        let _ = wait(fetch_metadata(&raw, &file(), 100));
        let packed = Carrier { head: Some(zstd::bulk::compress(&bytes, 1).expect("zstd")), ..raw };
        let _ = wait(fetch_metadata(&packed, &file(), 100));
    }
}
