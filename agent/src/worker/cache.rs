//! A directory in which a driver keeps what it compiled for one model.
//!
//! `serving::driver_caches` makes and chooses it, the sandbox lets the driver write there and nowhere else, and a
//! worker whose driver writes more than its share is ended. What lies in it is the driver's: it is measured here
//! and never read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a running worker's directory is measured.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a file costs the disk at least, its name included.
const LEAST_BYTES: u64 = 4096;
/// What options say where the path of the directory belongs.
pub const PLACEHOLDER: &str = "{cache}";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverCache {
    /// An absolute path.
    pub directory: PathBuf,
    /// All files together.
    pub max_bytes: u64,
}

impl DriverCache {
    /// Nothing was kept, or it cannot be looked at.
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// What it takes of the disk.
    pub fn bytes(&self) -> u64 {
        measure(&self.directory)
    }

    /// Resolves when it is larger than it may be, with the reason why its worker is ended.
    pub(super) async fn outgrown(self, look_every: Duration) -> String {
        loop {
            tokio::time::sleep(look_every).await;
            if let Some(reason) = self.excess().await {
                return reason;
            }
        }
    }

    /// What is wrong, if it is larger than it may be.
    pub async fn excess(&self) -> Option<String> {
        let cache = self.clone();
        let bytes = tokio::task::spawn_blocking(move || cache.bytes()).await;
        let bytes = bytes.ok().filter(|bytes| *bytes > self.max_bytes)?;
        Some(format!(
            "its driver keeps {bytes} bytes where {} are allowed: raise max_bytes of its cache, or make room on \
             the disk",
            self.max_bytes
        ))
    }
}

/// Symbolic links are not followed: a driver can make none, and what others lead to is not its cache.
fn measure(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => LEAST_BYTES + measure(&entry.path()),
        Ok(found) => (found.blocks() * 512).max(LEAST_BYTES),
        Err(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_as_what_they_take_and_many_small_ones_too() {
        let directory = tempfile::tempdir().expect("directory");
        let cache = DriverCache {
            directory: directory.path().join("cache"),
            max_bytes: 1,
        };
        assert!(cache.is_empty(), "it is not there");
        fs::create_dir_all(cache.directory.join("deep")).expect("make");
        fs::write(cache.directory.join("deep/a"), [7; 100_000]).expect("write");
        assert!((100_000..200_000).contains(&cache.bytes()));
        for number in 0..100 {
            fs::write(cache.directory.join(number.to_string()), []).expect("write");
        }
        assert!(cache.bytes() >= 100 * LEAST_BYTES + 100_000);
    }

    #[tokio::test]
    async fn a_directory_that_outgrows_its_share_is_noticed() {
        let directory = tempfile::tempdir().expect("directory");
        let cache = DriverCache {
            directory: directory.path().to_owned(),
            max_bytes: 50_000,
        };
        let outgrown = || cache.clone().outgrown(Duration::from_millis(1));
        fs::write(cache.directory.join("a"), [7; 40_000]).expect("write");
        let while_it_fits = tokio::time::timeout(Duration::from_millis(200), outgrown());
        assert!(while_it_fits.await.is_err());
        fs::write(cache.directory.join("b"), [7; 40_000]).expect("write");
        assert!(outgrown().await.contains("where 50000 are allowed"));
    }
}
