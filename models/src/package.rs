//! A version on disk, as a device has installed it.
//!
//! [`InstalledVersion::open`] is what a device loads from: nothing is believed that the signed digest does
//! not vouch for. What authors make and edit is the other half: [`author::Package`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::digest::Digest;
use crate::manifest::{
    Datatype, FileEntry, GoldenTensor, GoldenVector, GoldenVectors, MANIFEST_FILE,
    MAX_MANIFEST_BYTES, Manifest, TensorSpec,
};
use crate::name::FileName;

mod author;

pub use author::{Package, TfliteOptions};

/// A golden file larger than this many bytes is refused unread.
pub const MAX_GOLDEN_BYTES: u64 = 64 * 1024 * 1024;

/// A version whose manifest and files were checked against the digest that signed metadata gave.
/// Only this module and `verify` make one; only one of these can be loaded.
#[derive(Debug, Clone)]
pub struct InstalledVersion {
    directory: PathBuf,
    manifest: Arc<Manifest>,
    manifest_digest: Digest,
}

/// What is wrong with which package.
#[derive(Debug, thiserror::Error)]
#[error("package {directory}: {problem}")]
pub struct PackageError {
    pub directory: PathBuf,
    pub problem: String,
}

fn problem(directory: &Path, problem: impl Into<String>) -> PackageError {
    PackageError {
        directory: directory.to_owned(),
        problem: problem.into(),
    }
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
    /// gives, and the manifest must have `manifest_digest`. Symbolic links are refused; files that the
    /// manifest does not list are never looked at.
    pub fn open(directory: &Path, manifest_digest: &Digest) -> Result<Self, PackageError> {
        let handle = open_directory(directory)?;
        let bytes = read_file(directory, &handle, MANIFEST_FILE, MAX_MANIFEST_BYTES)?;
        let found = Digest::of(&bytes);
        if found != *manifest_digest {
            let text =
                format!("{MANIFEST_FILE} has the digest {found}, not {manifest_digest} as signed");
            return Err(problem(directory, text));
        }
        let manifest = Manifest::parse(&bytes).map_err(|e| problem(directory, chain(&e)))?;
        for (name, entry) in &manifest.files {
            let mut file = open_file(directory, &handle, name.as_str())?;
            check_file(directory, name, entry, &mut file)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            manifest: Arc::new(manifest),
            manifest_digest: *manifest_digest,
        })
    }

    /// The golden vectors, if the version has any: checked against the manifest's signatures, so that every
    /// vector names a signature and its tensors, with as many values as its shape has elements.
    pub fn golden(&self) -> Result<Option<GoldenVectors>, PackageError> {
        let Some(name) = &self.manifest.golden_file else {
            return Ok(None);
        };
        let Some(entry) = self.manifest.files.get(name) else {
            return Ok(None);
        };
        let handle = open_directory(&self.directory)?;
        let bytes = read_file(&self.directory, &handle, name.as_str(), MAX_GOLDEN_BYTES)?;
        if Digest::of(&bytes) != entry.sha256 {
            return Err(problem(
                &self.directory,
                format!("{name} has changed since it was checked"),
            ));
        }
        let golden =
            parse_golden(&self.manifest, name, &bytes).map_err(|p| problem(&self.directory, p))?;
        Ok(Some(golden))
    }
}

fn check_file(
    directory: &Path,
    name: &FileName,
    entry: &FileEntry,
    file: &mut File,
) -> Result<(), PackageError> {
    // One byte more than promised is enough to know that it is too long.
    let (digest, length) = Digest::of_reader(&mut file.take(entry.length.saturating_add(1)))
        .map_err(|e| problem(directory, format!("cannot read {name}: {e}")))?;
    if length != entry.length {
        let text = format!(
            "{name} does not have the {} bytes that the manifest gives",
            entry.length
        );
        return Err(problem(directory, text));
    }
    if digest != entry.sha256 {
        let text = format!(
            "{name} has the digest {digest}, not {} as the manifest gives",
            entry.sha256
        );
        return Err(problem(directory, text));
    }
    Ok(())
}

fn open_directory(directory: &Path) -> Result<OwnedFd, PackageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(|e| {
        problem(
            directory,
            format!("cannot open the directory: {}", std::io::Error::from(e)),
        )
    })
}

