//! The signed tree on disk. (Contract; bodies to be written.)
//!
//! ```text
//! metadata/  1.root.json 2.root.json … timestamp.json N.snapshot.json N.targets.json N.releases.json N.rollouts.json
//! chunks/    {first two hex digits}/{sha256}     zstd; every target is stored as its chunks, nothing else
//! ```
//! The same tree is what `fleetctl export` writes to a USB stick and `edgeward import` reads.
#![allow(dead_code, unused_variables)]
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use crate::chunk::{Source, SourceError};
use crate::digest::Digest;
use crate::name::FileName;

/// A repository directory as a [`Source`]. Reads through a directory handle, never follows symbolic links.
#[derive(Debug)]
pub struct DirectorySource {}

impl DirectorySource {
    pub fn open(directory: &Path) -> Result<Self, SourceError> {
        todo!()
    }

    /// From a directory descriptor that another process opened (`edgeward import`).
    pub fn from_fd(directory: std::os::fd::OwnedFd) -> Result<Self, SourceError> {
        todo!()
    }
}

#[async_trait]
impl Source for DirectorySource {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        todo!()
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        todo!()
    }
}

/// Where a chunk lies below the repository.
pub fn chunk_path(digest: &Digest) -> PathBuf {
    let hex = digest.to_hex();
    Path::new("chunks").join(&hex[..2]).join(hex)
}
