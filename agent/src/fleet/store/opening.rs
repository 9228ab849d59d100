//! Opening a store: a swap that a crash split is finished, everything is read, what is damaged is set aside.

use std::fs;
use std::path::Path;

use edgeward_models::durable;
use tracing::error;

use super::record::{damaged_record, key_of, unsealed};
use super::sentinel::{Sentinel, read_sentinel};
use super::{Opened, Store, StoreError, guarded, open_database};
use crate::fleet::board::chain;

impl Store {
    /// Opens or makes a store; blocks while it reads all records.
    pub fn open(directory: &Path) -> Result<Opened, StoreError> {
        durable::create_directory(directory)?;
        finish_swap(directory)?;
        let (sentinel, known) = read_sentinel(directory)?;
        let database = directory.join("db");
        let damage = match read_through(&database) {
            Err(problem) if problem.is_locked() => return Err(problem),
            Err(problem) => chain(&problem),
            Ok((_, Contents { records, .. })) if records < sentinel.records => {
                format!("{records} records are there, {} must be", sentinel.records)
            }
            Ok((db, Contents { bytes, .. })) if known => {
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
        };
        set_aside(directory, &database)?;
        let db = open_database(&database)?;
        let store = Self {
            directory: directory.to_owned(),
            db: Some(db),
            sentinel: Sentinel {
                records: 0,
                dropped: sentinel.dropped + sentinel.records,
                ..sentinel
            },
            bytes: 0,
        };
        store.sentinel.write(directory)?;
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
}

/// What stands in a store.
struct Contents {
    records: u64,
    bytes: u64,
}

/// Opens a store and reads all of it.
fn read_through(path: &Path) -> Result<(sled::Db, Contents), StoreError> {
    let db = open_database(path)?;
    let contents = guarded(path, || {
        let (mut records, mut bytes) = (0, 0);
        for entry in db.iter() {
            let (key, record) = entry?;
            let (Some(_), Some(value)) = (key_of(&key), unsealed(&record)) else {
                return Err(damaged_record());
            };
            records += 1;
            bytes += value.len() as u64;
        }
        Ok(Contents { records, bytes })
    })?;
    Ok((db, contents))
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