/// Opens a regular file of the directory, never through a symbolic link, never waiting on a pipe.
fn open_file(directory: &Path, handle: &impl AsFd, name: &str) -> Result<File, PackageError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(handle, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP) => {
            return Err(problem(
                directory,
                format!("{name} is a symbolic link, which is not followed"),
            ));
        }
        Err(rustix::io::Errno::NOENT) => {
            return Err(problem(directory, format!("{name} is missing")));
        }
        Err(e) => {
            let text = format!("cannot open {name}: {}", std::io::Error::from(e));
            return Err(problem(directory, text));
        }
    };
    let metadata = file
        .metadata()
        .map_err(|e| problem(directory, format!("cannot look at {name}: {e}")))?;
    if !metadata.is_file() {
        return Err(problem(directory, format!("{name} is not a regular file")));
    }
    Ok(file)
}

fn read_file(
    directory: &Path,
    handle: &impl AsFd,
    name: &str,
    limit: u64,
) -> Result<Vec<u8>, PackageError> {
    let mut bytes = Vec::new();
    open_file(directory, handle, name)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| problem(directory, format!("cannot read {name}: {e}")))?;
    if bytes.len() as u64 > limit {
        return Err(problem(
            directory,
            format!("{name} is larger than the {limit} bytes allowed"),
        ));
    }
    Ok(bytes)
}

/// Reads golden vectors and checks them against the manifest. The error says what is wrong in words.
pub fn parse_golden(
    manifest: &Manifest,
    name: &FileName,
    bytes: &[u8],
) -> Result<GoldenVectors, String> {
    let golden: GoldenVectors = serde_json::from_slice(bytes)
        .map_err(|e| format!("{name} does not hold golden vectors: {e}"))?;
    for (position, vector) in golden.vectors.iter().enumerate() {
        vector_problem(manifest, vector).map_or(Ok(()), |problem| {
            Err(format!("{name}: vector {position}: {problem}"))
        })?;
    }
    Ok(golden)
}

fn vector_problem(manifest: &Manifest, vector: &GoldenVector) -> Option<String> {
    let signature = match &vector.signature {
        None => manifest.default_signature(),
        Some(name) => match manifest.signatures.iter().find(|s| s.name == *name) {
            Some(signature) => signature,
            None => return Some(format!("the model has no signature {name:?}")),
        },
    };
    tensors_problem("input", &signature.inputs, &vector.inputs, true)
        .or_else(|| tensors_problem("output", &signature.outputs, &vector.outputs, false))
}

fn tensors_problem(
    kind: &str,
    specs: &[TensorSpec],
    tensors: &BTreeMap<String, GoldenTensor>,
    complete: bool,
) -> Option<String> {
    if complete && let Some(absent) = specs.iter().find(|s| !tensors.contains_key(&s.name)) {
        return Some(format!("{kind} {:?} is missing", absent.name));
    }
    if tensors.is_empty() {
        return Some(format!("has no {kind}"));
    }
    for (name, tensor) in tensors {
        let Some(spec) = specs.iter().find(|s| s.name == *name) else {
            return Some(format!("the signature has no {kind} {name:?}"));
        };
        let any_rank = kind == "output" && spec.shape.is_empty();
        let fits = spec.shape.len() == tensor.shape.len()
            && spec
                .shape
                .iter()
                .zip(&tensor.shape)
                .all(|(&wanted, &given)| wanted == -1 || u64::try_from(wanted) == Ok(given));
        if !fits && !any_rank {
            return Some(format!(
                "{kind} {name:?} has the shape {:?}; {:?} is expected",
                tensor.shape, spec.shape
            ));
        }
        let (field, values, other) = match spec.datatype {
            Datatype::Bytes => ("strings", tensor.strings.len(), tensor.data.len()),
            _ => ("data", tensor.data.len(), tensor.strings.len()),
        };
        if other > 0 {
            return Some(format!(
                "{kind} {name:?} is {}: its values belong into {field:?}",
                spec.datatype.name()
            ));
        }
        let elements = tensor.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        if elements != Some(values as u64) {
            return Some(format!(
                "{kind} {name:?} has {values} values in {field:?}, which its shape {:?} does not",
                tensor.shape
            ));
        }
    }
    None
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
