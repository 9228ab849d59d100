//! Whether a new version is good: what a device may hold against it while it watches it, and what it found.

use serde::{Deserialize, Serialize};

/// What a version may not exceed during its soak. Beyond it the device puts the version before back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthLimits {
    /// Deaths of its worker.
    #[serde(default)]
    pub max_crashes: u32,
    /// Failed requests, in percent of those that were run, beyond the share of the version before.
    #[serde(default = "default_error_percent")]
    pub max_error_percent: u8,
    /// The slowest hundredth of invokes (p99), in percent of that of the version before.
    #[serde(default = "default_p99_percent")]
    pub max_p99_percent: u32,
}

fn default_error_percent() -> u8 {
    1
}

fn default_p99_percent() -> u32 {
    200
}

impl Default for HealthLimits {
    fn default() -> Self {
        Self {
            max_crashes: 0,
            max_error_percent: default_error_percent(),
            max_p99_percent: default_p99_percent(),
        }
    }
}

impl HealthLimits {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the watch over an active version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Soak {
    /// It serves, and the version before may still take over.
    Watching,
    /// It served for as long as it was to be watched, and stayed within its limits.
    Passed,
    /// It exceeded them, and there is no version before it.
    Failed,
}
