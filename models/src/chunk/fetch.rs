//! Fetching and putting together: the reading half, bounded at every step.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::list::{self, List, MARK, MAX_LIST_BYTES};
use super::pack::MIN_PIECE;
use super::{ChunkError, ChunkRef, MAX_CHUNK_BYTES, Source, decompress, open_chunk};
use crate::digest::Digest;
use crate::name::FileName;

/// Chunks asked for at once: eight of 60 KiB stay inside a broker's 512 KiB window.
const AT_ONCE: usize = 8;

/// Fetches and unpacks a metadata file of at most `limit` bytes; `None` when the source has none.
pub async fn fetch_metadata(
    source: &dyn Source,
    file: &FileName,
    limit: u64,
) -> Result<Option<Vec<u8>>, ChunkError> {
    let Some(head) = source.metadata(file).await? else {
        return Ok(None);
    };
    let damaged = |problem| ChunkError::Metadata {
        file: file.clone(),
        problem,
    };
    let bytes = decompress(&head, MAX_CHUNK_BYTES).map_err(damaged)?;
    let bytes = if bytes.starts_with(MARK) {
        let list = List::parse(&bytes).map_err(damaged)?;
        let chunks = follow(source, list, limit).await?;
        gather(source, file.as_str(), &chunks, limit).await?
    } else {
        bytes
    };
    if bytes.len() as u64 > limit {
        return Err(ChunkError::TooLarge {
            what: file.to_string(),
            limit,
        });
    }
    Ok(Some(bytes))
}

/// Fetches one chunk and checks it.
pub async fn fetch_chunk(source: &dyn Source, chunk: &ChunkRef) -> Result<Vec<u8>, ChunkError> {
    let compressed = source.chunk(&chunk.sha256).await?;
    open_chunk(chunk, &compressed.ok_or(ChunkError::Missing(chunk.sha256))?)
}

/// The pieces of a document of `length` bytes whose highest list is `top`.
pub async fn list_chunks(
    source: &dyn Source,
    top: &ChunkRef,
    length: u64,
) -> Result<Vec<ChunkRef>, ChunkError> {
    let list = parse_list(top, &fetch_chunk(source, top).await?)?;
    let chunks = follow(source, list, length).await?;
    check_total(top, &chunks, length)?;
    Ok(chunks)
}

/// Every chunk that such a document needs, its lists and their pieces included.
pub async fn list_digests(
    source: &dyn Source,
    top: &ChunkRef,
    length: u64,
) -> Result<Vec<Digest>, ChunkError> {
    let mut digests = vec![top.sha256];
    let mut list = parse_list(top, &fetch_chunk(source, top).await?)?;
    digests.extend(list.chunks.iter().map(|chunk| chunk.sha256));
    while list.level > 1 {
        list = step(source, &list, length).await?;
        digests.extend(list.chunks.iter().map(|chunk| chunk.sha256));
    }
    check_total(top, &list.chunks, length)?;
    Ok(digests)
}

fn parse_list(top: &ChunkRef, bytes: &[u8]) -> Result<List, ChunkError> {
    List::parse(bytes).map_err(|problem| ChunkError::Damaged {
        digest: top.sha256,
        problem,
    })
}

fn check_total(top: &ChunkRef, chunks: &[ChunkRef], length: u64) -> Result<(), ChunkError> {
    let total = list::total(chunks);
    if total != length {
        return Err(ChunkError::Damaged {
            digest: top.sha256,
            problem: format!("it lists {total} bytes of a document of {length}"),
        });
    }
    Ok(())
}

/// Follows lists of lists down to the pieces of a document of at most `length` bytes.
async fn follow(
    source: &dyn Source,
    mut list: List,
    length: u64,
) -> Result<Vec<ChunkRef>, ChunkError> {
    while list.level > 1 {
        list = step(source, &list, length).await?;
    }
    Ok(list.chunks)
}

/// From a list of lists to the list that it makes up, on the way to a document of at most `length` bytes.
async fn step(source: &dyn Source, list: &List, length: u64) -> Result<List, ChunkError> {
    let damaged = |problem| ChunkError::Damaged {
        digest: list.chunks[0].sha256,
        problem,
    };
    // Nobody has signed a list of metadata: no more of it is fetched than the document can need.
    let most = list::longest(length / MIN_PIECE as u64 + 1).min(MAX_LIST_BYTES);
    let bytes = gather(source, "a list of chunks", &list.chunks, most).await?;
    let next = List::parse(&bytes).map_err(damaged)?;
    if next.level != list.level - 1 {
        return Err(damaged(format!(
            "a list of level {} leads to one of level {}",
            list.level, next.level
        )));
    }
    Ok(next)
}

/// Fetches the pieces and puts them together, if that makes at most `limit` bytes; `what` names the document.
pub async fn gather(
    source: &dyn Source,
    what: &str,
    chunks: &[ChunkRef],
    limit: u64,
) -> Result<Vec<u8>, ChunkError> {
    let total = list::total(chunks);
    if total > limit {
        return Err(ChunkError::TooLarge {
            what: what.to_owned(),
            limit,
        });
    }
    // Nothing vouches for a list of metadata: many tiny pieces would only keep the reader busy.
    let most = total / MIN_PIECE as u64 + 1;
    if chunks.len() as u64 > most {
        return Err(ChunkError::TooManyPieces {
            what: what.to_owned(),
            pieces: chunks.len(),
            most,
        });
    }
    let mut pieces = stream::iter(chunks.to_vec())
        .map(|chunk| async move { fetch_chunk(source, &chunk).await })
        .buffered(AT_ONCE);
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
