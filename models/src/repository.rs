//! The signed tree on disk.
//!
//! ```text
//! metadata/  1.root.json 2.root.json … timestamp.json N.snapshot.json N.targets.json N.releases.json N.rollouts.json
//! chunks/    {first two hex digits}/{sha256}     zstd; every target is stored as its chunks, nothing else
//! ```
//!
//! The same tree is what `fleetctl export` writes to a USB stick and `edgeward import` reads. Metadata lies there
//! as plain TUF files; those over one chunk have their pieces below `chunks/` as well, for carriers that know
//! nothing but chunks.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::chunk::{MAX_CHUNK_BYTES, Source, SourceError, pack_metadata};
use crate::digest::Digest;
use crate::name::FileName;

/// Below the repository: metadata files.
pub const METADATA_DIRECTORY: &str = "metadata";
/// Below the repository: chunks, in a directory per first byte.
pub const CHUNKS_DIRECTORY: &str = "chunks";
/// No metadata file of any role is larger.
pub const MAX_METADATA_BYTES: u64 = 8 * 1024 * 1024;

/// A repository directory as a [`Source`]. Reads through a directory handle, never follows symbolic links.
#[derive(Debug)]
pub struct DirectorySource {
    directory: Arc<OwnedFd>,
    /// Pieces of the metadata files read so far: cut here, and perhaps otherwise than by the program that wrote
    /// the tree.
    pieces: Mutex<BTreeMap<Digest, Bytes>>,
}

impl DirectorySource {
    pub fn open(directory: &Path) -> Result<Self, SourceError> {
        // The operator names this directory, so its own path may go through links; nothing below it may.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty())
            .map_err(|e| failed(format!("the directory {}", directory.display()), e))?;
        Self::from_fd(opened)
    }

    /// From a directory descriptor that another process opened (`edgeward import`).
    pub fn from_fd(directory: OwnedFd) -> Result<Self, SourceError> {
        let what = || "the repository directory that was handed over".to_owned();
        let status = rustix::fs::fstat(&directory).map_err(|e| failed(what(), e))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
            return Err(failed(what(), Errno::NOTDIR));
        }
        Ok(Self {
            directory: Arc::new(directory),
            pieces: Mutex::default(),
        })
    }

    fn pieces(&self) -> MutexGuard<'_, BTreeMap<Digest, Bytes>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, path: PathBuf, limit: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let directory = Arc::clone(&self.directory);
        let what = path.display().to_string();
        // A worn USB stick can take seconds for a read: not on a thread that answers requests.
        tokio::task::spawn_blocking(move || read_below(directory.as_fd(), &path, limit))
            .await
            .map_err(|e| failed(what, e))?
    }
}

#[async_trait]
impl Source for DirectorySource {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        let path = Path::new(METADATA_DIRECTORY).join(file.as_str());
        let Some(bytes) = self.read(path, MAX_METADATA_BYTES).await? else {
            return Ok(None);
        };
        let packed = pack_metadata(&bytes).map_err(|e| failed(file.to_string(), e))?;
        let pieces = packed
            .chunks
            .into_iter()
            .map(|(d, bytes)| (d, Bytes::from(bytes)));
        self.pieces().extend(pieces);
        Ok(Some(packed.head.into()))
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        if let Some(piece) = self.pieces().get(digest) {
            return Ok(Some(piece.clone()));
        }
        let bytes = self
            .read(chunk_path(digest), MAX_CHUNK_BYTES as u64)
            .await?;
        Ok(bytes.map(Bytes::from))
    }
}

/// Where a chunk lies below the repository.
pub fn chunk_path(digest: &Digest) -> PathBuf {
    let hex = digest.to_hex();
    Path::new(CHUNKS_DIRECTORY).join(&hex[..2]).join(hex)
}

fn failed(
    what: String,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SourceError {
    SourceError {
        what,
        source: source.into(),
    }
}

/// Opens one path component after the other, so that no link in the middle is followed either.
fn read_below(
    directory: std::os::fd::BorrowedFd<'_>,
    path: &Path,
    limit: u64,
) -> Result<Option<Vec<u8>>, SourceError> {
    let name = || path.display().to_string();
    let parent = path.parent().unwrap_or(Path::new(""));
    let mut opened: Option<OwnedFd> = None;
    let steps = parent.components().map(|part| (part, OFlags::DIRECTORY));
    // A pipe or device under a repository name must not block the reader before it is refused.
    let last = path
        .components()
        .next_back()
        .map(|part| (part, OFlags::NONBLOCK));
    for (part, kind) in steps.chain(last) {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
        let at = opened.as_ref().map_or(directory, |fd| fd.as_fd());
        match rustix::fs::openat(at, part.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => opened = Some(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(failed(name(), "it is a symbolic link")),
            Err(e) => return Err(failed(name(), e)),
        }
    }
    let Some(fd) = opened else {
        return Ok(None);
    };
    let status = rustix::fs::fstat(&fd).map_err(|e| failed(name(), e))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(failed(name(), "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(fd)
        .take(limit + 1)
        .read_to_end(&mut bytes);
    read.map_err(|e| failed(name(), e))?;
    if bytes.len() as u64 > limit {
        let problem = format!("it is larger than the {limit} bytes allowed");
        return Err(failed(name(), problem));
    }
    Ok(Some(bytes))
}
