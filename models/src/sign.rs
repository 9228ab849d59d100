//! The writing half: keys, signatures and changes to a repository. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::digest::Digest;
use crate::fleet::rollout::{DesiredState, Membership};
use crate::manifest::Manifest;
use crate::name::{DeviceId, FileName, GroupName, ModelName, Version};

/// The signing keys of a fleet: one PKCS#8 PEM file (Ed25519, 0600) per role in a directory.
pub struct KeyRing {}

impl KeyRing {
    /// Makes keys for root, targets, releases, rollouts, snapshot and timestamp. Refuses to overwrite.
    pub fn generate(directory: &Path) -> Result<Self, SignError> {
        todo!()
    }

    pub fn open(directory: &Path) -> Result<Self, SignError> {
        todo!()
    }
}

/// How long each role's metadata is valid; defaults: root 3 years, targets, releases and rollouts 1 year,
/// snapshot and timestamp 30 days.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {}

/// The operator's repository, locked (flock) while open.
pub struct Repository {}

/// What must reach a carrier, in this order: chunks, then metadata, timestamp last.
pub struct Publication {
    pub chunks: Vec<Digest>,
    pub metadata: Vec<FileName>,
}

impl Repository {
    pub fn create(directory: &Path, keys: &KeyRing, now: Timestamp) -> Result<Self, SignError> {
        todo!()
    }

    pub fn open(directory: &Path) -> Result<Self, SignError> {
        todo!()
    }

    pub fn directory(&self) -> &Path {
        todo!()
    }

    /// Root metadata as a device needs it at enrolment (the newest).
    pub fn root(&self) -> Result<Vec<u8>, SignError> {
        todo!()
    }

    pub fn timestamp_version(&self) -> u64 {
        todo!()
    }

    /// The exact timestamp bytes (to compare with the broker's).
    pub fn timestamp(&self) -> Result<Vec<u8>, SignError> {
        todo!()
    }

    pub fn manifest(
        &self,
        model: &ModelName,
        version: &Version,
    ) -> Result<Option<Manifest>, SignError> {
        todo!()
    }

    /// Versions of a model, oldest release first.
    pub fn versions(&self, model: &ModelName) -> Result<Vec<(Version, u64)>, SignError> {
        todo!()
    }

    pub fn next_release(&self, model: &ModelName) -> Result<u64, SignError> {
        todo!()
    }

    /// Stages one model version: its manifest (release set) and files by name. A version that exists with other bytes is refused.
    pub fn add_version(
        &mut self,
        manifest: &Manifest,
        files: &BTreeMap<FileName, PathBuf>,
    ) -> Result<(), SignError> {
        todo!()
    }

    pub fn desired(&self, group: &GroupName) -> Result<Option<DesiredState>, SignError> {
        todo!()
    }

    pub fn groups(&self) -> Result<Vec<GroupName>, SignError> {
        todo!()
    }

    pub fn set_desired(&mut self, desired: &DesiredState) -> Result<(), SignError> {
        todo!()
    }

    pub fn groups_of(
        &self,
        device: &DeviceId,
    ) -> Result<std::collections::BTreeSet<GroupName>, SignError> {
        todo!()
    }

    /// All devices with their groups.
    pub fn membership(
        &self,
    ) -> Result<BTreeMap<DeviceId, std::collections::BTreeSet<GroupName>>, SignError> {
        todo!()
    }

    pub fn set_groups(
        &mut self,
        device: &DeviceId,
        groups: std::collections::BTreeSet<GroupName>,
    ) -> Result<(), SignError> {
        todo!()
    }

    /// Signs what was staged: changed delegated roles, snapshot, timestamp. On disk the timestamp is replaced last.
    pub fn commit(&mut self, keys: &KeyRing, now: Timestamp) -> Result<Publication, SignError> {
        todo!()
    }

    /// Re-signs snapshot and timestamp only (works with only those two keys present).
    pub fn refresh(&mut self, keys: &KeyRing, now: Timestamp) -> Result<Publication, SignError> {
        todo!()
    }

    /// Everything that a carrier must hold now, for `sync` and `export`.
    pub fn everything(&self) -> Result<Publication, SignError> {
        todo!()
    }

    /// A chunk's bytes as they travel.
    pub fn chunk(&self, digest: &Digest) -> Result<Vec<u8>, SignError> {
        todo!()
    }

    /// A metadata file as its topic carries it, with the chunks of its list if it is large.
    pub fn packed_metadata(&self, file: &FileName) -> Result<crate::chunk::Packed, SignError> {
        todo!()
    }

    /// Writes a complete repository to another directory (USB), timestamp last.
    pub fn export(&self, to: &Path) -> Result<(), SignError> {
        todo!()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Durable(#[from] crate::durable::DurableError),
}
