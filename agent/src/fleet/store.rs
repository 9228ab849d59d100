//! Numbered records in sled, with the guards that sled 0.34 needs; for data that can be lost or made again.
//!
//! A damaged sled was measured to panic, or to open cleanly and empty; its flush is no fsync; its files grow.
//! So: records carry a version and a checksum, a small atomic file beside the store says how many there must
//! be at least, opening reads everything and happens under guard, what is damaged is set aside and an empty
//! store begins, flushes are followed by an fsync, and a file that has grown is exported and swapped.
//! Nothing that a device must not lose lives here.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use edgeward_models::Digest;
use edgeward_models::durable::{self, Access, DurableError, Generations, Stored};
use serde::{Deserialize, Serialize};
use tracing::{error, info};

/// The layout of a record.
const SCHEMA: u8 = 1;
const CHECKSUM_BYTES: usize = 8;
/// sled takes a gigabyte by default.
const CACHE_BYTES: u64 = 8 << 20;
/// A store smaller than this is not worth compacting.
const COMPACT_FLOOR_BYTES: u64 = 8 << 20;

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

/// An open store. Records are kept in the order of their keys.
pub struct Store {
    directory: PathBuf,
    /// Absent only when the swap of a compaction failed half-way.
    db: Option<sled::Db>,
    sentinel: Sentinel,
    /// Bytes of all values.
    bytes: u64,
}

/// What must be true of the store, kept outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sentinel {
    /// At least so many records are there.
    records: u64,
    /// The key of the next record: never used twice, even when all is lost.
    next_key: u64,
    /// Records that were discarded unsent, ever.
    dropped: u64,
}

/// A store and what had to be done to open it.
pub struct Opened {
    pub store: Store,
    /// Why the one that was there was set aside.
    pub damage: Option<String>,
}

impl Store {
    /// Opens or makes a store; blocks while it reads all records.
    pub fn open(directory: &Path) -> Result<Opened, StoreError> {
        durable::create_directory(directory)?;
        finish_swap(directory)?;
        let (sentinel, known) = read_sentinel(directory)?;
        let database = directory.join("db");
        let damage = match checked(&database, &sentinel) {
            Ok((db, bytes)) if known => {
                let mut store = Self {
                    directory: directory.to_owned(),
                    db: Some(db),
                    sentinel,
                    bytes,
                };
                store.raise_next_key();
                return Ok(Opened {
                    store,
                    damage: None,
                });
            }
            Ok((db, _)) => {
                drop(db);
                "the file that says what must be in it is damaged".to_owned()
            }
            Err(problem) => problem,
        };
        set_aside(directory, &database)?;
        let db = guarded(&database, || config(&database).open())?;
        let mut store = Self {
            directory: directory.to_owned(),
            db: Some(db),
            sentinel: Sentinel {
                records: 0,
                dropped: sentinel.dropped + sentinel.records,
                ..sentinel
            },
            bytes: 0,
        };
        store.write_sentinel()?;
        error!(path = %directory.display(), %damage, lost = sentinel.records, "store damaged; it was set aside and begins empty");
        Ok(Opened {
            store,
            damage: Some(damage),
        })
    }

    /// After a power cut the sentinel may be older than the newest records.
    fn raise_next_key(&mut self) {
        if let Ok(Some((key, _))) = self.guard(|db| db.last())
            && let Some(key) = key_of(&key)
        {
            self.sentinel.next_key = self.sentinel.next_key.max(key + 1);
        }
    }

