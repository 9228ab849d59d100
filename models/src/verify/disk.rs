//! Where the trust state lies.
//!
//! ```text
//! trust  trust.before         the state, two generations with checksums
//! metadata/SHA256.ROLE.json   the newest verified files, named by the state
//! scratch/                    tough's own files during an update; worth nothing afterwards
//! ```
//!
//! The state file alone decides. The copies are written before it and checked against it, so neither a power
//! cut nor damage can mix two updates.

use std::fs;
use std::path::{Path, PathBuf};

use super::VerifyError;
use super::chain::Chain;
use super::state::TrustState;
use crate::digest::Digest;
use crate::durable::{self, Access, Generations, Stored, lossy};
use crate::repository::MAX_METADATA_BYTES;

#[derive(Debug, Clone)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    fn generations(&self) -> Generations {
        Generations::new(self.directory.join("trust"))
    }

    /// `None` when nothing was ever written.
    pub fn read(&self) -> Result<Option<TrustState>, VerifyError> {
        let generations = self.generations();
        let path = generations.path().to_owned();
        let bytes = match generations.read()? {
            Stored::Absent => return Ok(None),
            Stored::Good(bytes) => bytes,
            Stored::Damaged { before } => {
                let problem = damage(&path, before.as_deref());
                return Err(VerifyError::TrustUnreadable { path, problem });
            }
        };
        match TrustState::parse(&bytes) {
            Ok(state) => Ok(Some(state)),
            Err(problem) => Err(VerifyError::TrustUnreadable { path, problem }),
        }
    }

    pub fn create(&self, state: &TrustState) -> Result<(), VerifyError> {
        durable::create_directory(&self.directory)?;
        self.write_state(state)
    }

    pub fn write_state(&self, state: &TrustState) -> Result<(), VerifyError> {
        Ok(self.generations().write_json(state, Access::Owner)?)
    }

    /// Writes the copies, then the state that names them, and lets go of older copies.
    pub fn commit(&self, state: &TrustState, chain: &Chain) -> Result<(), VerifyError> {
        let directory = self.directory.join("metadata");
        durable::create_directory(&directory)?;
        for (role, file) in &chain.files {
            if self.copy(state, role).is_none() {
                // Never over a copy that the state still names: a rotation of keys gives a version anew.
                let path = directory.join(copy_name(role, &Digest::of(&file.bytes)));
                durable::write(&path, &file.bytes, Access::Owner)?;
            }
        }
        self.write_state(state)?;
        let wanted = |name: &str| {
            let mut roles = state.roles.iter();
            roles.any(|(role, known)| copy_name(role, &known.sha256) == name)
        };
        // What stays behind by a failure here is let go of the next time.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|name| !wanted(name)) {
                lossy::remove(&entry.path());
            }
        }
        Ok(())
    }

    /// The copy of a role's file, if it is whole.
    pub fn copy(&self, state: &TrustState, role: &str) -> Option<Vec<u8>> {
        let known = state.roles.get(role)?;
        let path = self
            .directory
            .join("metadata")
            .join(copy_name(role, &known.sha256));
        let bytes = durable::read(&path, MAX_METADATA_BYTES).ok()??;
        (Digest::of(&bytes) == known.sha256).then_some(bytes)
    }

    /// An empty directory for tough, removed when dropped.
    pub fn scratch(&self) -> Result<Scratch, VerifyError> {
        let path = self.directory.join("scratch");
        lossy::fresh_directory(&path)?;
        Ok(Scratch { path })
    }
}

/// See [`Disk::scratch`].
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a file there for tough to find.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), VerifyError> {
        Ok(lossy::write(&self.path.join(name), bytes)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        lossy::remove_directory(&self.path);
    }
}

fn copy_name(role: &str, digest: &Digest) -> String {
    format!("{digest}.{role}.json")
}

fn damage(path: &Path, before: Option<&[u8]>) -> String {
    match before.map(TrustState::parse) {
        Some(Ok(state)) => format!(
            "its checksum is wrong; the generation before it, which knows timestamp {}, is whole: if losing \
             the newest update is acceptable, replace {} by the file ending in .before",
            state.timestamp_version(),
            path.display()
        ),
        _ => "its checksum is wrong and there is no whole generation before it: enrol this device again"
            .to_owned(),
    }
}
