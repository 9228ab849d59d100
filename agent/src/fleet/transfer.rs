//! Fetching what a version is made of, chunk by chunk, and putting it together.
//!
//! A chunk that arrived stays in the cache until its version is installed, so an interrupted fetch goes on
//! where it stopped, after a restart of the agent too. Everything that comes back from the cache is checked
//! against its digest like everything that comes from outside; the cache is never trusted.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeward_models::chunk::{ChunkError, ChunkRef, Source, open_chunk, pack_target};
use edgeward_models::durable::{self, Access, DurableError, lossy};
use edgeward_models::name::FileName;
use edgeward_models::verify::{TargetInfo, VerifiedRepository, VerifyError};
use edgeward_models::{Digest, ModelName, Version};
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use tracing::warn;

/// Chunks asked for at once; the source's own window in bytes is usually narrower.
const CONCURRENT_CHUNKS: usize = 16;
/// After so many chunks that are not there a carrier is taken to be empty: finding each absent takes time.
const MISSING_CHUNKS: usize = 16;
/// A larger installed file is not searched for shared chunks: it is held in memory for that.
const MAX_REUSED_BYTES: u64 = 64 << 20;
/// A compressed chunk may be this much larger than what it holds (zstd's frame around incompressible bytes).
const CHUNK_OVERHEAD: u64 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("the signed repository names no files of {model} {version}")]
    Unknown { model: ModelName, version: Version },
    #[error(
        "{needed} bytes are needed on the device's disk and {free} are free, of which {reserve} stay reserved; \
         make room there"
    )]
    NoSpace {
        needed: u64,
        free: u64,
        reserve: u64,
    },
    #[error("{file} does not have the digest that was signed")]
    Digest { file: String },
    #[error("target {0} does not end in a file name")]
    Name(String),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error("the task that assembles files ended early")]
    Aborted,
}

/// Fetched chunks, compressed as they travelled.
#[derive(Debug, Clone)]
pub struct ChunkCache {
    directory: PathBuf,
}

impl ChunkCache {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.to_hex())
    }

    /// A chunk's content, if it is here and whole.
    pub fn get(&self, chunk: &ChunkRef) -> Option<Vec<u8>> {
        let limit = u64::from(chunk.length) + CHUNK_OVERHEAD;
        let compressed = durable::read(&self.path(&chunk.sha256), limit).ok()??;
        open_chunk(chunk, &compressed).ok()
    }

    /// Keeps a chunk. After a power cut it is whole or fetched again.
    fn put(&self, digest: &Digest, compressed: &[u8]) -> Result<(), DurableError> {
        lossy::write(&self.path(digest), compressed)
    }

    /// Forgets the chunks of an installed version.
    pub fn forget<'a>(&self, chunks: impl IntoIterator<Item = &'a ChunkRef>) {
        for chunk in chunks {
            lossy::remove(&self.path(&chunk.sha256));
        }
    }

    /// Forgets everything (no installation is under way).
    pub fn clear(&self) {
        lossy::clear(&self.directory);
    }
}

/// The files of one version, as signed, with the chunks each is made of.
#[derive(Debug)]
pub struct Parts {
    pub files: Vec<(FileName, TargetInfo, Vec<ChunkRef>)>,
}

