//! A further copy of a repository: made from what a carrier holds, and brought up to it.
//!
//! For a second operator and for machines that only sign. Everything is verified from a root that is known, or that
//! is there when the copy is made; it is on disk before the timestamp that names it, as with a publication.

use std::collections::BTreeMap;
use std::path::Path;

use tough::schema::{Root, Signed};

use super::repository::{Repository, TIMESTAMP_FILE, lock_new, metadata_path, verified_chain};
use super::targets::{has_chunk, write_chunks};
use super::{SignError, refused};
use crate::chunk::{self, ChunkError, Source, check_chunk, pack_metadata};
use crate::digest::Digest;
use crate::durable::{self, Access};
use crate::name::FileName;
use crate::repository::MAX_METADATA_BYTES;
use crate::verify::{Chain, VerifyError, parse_root, root_follows, target_info};

const FIRST_ROOT: &str = "1.root.json";
/// Chunks that are written at once.
const BATCH: usize = 64;

/// What a source offers, verified.
struct Offer {
    chain: Chain,
    /// Metadata by file name: roots after the known one, and what the newest leads to.
    files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    /// Makes a copy of what a source offers, whose first root is believed from then on.
    pub async fn join(directory: &Path, source: &dyn Source) -> Result<Self, SignError> {
        let lock = lock_new(directory)?;
        let first = fetch(source, FIRST_ROOT).await?;
        let mut offer = Offer::fetch(source, &first).await?;
        offer.files.insert(FIRST_ROOT.to_owned(), first);
        offer.write(directory, source).await?;
        Self::open_locked(directory, lock)
    }

    /// Brings this copy up to what a source offers; false if it is. Changes of this copy that the source does not
    /// have are given up only if `discard` says so.
    pub async fn pull(&mut self, source: &dyn Source, discard: bool) -> Result<bool, SignError> {
        let offer = Offer::fetch(source, &self.root()?).await?;
        let (theirs, ours) = (
            offer.chain.timestamp.signed.version.get(),
            self.timestamp_version(),
        );
        if offer.files.get(TIMESTAMP_FILE) == Some(&self.timestamp()?) {
            return Ok(false);
        }
        if theirs < ours {
            return Err(refused(format!(
                "timestamp {theirs} is offered and this repository has {ours}: `fleetctl sync` publishes it"
            )));
        }
        if let Some(own) = self.unpublished(&offer.chain)
            && !discard
        {
            return Err(refused(format!(
                "this repository has a change that was not published: {own}. Take the others' state with `fleetctl \
                 pull --discard-own`, then make the change anew"
            )));
        }
        offer.write(&self.directory, source).await?;
        self.chain = verified_chain(&self.directory)?;
        Ok(true)
    }

    /// Something of this copy that cannot have led to what others published.
    fn unpublished(&self, theirs: &Chain) -> Option<String> {
        for (role, ours) in &self.chain.files {
            let theirs = theirs.files.get(role)?;
            let daily = role == "timestamp" || role == "snapshot";
            if !daily
                && (theirs.version < ours.version
                    || (theirs.version == ours.version && theirs.bytes != ours.bytes))
            {
                return Some(format!("{role} {}", ours.version));
            }
        }
        let theirs = &theirs.targets.signed;
        self.targets_below("models/").into_keys().find(|name| {
            let name = tough::TargetName::new(name);
            name.is_ok_and(|name| theirs.find_target(&name, false).is_err())
        })
    }
}

impl Offer {
    async fn fetch(source: &dyn Source, known: &[u8]) -> Result<Self, SignError> {
        let wrong = |e: VerifyError| refused(format!("what is offered is not believed: {e}"));
        let mut files = BTreeMap::new();
        let mut root: Signed<Root> = parse_root(known).map_err(wrong)?;
        let mut bytes = known.to_vec();
        loop {
            let file = format!("{}.root.json", root.signed.version.get() + 1);
            let Some(next) = fetch_if_any(source, &file).await? else {
                break;
            };
            let parsed = parse_root(&next).map_err(wrong)?;
            if !root_follows(&root, &parsed) {
                return Err(refused(format!(
                    "{file} that is offered does not follow from the root that is known here"
                )));
            }
            files.insert(file, next.clone());
            (root, bytes) = (parsed, next);
        }
        loop {
            let mut lacks = None;
            let chain = Chain::verify(&bytes, &mut |file| {
                files.get(file).cloned().ok_or_else(|| {
                    lacks = Some(file.to_owned());
                    VerifyError::Refused {
                        file: file.to_owned(),
                        problem: "it is missing".to_owned(),
                    }
                })
            });
            match (chain, lacks) {
                (Ok(chain), _) => return Ok(Self { chain, files }),
                (Err(_), Some(file)) => {
                    let bytes = fetch(source, &file).await?;
                    files.insert(file, bytes);
                }
                (Err(error), None) => return Err(wrong(error)),
            }
        }
    }

    /// Puts everything into a repository's directory, the timestamp last.
    async fn write(self, directory: &Path, source: &dyn Source) -> Result<(), SignError> {
        let mut missing = Vec::new();
        for (name, target) in self.chain.targets.signed.targets_iter() {
            let info = target_info(name.raw(), target).map_err(|e| refused(e.to_string()))?;
            let digests = match info.list {
                Some(list) => chunk::list_digests(source, &list, info.length).await?,
                None => vec![info.sha256],
            };
            for digest in digests {
                if !has_chunk(directory, &digest) {
                    missing.push((digest, fetch_chunk(source, &digest).await?));
                }
                if missing.len() == BATCH {
                    write_chunks(directory, &std::mem::take(&mut missing))?;
                }
            }
        }
        write_chunks(directory, &missing)?;
        let last = |file: &&String| file.as_str() == TIMESTAMP_FILE;
        let timestamp = self.files.keys().filter(last);
        for file in self
            .files
            .keys()
            .filter(|file| !last(file))
            .chain(timestamp)
        {
            let bytes = &self.files[file];
            write_chunks(directory, &pack_metadata(bytes)?.chunks)?;
            durable::write(&metadata_path(directory, file), bytes, Access::Anyone)?;
        }
        Ok(())
    }
}

async fn fetch_chunk(source: &dyn Source, digest: &Digest) -> Result<Vec<u8>, SignError> {
    let bytes = source.chunk(digest).await.map_err(ChunkError::from)?;
    let bytes = bytes.ok_or(ChunkError::Missing(*digest))?;
    check_chunk(digest, &bytes)?;
    Ok(bytes.to_vec())
}

async fn fetch(source: &dyn Source, file: &str) -> Result<Vec<u8>, SignError> {
    fetch_if_any(source, file).await?.ok_or_else(|| {
        refused(format!(
            "{file} is not there: no whole repository is offered"
        ))
    })
}

async fn fetch_if_any(source: &dyn Source, file: &str) -> Result<Option<Vec<u8>>, SignError> {
    let file: FileName = file.parse().map_err(|e| refused(format!("{e}")))?;
    Ok(chunk::fetch_metadata(source, &file, MAX_METADATA_BYTES).await?)
}
