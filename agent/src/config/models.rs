//! How this device serves single models: the site's part, beside what the manifest says for every device.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The settings of one model, whatever its version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// Unloaded when nobody has asked for it for so long; the next request loads it again. Absent: never for that.
    pub idle_unload_after_seconds: Option<u64>,
    /// Never unloaded to make room for another model.
    pub pinned: bool,
    /// Interpreters that answer in parallel: so many always, and up to so many while requests wait for one. Absent: what
    /// the manifest says.
    pub min_instances: Option<u32>,
    pub max_instances: Option<u32>,
    /// Of each interpreter. Absent: what the manifest says.
    pub threads: Option<u32>,
    /// Absent: every request is run by itself.
    pub batching: Option<Batching>,
}

/// How requests that wait for the same interpreter are joined into one invoke. Sizes are of the first dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    pub max_batch_size: u32,
    /// How long a batch may be held back for more requests, from the arrival of its first, while others are on
    /// their way.
    #[serde(default)]
    pub max_delay_us: u64,
    /// Larger batches are cut to the largest of these; at one of them nothing is waited for.
    #[serde(default)]
    pub preferred_sizes: Vec<u32>,
}

impl ModelSettings {
    pub fn idle_limit(&self) -> Option<Duration> {
        self.idle_unload_after_seconds.map(Duration::from_secs)
    }
}

impl Batching {
    pub fn prefers(&self, size: usize) -> bool {
        self.preferred_sizes
            .iter()
            .any(|&preferred| preferred as usize == size)
    }
}
