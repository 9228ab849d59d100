//! What must be true of the store, in a small atomic file outside of it.

use std::path::Path;

use edgeward_models::durable::{Access, Generations, Stored};
use serde::{Deserialize, Serialize};

use super::StoreError;

/// What must be true of the store, kept outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sentinel {
    /// At least so many records are there.
    pub(super) records: u64,
    /// The key of the next record: never used twice, even when all is lost.
    pub(super) next_key: u64,
    /// Records that were discarded unsent, ever.
    pub(super) dropped: u64,
}

impl Sentinel {
    pub(super) fn write(&self, directory: &Path) -> Result<(), StoreError> {
        Ok(sentinel_file(directory).write_json(self, Access::Owner)?)
    }
}

fn sentinel_file(directory: &Path) -> Generations {
    Generations::new(directory.join("sentinel"))
}

/// The sentinel, and whether it is the newest one that was written.
pub(super) fn read_sentinel(directory: &Path) -> Result<(Sentinel, bool), StoreError> {
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
