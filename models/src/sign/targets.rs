//! Targets as they will stand after the next commit, and the chunks that they are made of.
//!
//! Chunks are written when they are staged: nothing names them before the commit, and the same bytes are the
//! same files if it never comes and the change is staged again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use tough::TargetName;
use tough::schema::{Target, Targets};

use super::explain::is_obeyed;
use super::keys::SigningRole;
use super::proposal::Proposal;
use super::repository::Repository;
use super::seal::Signed;
use super::{SignError, metadata, refused};
use crate::chunk::{self, ChunkRef, Source, SourceError, pack_target};
use crate::digest::Digest;
use crate::durable::{self, Access};
use crate::fleet::rollout::MAX_DOCUMENT_BYTES;
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
        write_chunks(&self.directory, chunks)
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

    /// The chunks of what these files of roles name and those that stand do not. All of them must be here.
    pub(super) fn chunks_of_changes(&self, signed: &Signed) -> Result<Vec<Digest>, SignError> {
        let mut chunks = Vec::new();
        for (role, (_, bytes)) in signed {
            if !matches!(role, SigningRole::Releases | SigningRole::Rollouts) {
                continue;
            }
            let next: tough::schema::Signed<Targets> =
                serde_json::from_slice(bytes).map_err(|e| refused(format!("role {role}: {e}")))?;
            let standing = &self.delegated(*role)?.signed.targets;
            for (name, target) in &next.signed.targets {
                if standing.get(name) != Some(target) {
                    chunks.extend(self.chunks_of(target)?);
                }
            }
        }
        for digest in &chunks {
            if !has_chunk(&self.directory, digest) {
                return Err(refused(format!(
                    "chunk {digest} is not in this repository: publish the change where it was made"
                )));
            }
        }
        Ok(chunks)
    }

    /// The documents that devices obey and a proposal adds, replaces or takes away.
    pub(super) fn documents_of(&self, proposal: &Proposal) -> Result<Vec<String>, SignError> {
        let mut documents = BTreeSet::new();
        for role in [SigningRole::Releases, SigningRole::Rollouts] {
            let Some(next) = proposal.role(role)? else {
                continue;
            };
            let standing = &self.delegated(role)?.signed.targets;
            let differ = |a: &HashMap<TargetName, Target>, b: &HashMap<TargetName, Target>| {
                let targets = a.iter().filter(|(name, target)| {
                    is_obeyed(name.raw()) && b.get(*name) != Some(*target)
                });
                let targets = targets.map(|(name, target)| (name.raw().to_owned(), target.clone()));
                targets.collect::<Vec<_>>()
            };
            let changed = differ(&next.targets, standing).into_iter();
            for (name, target) in changed.chain(differ(standing, &next.targets)) {
                let bytes = self.read_target(&name, &target, MAX_DOCUMENT_BYTES)?;
                let text = String::from_utf8(bytes);
                documents.insert(text.map_err(|_| refused(format!("{name} is not text")))?);
            }
        }
        Ok(documents.into_iter().collect())
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

/// Writes the chunks that a repository's directory does not hold.
pub(super) fn write_chunks(
    directory: &Path,
    chunks: &[(Digest, Vec<u8>)],
) -> Result<(), SignError> {
    let mut missing = Vec::new();
    for (digest, bytes) in chunks {
        if !has_chunk(directory, digest) {
            let path = directory.join(chunk_path(digest));
            if let Some(parent) = path.parent() {
                durable::create_directory(parent)?;
            }
            missing.push((path, bytes.as_slice()));
        }
    }
    Ok(durable::write_batch(&missing, Access::Anyone)?)
}

/// Compression is not part of a chunk's name: any whole file of that name will do.
pub(super) fn has_chunk(directory: &Path, digest: &Digest) -> bool {
    let metadata = std::fs::metadata(directory.join(chunk_path(digest)));
    metadata.is_ok_and(|m| m.is_file() && m.len() > 0)
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
