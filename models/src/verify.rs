//! The one verifier. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::chunk::{ChunkError, ChunkRef, Source};
use crate::digest::Digest;
use crate::fleet::rollout::{DesiredState, Membership};
use crate::name::{DeviceId, GroupName, ModelName, Version};

/// What a device trusts, in small atomic files: highest root, highest version per role with its digest,
/// latest trusted time, newest verified metadata (so that desired state can be read again offline).
pub struct TrustStore {}

/// A site's rules about time.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Timestamps older than this make the device `stale`.
    pub stale_after: Duration,
}

impl TrustStore {
    /// Makes a trust store from the root metadata of the enrolment. Refuses if one is there with another root.
    pub fn create(directory: &Path, root: &[u8]) -> Result<Self, VerifyError> {
        todo!()
    }

    /// Opens an existing one; unreadable state is an error, never "start from nothing".
    pub fn open(directory: &Path) -> Result<Self, VerifyError> {
        todo!()
    }

    /// The latest time that a verified signed document proved. The clock counts only when not behind it.
    pub fn trusted_time(&self) -> Timestamp {
        todo!()
    }

    /// max(clock, trusted time): what TLS and expiry checks use.
    pub fn now(&self, clock: Timestamp) -> Timestamp {
        todo!()
    }

    /// Version of the newest trusted timestamp; 0 before the first.
    pub fn timestamp_version(&self) -> u64 {
        todo!()
    }

    /// Fetches and verifies the metadata of `source`; commits trust only when all of it verified.
    /// A source older than the device's state is `Update::Older`, a friendly no-op.
    pub async fn update(
        &mut self,
        source: Arc<dyn Source>,
        clock: Timestamp,
        policy: Policy,
    ) -> Result<Update, VerifyError> {
        todo!()
    }

    /// The repository as last verified, from this store's own files (no network). `None` before the first.
    pub fn current(
        &self,
        clock: Timestamp,
        policy: Policy,
    ) -> Result<Option<VerifiedRepository>, VerifyError> {
        todo!()
    }
}

pub enum Update {
    /// Newer than before, or the same.
    Current(VerifiedRepository),
    /// Verified, and older than what this device already knows; nothing to do.
    Older { offered: u64, known: u64 },
}

/// Metadata that passed every check; what it names may be believed.
#[derive(Debug, Clone)]
pub struct VerifiedRepository {}

/// One target as signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    pub name: String,
    pub length: u64,
    pub sha256: Digest,
    /// The list document, for a target larger than one chunk.
    pub list: Option<ChunkRef>,
}

impl VerifiedRepository {
    pub fn timestamp_version(&self) -> u64 {
        todo!()
    }

    /// `Some(why)` when nothing new may be installed: stale, or root, targets or a delegated role expired.
    pub fn install_bar(&self) -> Option<&str> {
        todo!()
    }

    pub fn stale(&self) -> bool {
        todo!()
    }

    pub fn target(&self, name: &str) -> Option<&TargetInfo> {
        todo!()
    }

    /// Desired state of a group; `None` when it has none. Checks that the document is about this group.
    pub async fn desired(
        &self,
        source: &dyn Source,
        group: &GroupName,
    ) -> Result<Option<DesiredState>, VerifyError> {
        todo!()
    }

    /// The groups this device belongs to (empty when the document does not name it).
    pub async fn groups(
        &self,
        source: &dyn Source,
        device: &DeviceId,
    ) -> Result<Vec<GroupName>, VerifyError> {
        todo!()
    }

    /// A small target's whole bytes, verified.
    pub async fn read(
        &self,
        source: &dyn Source,
        target: &TargetInfo,
        limit: u64,
    ) -> Result<Vec<u8>, VerifyError> {
        todo!()
    }

    /// The chunks that a target is made of, in order (one, itself, for a small one). Lists are fetched and
    /// verified; lengths add up to the target's.
    pub async fn chunks(
        &self,
        source: &dyn Source,
        target: &TargetInfo,
    ) -> Result<Vec<ChunkRef>, VerifyError> {
        todo!()
    }

    /// All targets of one model version: the manifest's and its files', checked to belong together.
    pub fn version_targets(&self, model: &ModelName, version: &Version) -> Vec<&TargetInfo> {
        todo!()
    }
}

/// Says what was refused and why, for an operator.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(
        "the trust state in {path} is unreadable ({problem}); nothing new is accepted until it is mended"
    )]
    TrustUnreadable { path: PathBuf, problem: String },
    #[error("{file} is refused: {problem}")]
    Refused { file: String, problem: String },
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Durable(#[from] crate::durable::DurableError),
}