impl Parts {
    /// Reads the chunk lists of all files.
    pub async fn list(
        repository: &VerifiedRepository,
        source: &dyn Source,
        model: &ModelName,
        version: &Version,
    ) -> Result<Self, TransferError> {
        let targets = repository.version_targets(model, version);
        if targets.is_empty() {
            return Err(TransferError::Unknown {
                model: model.clone(),
                version: version.clone(),
            });
        }
        let mut files = Vec::new();
        for target in targets {
            let name = target.name.rsplit('/').next().unwrap_or_default();
            let name = name
                .parse()
                .map_err(|_| TransferError::Name(target.name.clone()))?;
            let chunks = repository.chunks(source, target).await?;
            files.push((name, target.clone(), chunks));
        }
        Ok(Self { files })
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, target, _)| target.length).sum()
    }

    pub fn chunks(&self) -> impl Iterator<Item = &ChunkRef> {
        self.files.iter().flat_map(|(_, _, chunks)| chunks)
    }

    /// The bytes of disk that an installation takes at its height: what is fetched lies there twice until it is
    /// installed, as chunks and as files.
    pub async fn needs(self: Arc<Self>, cache: ChunkCache) -> Result<u64, TransferError> {
        let missing = self.clone().look_for_missing(cache).await?;
        let missing = missing.iter().map(|c| u64::from(c.length));
        Ok(self.bytes() + missing.sum::<u64>())
    }

    /// Reads and hashes all that is cached, so not on this thread, which also keeps the connection to the broker.
    async fn look_for_missing(
        self: Arc<Self>,
        cache: ChunkCache,
    ) -> Result<Vec<ChunkRef>, TransferError> {
        let missing = tokio::task::spawn_blocking(move || self.missing(&cache));
        missing.await.map_err(|_| TransferError::Aborted)
    }

    fn missing(&self, cache: &ChunkCache) -> Vec<ChunkRef> {
        let mut seen = HashSet::new();
        self.chunks()
            .filter(|chunk| seen.insert(chunk.sha256) && cache.get(chunk).is_none())
            .copied()
            .collect()
    }

    /// Puts into the cache what versions on this device share with this one, so that it is not fetched.
    pub async fn reuse(self: Arc<Self>, cache: ChunkCache, versions: Vec<PathBuf>) {
        let reused = tokio::task::spawn_blocking(move || {
            let missing = self.missing(&cache);
            let mut missing: HashSet<Digest> = missing.iter().map(|c| c.sha256).collect();
            let directories = versions.iter().flat_map(fs::read_dir).flatten();
            for entry in directories.flatten() {
                if !missing.is_empty() {
                    reuse_file(&cache, &entry.path(), &mut missing);
                }
            }
        });
        if let Err(problem) = reused.await {
            // Then it is fetched.
            warn!(%problem, "looking for chunks of installed versions failed");
        }
    }

    /// Fetches what the cache lacks. `progress` hears (bytes here, bytes of all). Returns the bytes fetched.
    pub async fn fetch(
        self: Arc<Self>,
        source: &dyn Source,
        cache: &ChunkCache,
        progress: impl Fn(u64, u64),
    ) -> Result<u64, TransferError> {
        let of = self.bytes();
        let missing = self.clone().look_for_missing(cache.clone()).await?;
        let lacking: u64 = missing.iter().map(|c| u64::from(c.length)).sum();
        let mut have = of.saturating_sub(lacking);
        progress(have, of);
        let mut arrivals = futures::stream::iter(missing)
            .map(|chunk| async move { (chunk, fetch_chunk(source, cache, chunk).await) })
            .buffer_unordered(CONCURRENT_CHUNKS);
        let (mut fetched, mut absent) = (0, Vec::new());
        while let Some((chunk, arrived)) = arrivals.next().await {
            match arrived {
                Ok(travelled) => {
                    fetched += travelled;
                    have += u64::from(chunk.length);
                    progress(have, of);
                }
                // The others may be there, and what is here need not be asked for again.
                Err(TransferError::Chunk(ChunkError::Missing(digest)))
                    if absent.len() < MISSING_CHUNKS =>
                {
                    absent.push(digest);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(digest) = absent.first() {
            return Err(ChunkError::Missing(*digest).into());
        }
        Ok(fetched)
    }

    /// Writes all files into `directory` from the cache, read-only and fsynced, each with its signed digest.
    pub async fn assemble(
        self: Arc<Self>,
        cache: ChunkCache,
        directory: PathBuf,
    ) -> Result<(), TransferError> {
        // Hashing and fsync of large files would hold up everything else on this thread.
        tokio::task::spawn_blocking(move || {
            durable::remove_directory(&directory)?;
            durable::create_directory(&directory)?;
            for (name, target, chunks) in &self.files {
                assemble_file(&cache, &directory.join(name.as_str()), target, chunks)?;
            }
            Ok(durable::sync_directory(&directory)?)
        })
        .await
        .map_err(|_| TransferError::Aborted)?
    }
}

/// The same bytes are always cut in the same places.
fn reuse_file(cache: &ChunkCache, path: &Path, missing: &mut HashSet<Digest>) {
    let Ok(Some(bytes)) = durable::read(path, MAX_REUSED_BYTES) else {
        return;
    };
    let Ok(packed) = pack_target(&bytes) else {
        return;
    };
    for (digest, compressed) in packed.chunks {
        if missing.contains(&digest) && cache.put(&digest, &compressed).is_ok() {
            missing.remove(&digest);
        }
    }
}

/// Fetches a chunk into the cache; the bytes that travelled.
async fn fetch_chunk(
    source: &dyn Source,
    cache: &ChunkCache,
    chunk: ChunkRef,
) -> Result<u64, TransferError> {
    let compressed = source.chunk(&chunk.sha256).await;
    let compressed = compressed.map_err(ChunkError::from)?;
    let compressed = compressed.ok_or(ChunkError::Missing(chunk.sha256))?;
    let cache = cache.clone();
    // Decompressed, hashed and written elsewhere: a large model must not starve the connection it comes over.
    let kept = tokio::task::spawn_blocking(move || {
        open_chunk(&chunk, &compressed)?;
        cache.put(&chunk.sha256, &compressed)?;
        Ok(compressed.len() as u64)
    });
    kept.await.map_err(|_| TransferError::Aborted)?
}

fn assemble_file(
    cache: &ChunkCache,
    path: &Path,
    target: &TargetInfo,
    chunks: &[ChunkRef],
) -> Result<(), TransferError> {
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut absent = None;
    let written = durable::write_new_with(path, Access::ReadOnly, |file| {
        for chunk in chunks {
            let Some(content) = cache.get(chunk) else {
                absent = Some(chunk.sha256);
                return Err(io::Error::other("a chunk is gone from the cache"));
            };
            hasher.update(&content);
            length += content.len() as u64;
            file.write_all(&content)?;
        }
        Ok(())
    });
    if let Some(digest) = absent {
        return Err(ChunkError::Missing(digest).into());
    }
    written?;
    let digest = Digest::from_bytes(hasher.finalize().into());
    if digest != target.sha256 || length != target.length {
        return Err(TransferError::Digest {
            file: target.name.clone(),
        });
    }
    Ok(())
}
