//! A version on disk. (Contract; to be completed.)
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::manifest::{GoldenVectors, Manifest};

/// A version whose manifest and files were checked against the digest that signed metadata gave.
/// Only this module and `verify` make one; only one of these can be loaded.
#[derive(Debug, Clone)]
pub struct InstalledVersion {
    directory: PathBuf,
    manifest: Arc<Manifest>,
    manifest_digest: Digest,
}

impl InstalledVersion {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub fn manifest_digest(&self) -> &Digest {
        &self.manifest_digest
    }

    pub fn model_path(&self) -> PathBuf {
        self.directory.join(self.manifest.model_file.as_str())
    }

    /// Opens a version directory, reading every file: each must have the length and digest that the manifest
    /// gives, and the manifest must have `manifest_digest`.
    pub fn open(_directory: &Path, _manifest_digest: &Digest) -> Result<Self, PackageError> {
        todo!()
    }

    /// The golden vectors, if the version has any.
    pub fn golden(&self) -> Result<Option<GoldenVectors>, PackageError> {
        todo!()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("package {directory}: {problem}")]
pub struct PackageError {
    pub directory: PathBuf,
    pub problem: String,
}
