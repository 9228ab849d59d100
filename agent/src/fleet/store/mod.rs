//! Numbered records in sled, with the guards that sled 0.34 needs; for data that can be lost or made again.
//!
//! A damaged sled was measured to panic, or to open cleanly and empty; its flush is no fsync; its files grow.
//! So: records carry a version and a checksum (`record`), a small atomic file beside the store says how many
//! there must be at least (`sentinel`), opening reads everything and happens under guard, what is damaged is
//! set aside and an empty store begins (`opening`), flushes are followed by an fsync, and a file that has
//! grown is exported and swapped. Nothing that a device must not lose lives here.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edgeward_models::durable::{self, DurableError};
use tracing::info;

use record::{damaged_record, key_of, sealed, unsealed};
use sentinel::Sentinel;

mod opening;
mod record;
mod sentinel;
#[cfg(test)]
mod tests;

/// sled takes a gigabyte by default.
const CACHE_BYTES: u64 = 8 << 20;
/// A store smaller than this is not worth compacting.
const COMPACT_FLOOR_BYTES: u64 = 8 << 20;
/// For a lock that is about to be let go, and between two looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store {path} failed")]
    Sled {
        path: PathBuf,
        #[source]
        source: sled::Error,
    },
    #[error("the store {0} failed in a way it should not (a panic inside it)")]
    Panic(PathBuf),
    #[error("cannot move or sync the store {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl StoreError {
    /// Whether another process has it open; then nothing is wrong with what is in it. sled says so in words only.
    fn is_locked(&self) -> bool {
        matches!(self, Self::Sled { source: sled::Error::Io(e), .. }
            if e.to_string().starts_with("could not acquire lock"))
    }
}

/// An open store. Records are kept in the order of their keys.
pub struct Store {
    directory: PathBuf,
    /// Absent only when the swap of a compaction failed half-way.
    db: Option<sled::Db>,
    sentinel: Sentinel,
    /// Bytes of all values.
    bytes: u64,
}

/// A store and what had to be done to open it.
pub struct Opened {
    pub store: Store,
    /// Why the one that was there was set aside.
    pub damage: Option<String>,
}

impl Store {
    /// The key that the next record gets.
    pub fn next_key(&self) -> u64 {
        self.sentinel.next_key
    }

    pub fn records(&self) -> u64 {
        self.sentinel.records
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn dropped(&self) -> u64 {
        self.sentinel.dropped
    }

    /// Counts records that could not even be kept.
    pub fn count_dropped(&mut self, records: u64) -> Result<(), StoreError> {
        self.sentinel.dropped += records;
        self.sentinel.write(&self.directory)
    }

    /// Appends and makes durable.
    pub fn append(&mut self, value: &[u8]) -> Result<u64, StoreError> {
        let key = self.sentinel.next_key;
        let record = sealed(value);
        self.guard(|db| db.insert(key.to_be_bytes(), record).map(drop))?;
        self.sync()?;
        self.bytes += value.len() as u64;
        self.sentinel.next_key += 1;
        self.sentinel.records += 1;
        self.sentinel.write(&self.directory)?;
        Ok(key)
    }

    /// The oldest records, up to a number and a sum of bytes, but at least one.
    pub fn oldest(&self, records: usize, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.guard(|db| {
            let mut all = Vec::new();
            let mut sum = 0;
            for entry in db.iter().take(records) {
                let (key, record) = entry?;
                let (Some(key), Some(value)) = (key_of(&key), unsealed(&record)) else {
                    return Err(damaged_record());
                };
                sum += value.len();
                if sum > bytes && !all.is_empty() {
                    break;
                }
                all.push((key, value.to_vec()));
            }
            Ok(all)
        })
    }

    /// Removes records that have arrived elsewhere, or (`dropped`) that there is no room for.
    pub fn remove(&mut self, keys: &[u64], dropped: bool) -> Result<(), StoreError> {
        // The sentinel first: it says "at least", which must be true at every instant.
        self.sentinel.records = self.sentinel.records.saturating_sub(keys.len() as u64);
        if dropped {
            self.sentinel.dropped += keys.len() as u64;
        }
        self.sentinel.write(&self.directory)?;
        let mut freed = 0;
        self.guard(|db| {
            for key in keys {
                if let Some(record) = db.remove(key.to_be_bytes())? {
                    freed += record::value_bytes(&record);
                }
            }
            Ok(())
        })?;
        self.bytes = self.bytes.saturating_sub(freed);
        self.sync()?;
        self.compact_if_grown()
    }

    /// sled's flush hands the bytes to the kernel; only an fsync hands them to the disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.guard(|db| db.flush().map(drop))?;
        fsync(&self.directory.join("db").join("db"))
    }

    /// sled does not give space back: what lives is exported into a new store, which takes the old one's name.
    fn compact_if_grown(&mut self) -> Result<(), StoreError> {
        let size = self.guard(|db| db.size_on_disk())?;
        if size < COMPACT_FLOOR_BYTES || size < 4 * self.bytes {
            return Ok(());
        }
        let (database, next, old) = (
            self.directory.join("db"),
            self.directory.join("next"),
            self.directory.join("old"),
        );
        durable::remove_directory(&next)?;
        let fresh = open_database(&next)?;
        self.guard(|db| {
            for entry in db.iter() {
                let (key, record) = entry?;
                fresh.insert(key, record)?;
            }
            fresh.flush().map(drop)
        })?;
        fsync(&next.join("db"))?;
        // An open sled writes to the path it was opened at, so both are closed before they are renamed.
        guarded(&next, || {
            drop(fresh);
            drop(self.db.take());
            Ok(())
        })?;
        durable::rename(&database, &old)?;
        durable::rename(&next, &database)?;
        self.db = Some(open_database(&database)?);
        durable::remove_directory(&old)?;
        info!(path = %self.directory.display(), before = size, live = self.bytes, "store compacted");
        Ok(())
    }

    fn guard<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, StoreError> {
        guarded(&self.directory, || match &self.db {
            Some(db) => work(db),
            None => Err(sled::Error::Io(io::Error::other(
                "it was closed by a compaction that failed; the next start opens it again",
            ))),
        })
    }
}

fn guarded<T>(path: &Path, work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| StoreError::Panic(path.to_owned()))?
        .map_err(|source| StoreError::Sled {
            path: path.to_owned(),
            source,
        })
}

fn fsync(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| StoreError::Io {
            path: path.to_owned(),
            source,
        })
}

/// Opens a database. One that is locked is waited for: a process that this one is just starting holds a copy of
/// the lock of a database that was closed meanwhile, until it has become another program.
fn open_database(path: &Path) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new()
        .path(path)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(CACHE_BYTES)
        // Flushed where it matters, by `sync`; a timer would wake flash for nothing.
        .flush_every_ms(None);
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match guarded(path, || config.open()) {
            Err(error) if error.is_locked() && Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}
