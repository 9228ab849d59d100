//! The one verifier: what a device believes of what carriers bring it.
//!
//! [`TrustStore`] wraps the TUF client `tough`, which is sound in what it checks and weak in what it keeps:
//! it forgets its root, writes its state so that a power cut can empty it, and knows only "enforce every
//! expiry" or "none". So the root, the versions, the time and the policy are ours (`state`, `policy`), tough
//! judges each update on a scratch copy that is thrown away (`loader`), and what it accepted is verified once
//! more from the very bytes that are then kept (`chain`).
//!
//! The agent calls this from its fleet side, on every hint of news and at every start. Promises: nothing older
//! than what was ever trusted is taken; a failed update changes nothing, except that a newer root, which is
//! proven by itself, binds from then on; no clock, however wrong, leaves a trace; and state that cannot be
//! read is an error, never a fresh start.

mod chain;
mod disk;
mod link;
mod loader;
mod policy;
mod state;
mod trust_store;
mod verified;

use std::path::PathBuf;

use crate::chunk::ChunkError;
use crate::name::FileName;

#[cfg(feature = "sign")]
pub(crate) use chain::{Chain, RoleFile, SIGNED_AT, key_ids, parse_root, root_follows, signed_at};
#[cfg(feature = "sign")]
pub(crate) use link::{LIST, target_info};
pub use policy::{END_IN_SIGHT, Policy};
pub use trust_store::TrustStore;
pub use verified::{TargetInfo, VerifiedRepository};

/// What became of an update that was not refused.
#[derive(Debug)]
pub enum Update {
    /// Newer than before, or the same.
    Current(VerifiedRepository),
    /// Verified, and older than what this device already knows; nothing to do.
    Older { offered: u64, known: u64 },
}

/// Says what was refused and why, for an operator.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(
        "the trust state in {path} is unreadable ({problem}); nothing new is accepted until it is mended"
    )]
    TrustUnreadable { path: PathBuf, problem: String },
    #[error("there is already a trust state in {path}: {problem}")]
    TrustExists { path: PathBuf, problem: String },
    #[error("{file} is refused: {problem}")]
    Refused { file: String, problem: String },
    /// Not an attack that can be told from an empty broker: nothing was offered.
    #[error(
        "{file} is not there, or this device may not read it: republish the repository with `fleetctl sync`, \
         and look at the broker's access list"
    )]
    Missing { file: FileName },
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Durable(#[from] crate::durable::DurableError),
}

impl VerifyError {
    /// What was refused, in one of a few words: for counting, where the text may differ each time.
    pub fn class(&self) -> &'static str {
        const ROLES: [(&str, &str); 6] = [
            ("root.json", "root"),
            ("timestamp.json", "timestamp"),
            ("snapshot.json", "snapshot"),
            ("targets.json", "targets"),
            ("releases.json", "releases"),
            ("rollouts.json", "rollouts"),
        ];
        match self {
            Self::TrustUnreadable { .. } | Self::TrustExists { .. } => "trust",
            Self::Refused { file, .. } => ROLES
                .iter()
                .find(|(end, _)| file.ends_with(end))
                .map_or("content", |(_, role)| role),
            Self::Missing { .. } => "missing",
            Self::Chunk(_) => "carrier",
            Self::Durable(_) => "disk",
        }
    }

    fn refused(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Refused {
            file: file.into(),
            problem: problem.into(),
        }
    }
}
