//! The operator's repository: making it, opening it, telling what is in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use jiff::Timestamp as Time;
use tough::schema::{Signed, Target, Targets};

use super::keys::{KeyRing, SigningRole};
use super::roster::Roster;
use super::{Lifetimes, Publication, SignError, metadata, refused};
use crate::chunk::{MAX_CHUNK_BYTES, Packed, pack_metadata};
use crate::digest::Digest;
use crate::durable::{self, Access};
use crate::name::FileName;
use crate::repository::{MAX_METADATA_BYTES, METADATA_DIRECTORY, chunk_path};
use crate::verify::{Chain, VerifyError};

pub(super) const TIMESTAMP_FILE: &str = "timestamp.json";

/// The operator's repository, locked (flock) while open.
pub struct Repository {
    pub(super) directory: PathBuf,
    /// Holds the lock.
    _lock: File,
    /// What stands on disk, verified.
    pub(super) chain: Chain,
    /// Targets to be signed by the next commit; `None` takes one away.
    pub(super) staged: BTreeMap<String, Option<Target>>,
    pub(super) lifetimes: Lifetimes,
    pub(super) earlier_clock_accepted: bool,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("directory", &self.directory)
            .field("staged", &self.staged.keys())
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes an empty repository whose roles are signed by `keys`.
    pub fn create(directory: &Path, keys: &KeyRing, now: Time) -> Result<Self, SignError> {
        Self::create_with(directory, keys, now, Lifetimes::default())
    }

    /// [`Self::create`] with other lifetimes; they are not stored (see [`Self::set_lifetimes`]).
    pub fn create_with(
        directory: &Path,
        keys: &KeyRing,
        now: Time,
        lifetimes: Lifetimes,
    ) -> Result<Self, SignError> {
        let lock = lock_new(directory)?;
        let first = NonZeroU64::MIN;
        let roster = Roster::of_keys(keys)?;
        let root = roster.next_root(first, &lifetimes, now)?;
        let root = metadata::sign(root, SigningRole::Root, keys)?;
        let targets = roster.next_targets(first, &lifetimes, now)?;
        let targets = metadata::sign(targets, SigningRole::Targets, keys)?;
        let mut files = BTreeMap::new();
        files.insert(SigningRole::Targets, (first, metadata::to_bytes(&targets)?));
        for role in [SigningRole::Releases, SigningRole::Rollouts] {
            let empty = metadata::targets(role, first, &lifetimes, now)?;
            let signed = metadata::sign(empty, role, keys)?;
            files.insert(role, (first, metadata::to_bytes(&signed)?));
        }
        let snapshot = metadata::snapshot(first, &files, &lifetimes, now)?;
        let snapshot = metadata::sign(snapshot, SigningRole::Snapshot, keys)?;
        let snapshot = metadata::to_bytes(&snapshot)?;
        let timestamp = metadata::timestamp(first, (first, &snapshot), &lifetimes, now)?;
        let timestamp = metadata::sign(timestamp, SigningRole::Timestamp, keys)?;
        files.insert(SigningRole::Snapshot, (first, snapshot));
        files.insert(SigningRole::Root, (first, metadata::to_bytes(&root)?));
        for (role, (version, bytes)) in &files {
            let path = metadata_path(directory, &format!("{version}.{role}.json"));
            durable::write(&path, bytes, Access::Anyone)?;
        }
        let bytes = metadata::to_bytes(&timestamp)?;
        let path = metadata_path(directory, TIMESTAMP_FILE);
        durable::write(&path, &bytes, Access::Anyone)?;
        let mut repository = Self::open_locked(directory, lock)?;
        repository.lifetimes = lifetimes;
        Ok(repository)
    }

    /// Opens a repository, locks it and verifies all its metadata.
    pub fn open(directory: &Path) -> Result<Self, SignError> {
        if !metadata_path(directory, TIMESTAMP_FILE).exists() {
            return Err(refused(format!(
                "there is no repository in {}: make one with `fleetctl init`",
                directory.display()
            )));
        }
        let lock = lock(directory)?;
        Self::open_locked(directory, lock)
    }

    pub(super) fn open_locked(directory: &Path, lock: File) -> Result<Self, SignError> {
        Ok(Self {
            chain: verified_chain(directory)?,
            directory: directory.to_owned(),
            _lock: lock,
            staged: BTreeMap::new(),
            lifetimes: Lifetimes::default(),
            earlier_clock_accepted: false,
        })
    }

    /// Signs with other lifetimes from now on.
    pub fn set_lifetimes(&mut self, lifetimes: Lifetimes) {
        self.lifetimes = lifetimes;
    }

