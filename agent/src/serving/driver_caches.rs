//! Where drivers keep what they compiled, so that the next start need not compile again.
//!
//! ```text
//! delegate-caches/{delegate}/{digest of the model file}-{digest of library and options}/
//! ```
//! A cache belongs to one model on one delegate, lives as long as a version with that model is installed, and is
//! worth nothing more than time: it is emptied whenever a driver failed with it. A driver that was updated, or is
//! given other options, begins with an empty one. `proof` opens them, the reconciler lets go of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use edgeward_models::Digest;
use edgeward_models::durable::{self, DurableError, lossy};
use edgeward_models::manifest::{DelegateChoice, Manifest};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::config::{Config, DelegateCache, DelegateProfile, Fleet};
use crate::worker::{DriverCache, delegate_options};

/// Less room than this is none.
const LEAST_ROOM: u64 = 64 << 10;
/// Digits of the second digest.
const SHORT: usize = 16;

/// The cache of a model on a delegate, if its driver keeps one. The error says why there cannot be one.
pub(super) async fn open(
    config: &Config,
    choice: &DelegateChoice,
    manifest: &Manifest,
) -> Result<Option<DriverCache>, String> {
    let Some(profile) = config.delegates.get(&choice.delegate) else {
        return Ok(None);
    };
    let (Some(limits), Some(file)) = (&profile.cache, manifest.files.get(&manifest.model_file))
    else {
        return Ok(None);
    };
    let (config, choice, profile) = (config.clone(), choice.clone(), profile.clone());
    let (limits, model) = (limits.clone(), file.sha256);
    // A slow disk must not hold up requests.
    spawn_blocking(move || make(&config, &choice, &profile, &limits, &model))
        .await
        .map_err(|error| error.to_string())?
        .map(Some)
}

fn make(
    config: &Config,
    choice: &DelegateChoice,
    profile: &DelegateProfile,
    limits: &DelegateCache,
    model: &Digest,
) -> Result<DriverCache, String> {
    let parent = std::path::absolute(root(config).join(choice.delegate.as_str()))
        .map_err(|error| format!("the place of what its driver compiles: {error}"))?;
    let compiled_with = compiled_with(profile, &delegate_options(choice, Some(profile)));
    let name = format!("{model}-{}", &compiled_with.to_hex()[..SHORT]);
    // What another build of the driver compiled for this model is of no use any more.
    for (other, path) in entries(&parent) {
        if other != name && other.starts_with(&model.to_hex()) {
            lossy::remove_directory(&path);
        }
    }
    let cache = DriverCache {
        directory: parent.join(name),
        max_bytes: limits.max_bytes,
    };
    durable::create_directory(&cache.directory).map_err(|error| {
        format!(
            "no directory for what its driver compiles: {}",
            words(&error)
        )
    })?;
    let mut kept = cache.bytes();
    if kept > limits.max_bytes {
        empty(&cache)?;
        kept = 0;
    }
    let reserve = config.fleet.as_ref().map_or_else(
        || Fleet::default().disk_reserve_bytes,
        |fleet| fleet.disk_reserve_bytes,
    );
    let room = kept.saturating_add(free_bytes(&cache.directory).saturating_sub(reserve));
    if room < LEAST_ROOM {
        return Err(format!(
            "the disk has no room for what its driver compiles beside the reserve of {reserve} bytes"
        ));
    }
    let max_bytes = limits.max_bytes.min(room);
    Ok(DriverCache { max_bytes, ..cache })
}

/// Throws away what was kept.
pub(super) async fn clear(cache: &DriverCache) -> Result<(), String> {
    let cache = cache.clone();
    let cleared = spawn_blocking(move || empty(&cache)).await;
    cleared.map_err(|error| error.to_string())?
}

fn empty(cache: &DriverCache) -> Result<(), String> {
    lossy::fresh_directory(&cache.directory)
        .map_err(|error| format!("what its driver kept cannot be removed: {}", words(&error)))
}

/// Lets go of the caches of models that no installed version has.
pub fn collect_garbage(config: &Config, installed: impl FnOnce() -> BTreeSet<Digest>) {
    let delegates = entries(&root(config));
    if delegates.is_empty() {
        return;
    }
    let models = installed();
    for (delegate, directory) in delegates {
        let is_known = |name: &str| models.iter().any(|model| name.starts_with(&model.to_hex()));
        let here = config
            .delegates
            .keys()
            .any(|known| known.as_str() == delegate);
        for (name, path) in entries(&directory) {
            if !here || !is_known(&name) {
                lossy::remove_directory(&path);
            }
        }
    }
}

fn root(config: &Config) -> PathBuf {
    config.state_directory.join("delegate-caches")
}

/// What the cache is good for besides the model: this build of the driver with these options.
fn compiled_with(profile: &DelegateProfile, options: &BTreeMap<String, String>) -> Digest {
    let stamp = fs::metadata(&profile.library)
        .map(|found| (found.size(), found.mtime(), found.mtime_nsec()));
    let described = format!("{:?} {:?} {options:?}", profile.library, stamp.ok());
    Digest::of(described.as_bytes())
}

/// Names and paths; none where there is no such directory.
fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

fn words(error: &DurableError) -> String {
    format!("{error}: {}", error.source)
}

fn free_bytes(directory: &Path) -> u64 {
    match rustix::fs::statvfs(directory) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            warn!(directory = %directory.display(), %error, "the disk's free space cannot be read");
            0
        }
    }
}
