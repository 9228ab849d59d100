//! The state directory: what this device has, trusts and runs, in files that survive a power cut.
//!
//! ```text
//! lock                          held by the one process that owns the directory
//! trust/                        `models::verify`'s
//! identity/                     `identity`'s: key, certificate, enrolment
//! versions/{model}/{version}/   installed: verified, complete, never changed
//! active/{model}/pointer        which version serves and which one did before: replaced atomically
//! active/{model}/routing        which versions serve beside it, by which names: likewise
//! desired                       the sequence applied per group
//! incoming/ chunks/             work in progress: emptied at start; fetched chunks, kept to resume
//! outbox/                       telemetry that waits
//! audit.log audit/              the audit log: its newest file, and those before it
//! inferences.log inferences/    inference records, in the same form
//! departures.log departures/    what left the device, in the same form
//! usage/                        what callers used, month by month
//! delegate-caches/              `serving::driver_caches`'s: what drivers compiled
//! ```
//! An installation becomes visible by one rename, an activation by one pointer write, so at any instant the
//! device has the version before or the new one whole. What is active,
//! previous or wanted beside is never removed here.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use edgeward_models::durable::{self, DurableError};
use rustix::fs::{Gid, Uid};

pub use record::{Applied, ModelRecord, Pointer, Quarantined};
pub use routing::RoutingRecord;

mod documents;
mod record;
mod routing;
#[cfg(test)]
mod tests;
mod versions;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state directory {0} is in use by another edgeward process (a running agent?)")]
    Locked(PathBuf),
    #[error("cannot use the state directory {path}")]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is damaged in both of its generations")]
    Damaged(PathBuf),
    #[error("{path} is not a document of this agent")]
    Foreign {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// The trust store's place in the state directory; the TLS door reads the proven time there before the state is
/// locked.
pub const TRUST_DIRECTORY: &str = "trust";

/// The directory, owned by this process until dropped.
#[derive(Debug)]
pub struct StateDirectory {
    root: PathBuf,
    _lock: File,
}

impl StateDirectory {
    /// Makes what is missing, takes the lock, throws work in progress away.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        if !root.exists() {
            durable::create_directory(root)?;
            durable::make_private(root)?;
        }
        let lock = Self::take_lock(root)?;
        let state = Self {
            root: root.to_owned(),
            _lock: lock,
        };
        durable::remove_directory(&state.incoming())?;
        for directory in ["versions", "active", "incoming", "chunks", "identity"] {
            durable::create_directory(&root.join(directory))?;
        }
        Ok(state)
    }

    fn take_lock(root: &Path) -> Result<File, StateError> {
        let path = root.join("lock");
        let lock = durable::open_lock(&path)?;
        if durable::lock(&lock, &path)? {
            return Ok(lock);
        }
        Err(StateError::Locked(root.to_owned()))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn trust(&self) -> PathBuf {
        self.root.join(TRUST_DIRECTORY)
    }

    pub fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub fn chunks(&self) -> PathBuf {
        self.root.join("chunks")
    }

    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    pub fn outbox(&self) -> PathBuf {
        self.root.join("outbox")
    }

    /// Free bytes on the disk of the state directory, for this user.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.root)
            .map(|s| s.f_bavail.saturating_mul(s.f_frsize))
            .unwrap_or(0)
    }
}

/// When root runs a verb on a directory that belongs to the agent's own user, it acts as that user from here
/// on: files made as root would lock the agent out. Call before any other thread exists.
pub fn act_as_owner(root: &Path) -> Result<(), StateError> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let Ok(metadata) = fs::metadata(root) else {
        return Ok(());
    };
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    if !rustix::process::geteuid().is_root() || uid.is_root() {
        return Ok(());
    }
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|e| StateError::Unusable {
            path: root.to_owned(),
            source: e.into(),
        })
}
