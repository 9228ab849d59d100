//! Targets as they will stand after the next commit, and the chunks that they are made of.
//!
//! Chunks are written when they are staged: nothing names them before the commit, and the same bytes are the
//! same files if it never comes and the change is staged again.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use tough::TargetName;
use tough::schema::Target;

use super::repository::Repository;
use super::{SignError, metadata, refused};
use crate::chunk::{self, ChunkRef, Source, SourceError, pack_target};
use crate::digest::Digest;
use crate::durable::{self, Access};
use crate::name::FileName;
use crate::repository::chunk_path;

impl Repository {
    /// One of them.
    pub(super) fn target(&self, name: &str) -> Option<Target> {
        match self.staged.get(name) {
            Some(staged) => staged.clone(),
            None => {
                let name = TargetName::new(name).ok()?;
                self.chain
                    .targets
                    .signed
                    .find_target(&name, false)
                    .ok()
                    .cloned()
            }
        }
    }

    /// All of them below a path.
    pub(super) fn targets_below(&self, prefix: &str) -> BTreeMap<String, Target> {
        let signed = self.chain.targets.signed.targets_iter();
        let mut targets: BTreeMap<String, Target> = signed
            .filter(|(name, _)| name.raw().starts_with(prefix))
            .map(|(name, target)| (name.raw().to_owned(), target.clone()))
            .collect();
        for (name, target) in &self.staged {
            match target {
                Some(target) if name.starts_with(prefix) => {
                    targets.insert(name.clone(), target.clone());
                }
                _ => drop(targets.remove(name)),
            }
        }
        targets
    }

    /// Writes a document's chunks; returns what is to be signed about it.
    pub(super) fn store(&self, bytes: &[u8], release: Option<u64>) -> Result<Target, SignError> {
        let packed = pack_target(bytes)?;
        self.write_chunks(&packed.chunks)?;
        let sha256 = Digest::of(bytes);
        Ok(metadata::target(
            bytes.len() as u64,
            sha256,
            packed.list,
            release,
        ))
    }

    pub(super) fn write_chunks(&self, chunks: &[(Digest, Vec<u8>)]) -> Result<(), SignError> {
        let mut missing = Vec::new();
        for (digest, bytes) in chunks {
            let path = self.directory.join(chunk_path(digest));
            // Compression is not part of a chunk's name: any whole file of that name will do.
            let there = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() > 0);
            if !there {
                if let Some(parent) = path.parent() {
                    durable::create_directory(parent)?;
                }
                missing.push((path, bytes.as_slice()));
            }
        }
        Ok(durable::write_batch(&missing, Access::Anyone)?)
    }

    pub(super) fn read_target(
        &self,
        name: &str,
        target: &Target,
        limit: u64,
    ) -> Result<Vec<u8>, SignError> {
        let chunks = self.chunk_refs(target)?;
        let bytes = ready(chunk::gather(&Chunks(self), name, &chunks, limit))?;
        if Digest::of(&bytes).as_bytes()[..] != target.hashes.sha256[..] {
            return Err(refused(format!(
                "{name} in the repository {} is damaged: restore it from a copy",
                self.directory.display()
            )));
        }
        Ok(bytes)
    }

    fn chunk_refs(&self, target: &Target) -> Result<Vec<ChunkRef>, SignError> {
        let info =
            crate::verify::target_info("target", target).map_err(|e| refused(e.to_string()))?;
        Ok(match info.list {
            Some(list) => ready(chunk::list_chunks(&Chunks(self), &list, info.length))?,
            None => vec![ChunkRef {
                sha256: info.sha256,
                length: info.length as u32,
            }],
        })
    }

    /// Every chunk that a target needs, its lists included.
    pub(super) fn chunks_of(&self, target: &Target) -> Result<Vec<Digest>, SignError> {
        let info =
            crate::verify::target_info("target", target).map_err(|e| refused(e.to_string()))?;
        Ok(match info.list {
            Some(list) => ready(chunk::list_digests(&Chunks(self), &list, info.length))?,
            None => vec![info.sha256],
        })
    }
}

/// The repository's own chunks as a source that answers at once.
#[derive(Debug)]
struct Chunks<'a>(&'a Repository);

#[async_trait]
impl Source for Chunks<'_> {
    async fn metadata(&self, _file: &FileName) -> Result<Option<Bytes>, SourceError> {
        Ok(None)
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        let bytes = self.0.chunk(digest).map_err(|e| SourceError {
            what: format!("chunk {digest}"),
            source: e.into(),
        })?;
        Ok(Some(bytes.into()))
    }
}

/// Runs a future that never waits for anything outside: [`Chunks`] reads its files while it is polled.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