    /// Signs although the clock is behind the last signature: the way back after a signature that was made with
    /// a clock in the future.
    pub fn accept_earlier_clock(&mut self) {
        self.earlier_clock_accepted = true;
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Root metadata as a device needs it at enrolment (the newest).
    pub fn root(&self) -> Result<Vec<u8>, SignError> {
        self.read_metadata(&format!("{}.root.json", self.chain.root.signed.version))
    }

    pub fn root_version(&self) -> u64 {
        self.chain.root.signed.version.get()
    }

    pub fn timestamp_version(&self) -> u64 {
        self.chain.timestamp.signed.version.get()
    }

    /// When the newest timestamp was signed.
    pub fn signed_at(&self) -> Time {
        self.chain.signed_at
    }

    /// The exact timestamp bytes (to compare with the broker's).
    pub fn timestamp(&self) -> Result<Vec<u8>, SignError> {
        self.read_metadata(TIMESTAMP_FILE)
    }

    /// Everything that a carrier must hold now, for `sync` and `export`.
    pub fn everything(&self) -> Result<Publication, SignError> {
        let mut publication = Publication::default();
        for name in self.metadata_files() {
            let file: FileName = name.parse().map_err(|e| refused(format!("{e}")))?;
            let packed = self.packed_metadata(&file)?;
            publication
                .chunks
                .extend(packed.chunks.into_iter().map(|(d, _)| d));
            publication.metadata.push(file);
        }
        for (_, target) in self.chain.targets.signed.targets_iter() {
            publication.chunks.extend(self.chunks_of(target)?);
        }
        publication.chunks.sort();
        publication.chunks.dedup();
        Ok(publication)
    }

    /// The names of all metadata files that stand, timestamp last.
    pub(super) fn metadata_files(&self) -> Vec<String> {
        let roots = 1..=self.chain.root.signed.version.get();
        let mut names: Vec<String> = roots.map(|v| format!("{v}.root.json")).collect();
        for (role, file) in &self.chain.files {
            if role != "timestamp" {
                names.push(format!("{}.{role}.json", file.version));
            }
        }
        names.push(TIMESTAMP_FILE.to_owned());
        names
    }

    /// Who signs what now.
    pub fn roster(&self) -> Result<Roster, SignError> {
        Roster::of(&self.chain.root.signed, &self.chain.targets.signed)
    }

    /// A chunk's bytes as they travel.
    pub fn chunk(&self, digest: &Digest) -> Result<Vec<u8>, SignError> {
        let path = self.directory.join(chunk_path(digest));
        durable::read(&path, MAX_CHUNK_BYTES as u64)?.ok_or_else(|| {
            refused(format!(
                "chunk {digest} is missing from the repository {}: restore it from a copy, or push the \
                 version again",
                self.directory.display()
            ))
        })
    }

    /// A metadata file as its topic carries it, with the chunks of its list if it is large.
    pub fn packed_metadata(&self, file: &FileName) -> Result<Packed, SignError> {
        Ok(pack_metadata(&self.read_metadata(file.as_str())?)?)
    }

    pub(super) fn read_metadata(&self, file: &str) -> Result<Vec<u8>, SignError> {
        let path = metadata_path(&self.directory, file);
        durable::read(&path, MAX_METADATA_BYTES)?.ok_or_else(|| {
            refused(format!(
                "{} is missing: restore it from a copy",
                path.display()
            ))
        })
    }

    /// A delegated role as it stands on disk.
    pub(super) fn delegated(&self, role: SigningRole) -> Result<&Signed<Targets>, SignError> {
        self.chain
            .targets
            .signed
            .delegated_targets(role.name())
            .map_err(|_| refused(format!("this repository has no role {role}")))
    }
}

pub(super) fn metadata_path(directory: &Path, file: &str) -> PathBuf {
    directory.join(METADATA_DIRECTORY).join(file)
}

/// Verifies what lies in a repository directory, from its own newest root.
pub(super) fn verified_chain(directory: &Path) -> Result<Chain, SignError> {
    let damaged = |source| SignError::Damaged {
        directory: directory.to_owned(),
        source,
    };
    let mut get = |file: &str| -> Result<Vec<u8>, VerifyError> {
        durable::read(&metadata_path(directory, file), MAX_METADATA_BYTES)?.ok_or_else(|| {
            VerifyError::Refused {
                file: file.to_owned(),
                problem: "it is missing".to_owned(),
            }
        })
    };
    // A root after the newest that the timestamp was signed under is one whose rotation was cut short.
    let mut newest: Option<Result<Chain, VerifyError>> = None;
    for version in 1u64.. {
        let file = format!("{version}.root.json");
        if !metadata_path(directory, &file).exists() {
            break;
        }
        let chain = get(&file).and_then(|root| Chain::verify(&root, &mut get));
        if chain.is_ok() || newest.is_none() {
            newest = Some(chain);
        }
    }
    newest
        .unwrap_or_else(|| {
            Err(VerifyError::Refused {
                file: "1.root.json".to_owned(),
                problem: "it is missing".to_owned(),
            })
        })
        .map_err(damaged)
}

/// Holds a directory that is to become a repository and is none yet.
pub(super) fn lock_new(directory: &Path) -> Result<File, SignError> {
    durable::create_directory(&directory.join(METADATA_DIRECTORY))?;
    let lock = lock(directory)?;
    if metadata_path(directory, TIMESTAMP_FILE).exists() {
        return Err(refused(format!(
            "there is already a repository in {}",
            directory.display()
        )));
    }
    Ok(lock)
}

pub(super) fn lock(directory: &Path) -> Result<File, SignError> {
    let path = directory.join(".lock");
    let file = durable::open_lock(&path)?;
    if durable::lock(&file, &path)? {
        return Ok(file);
    }
    Err(SignError::Busy {
        directory: directory.to_owned(),
    })
}