    /// The key that the next record gets.
    pub fn next_key(&self) -> u64 {
        self.sentinel.next_key
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn dropped(&self) -> u64 {
        self.sentinel.dropped
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
        self.write_sentinel()?;
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
        self.write_sentinel()?;
        let mut freed = 0;
        self.guard(|db| {
            for key in keys {
                if let Some(record) = db.remove(key.to_be_bytes())? {
                    freed += record.len().saturating_sub(1 + CHECKSUM_BYTES) as u64;
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

    fn write_sentinel(&mut self) -> Result<(), StoreError> {
        // Plain numbers always encode.
        let bytes = serde_json::to_vec(&self.sentinel).unwrap_or_default();
        Ok(sentinel_file(&self.directory).write(&bytes, Access::Owner)?)
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
        let fresh = guarded(&next, || config(&next).open())?;
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
        self.db = Some(guarded(&database, || config(&database).open())?);
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

fn config(path: &Path) -> sled::Config {
    sled::Config::new()
        .path(path)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(CACHE_BYTES)
        // Flushed where it matters, by `sync`; a timer would wake flash for nothing.
        .flush_every_ms(None)
}

/// Opens a store and reads all of it. The error says what is wrong.
fn checked(path: &Path, sentinel: &Sentinel) -> Result<(sled::Db, u64), String> {
    let db = guarded(path, || config(path).open()).map_err(|e| super::board::chain(&e))?;
    let read = guarded(path, || {
        let (mut records, mut bytes) = (0u64, 0u64);
        for entry in db.iter() {
            let (key, record) = entry?;
            let (Some(_), Some(value)) = (key_of(&key), unsealed(&record)) else {
                return Err(damaged_record());
            };
            records += 1;
            bytes += value.len() as u64;
        }
        Ok((records, bytes))
    });
    let (records, bytes) = read.map_err(|e| super::board::chain(&e))?;
    if records < sentinel.records {
        return Err(format!(
            "{records} records are there, {} must be",
            sentinel.records
        ));
    }
    Ok((db, bytes))
}

fn sentinel_file(directory: &Path) -> Generations {
    Generations::new(directory.join("sentinel"))
}

/// The sentinel, and whether it is the newest one that was written.
fn read_sentinel(directory: &Path) -> Result<(Sentinel, bool), StoreError> {
    let fresh = Sentinel {
        records: 0,
        next_key: 1,
        dropped: 0,
    };
    Ok(match sentinel_file(directory).read()? {
        Stored::Absent => (fresh, true),
        Stored::Good(bytes) => match serde_json::from_slice(&bytes) {
            Ok(sentinel) => (sentinel, true),
            Err(_) => (fresh, false),
        },
        Stored::Damaged { before } => {
            let before = before.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            // Keys between the two generations may be in use: leave a gap.
            let before = before.map(|s: Sentinel| Sentinel {
                next_key: s.next_key + 1_000_000,
                ..s
            });
            (before.unwrap_or(fresh), false)
        }
    })
}

/// A crash during a swap leaves the old store under another name.
fn finish_swap(directory: &Path) -> Result<(), StoreError> {
    let (database, old) = (directory.join("db"), directory.join("old"));
    if old.exists() && !database.exists() {
        durable::rename(&old, &database)?;
    }
    durable::remove_directory(&old)?;
    Ok(durable::remove_directory(&directory.join("next"))?)
}

/// Keeps one damaged store for whoever wants to look into it.
fn set_aside(directory: &Path, database: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io {
        path: directory.to_owned(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(failed)?.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("quarantine-")
        {
            durable::remove_directory(&entry.path())?;
        }
    }
    if database.exists() {
        let name = format!("quarantine-{}", jiff::Timestamp::now().as_second());
        durable::rename(database, &directory.join(name))?;
    }
    Ok(())
}

fn key_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

fn damaged_record() -> sled::Error {
    sled::Error::Io(io::Error::other("a record does not have its checksum"))
}

fn sealed(value: &[u8]) -> Vec<u8> {
    let mut record = vec![SCHEMA];
    record.extend_from_slice(&Digest::of(value).as_bytes()[..CHECKSUM_BYTES]);
    record.extend_from_slice(value);
    record
}

fn unsealed(record: &[u8]) -> Option<&[u8]> {
    let (&schema, rest) = record.split_first()?;
    let (checksum, value) = rest.split_at_checked(CHECKSUM_BYTES)?;
    let good = schema == SCHEMA && Digest::of(value).as_bytes()[..CHECKSUM_BYTES] == *checksum;
    good.then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(directory: &Path, records: u64) {
        let mut store = Store::open(directory).expect("open").store;
        for number in 0..records {
            store.append(&[number as u8; 500]).expect("append");
        }
    }

    fn damage(directory: &Path, how: &str) {
        let path = directory.join("db/db");
        let mut bytes = fs::read(&path).expect("read");
        let length = bytes.len();
        match how {
            "truncate" => bytes.truncate(length / 2),
            "zero" => bytes[length / 4..].fill(0),
            "flip" => bytes
                .iter_mut()
                .skip(64)
                .step_by(97)
                .for_each(|b| *b ^= 0x55),
            "junk" => bytes.fill(0xa5),
            _ => panic!("unknown damage"),
        }
        fs::write(&path, bytes).expect("write");
        // The snapshot repeats part of the log.
        for entry in fs::read_dir(directory.join("db")).expect("read").flatten() {
            if entry.file_name().to_string_lossy().starts_with("snap") {
                fs::remove_file(entry.path()).expect("remove");
            }
        }
    }

    #[test]
    fn records_come_back_in_order_after_a_restart_and_numbers_are_never_used_twice() {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path(), 20);
        let mut store = Store::open(directory.path()).expect("open").store;
        let oldest = store.oldest(5, 1 << 20).expect("read");
        let keys: Vec<u64> = oldest.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [1, 2, 3, 4, 5]);
        assert_eq!(store.oldest(5, 1200).expect("read").len(), 2);
        assert_eq!(store.oldest(5, 1).expect("read").len(), 1, "at least one");
        let all: Vec<u64> = (1..=20).collect();
        store.remove(&all, false).expect("remove");
        assert_eq!(store.bytes(), 0);
        drop(store);
        let mut store = Store::open(directory.path()).expect("open").store;
        assert_eq!(store.append(b"x").expect("append"), 21);
        assert_eq!(store.dropped(), 0);
    }

    #[test]
    fn every_kind_of_damage_leads_to_an_empty_store_and_a_count_of_what_was_lost() {
        for how in ["truncate", "zero", "flip", "junk"] {
            let directory = tempfile::tempdir().expect("tempdir");
            filled(directory.path(), 200);
            damage(directory.path(), how);
            let Opened { mut store, damage } = Store::open(directory.path()).expect(how);
            assert!(damage.is_some(), "{how} went unnoticed");
            assert_eq!(store.bytes(), 0, "{how}");
            assert_eq!(store.dropped(), 200, "{how}");
            assert_eq!(store.append(b"goes on").expect("append"), 201, "{how}");
            let kept = fs::read_dir(directory.path()).expect("read").flatten();
            let kept = kept.filter(|e| e.file_name().to_string_lossy().starts_with("quarantine-"));
            assert_eq!(kept.count(), 1, "{how}");
        }
    }

    #[test]
    fn a_store_whose_files_were_deleted_is_noticed() {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path(), 3);
        fs::remove_dir_all(directory.path().join("db")).expect("remove");
        let opened = Store::open(directory.path()).expect("open");
        assert!(opened.damage.is_some());
        assert_eq!(opened.store.dropped(), 3);
    }

    #[test]
    fn a_crash_in_the_middle_of_a_swap_loses_nothing() {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path(), 3);
        fs::rename(directory.path().join("db"), directory.path().join("old")).expect("rename");
        fs::create_dir(directory.path().join("next")).expect("mkdir");
        let opened = Store::open(directory.path()).expect("open");
        assert_eq!(opened.damage, None);
        assert_eq!(opened.store.oldest(9, 1 << 20).expect("read").len(), 3);
    }

    #[test]
    fn a_store_that_only_passes_records_on_does_not_grow_without_bound() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut store = Store::open(directory.path()).expect("open").store;
        let value = vec![7; 256 * 1024];
        for _ in 0..60 {
            let key = store.append(&value).expect("append");
            store.remove(&[key], false).expect("remove");
        }
        let size = store.guard(|db| db.size_on_disk()).expect("size");
        assert!(size < 2 * COMPACT_FLOOR_BYTES, "{size} bytes");
        drop(store);
        assert_eq!(Store::open(directory.path()).expect("open").damage, None);
    }
}
