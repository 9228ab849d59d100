//! The writing half: keys, signatures and changes to a repository.
//!
//! fleetctl and tests use it; an agent is built without it (feature `sign`). Metadata is made straight from
//! tough's schema types, signed over canonical JSON. Promises: what was published once is never published with
//! other bytes under the same name; a crash at any instruction leaves the repository as it was or as it was
//! to become; a key is asked for only when its role is signed.

mod commit;
mod document;
mod encrypted;
mod explain;
mod export;
mod follow;
mod key_file;
mod keys;
mod metadata;
mod proposal;
mod reorganize;
mod repository;
mod roles;
mod rollouts;
mod roster;
mod seal;
mod targets;
mod versions;

use std::path::PathBuf;

use crate::chunk::ChunkError;
use crate::name::FileName;
use crate::verify::VerifyError;

pub use encrypted::{EncryptedKey, Passphrase, PrivatePem, Unlock, Unlocked, plain_pem};
pub use key_file::{PublicKey, make_key, public_key, read_public};
pub use keys::{KeyRing, SigningRole, decrypt, encrypt, key_path};
pub use metadata::Lifetimes;
pub use proposal::{Lack, MAX_PROPOSAL_BYTES, Proposal};
pub use repository::Repository;
pub use roles::{RoleInfo, keys_under, prepare, settle};
pub use roster::{Roster, Signers};

use crate::digest::Digest;

/// What must reach a carrier, in this order: chunks, then metadata, timestamp last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    pub chunks: Vec<Digest>,
    pub metadata: Vec<FileName>,
}

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("{0}")]
    Refused(String),
    #[error("the repository {directory} is in use by another fleetctl: wait for it to end")]
    Busy { directory: PathBuf },
    #[error("the repository {directory} is damaged; restore it from a copy")]
    Damaged {
        directory: PathBuf,
        #[source]
        source: VerifyError,
    },
    /// Nothing was changed; the proposal is to be signed elsewhere.
    #[error("more signatures are needed: {}", words(lacks))]
    Unsigned {
        lacks: Vec<Lack>,
        proposal: Box<Proposal>,
    },
    #[error("the passphrase of {path} is needed: {problem}")]
    Locked { path: PathBuf, problem: String },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Durable(#[from] crate::durable::DurableError),
}

fn words(lacks: &[Lack]) -> String {
    let lacks: Vec<String> = lacks.iter().map(ToString::to_string).collect();
    lacks.join("; ")
}

fn refused(problem: impl Into<String>) -> SignError {
    SignError::Refused(problem.into())
}
