//! How this device runs models: runtime, delegates, sandbox, power.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// What speed may cost.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Power {
    /// While requests follow each other closely, idle cores do not sleep (`/dev/cpu_dma_latency`).
    pub awake_under_load: bool,
}

impl Default for Power {
    fn default() -> Self {
        Self {
            awake_under_load: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tflite {
    /// The TFLite C library.
    pub library: PathBuf,
    /// Most anonymous memory of one worker, in bytes (RLIMIT_DATA); 0: no limit.
    pub worker_memory_bytes: u64,
    /// Most memory of all workers together, as measured, in bytes; 0: no limit.
    pub memory_budget_bytes: u64,
    /// Cores that all workers share; 0: every core that this process may use.
    pub cores: usize,
    /// How long a worker may take from start to ready.
    pub load_timeout_ms: u64,
}

impl Default for Tflite {
    fn default() -> Self {
        Self {
            library: "/usr/lib/edgeward/libtensorflowlite_c.so".into(),
            worker_memory_bytes: 2 << 30,
            memory_budget_bytes: 0,
            cores: 0,
            load_timeout_ms: 60_000,
        }
    }
}

/// A delegate library with the external-delegate ABI, and what its worker may touch.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateProfile {
    pub library: PathBuf,
    /// Further files and directories the driver reads.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Device nodes it opens, ioctl included.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// Options that override those of manifests.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The driver opens files after loading: keep file opening (within the paths above) possible.
    #[serde(default)]
    pub opens_files_late: bool,
    /// What the driver compiles is kept for the next start.
    #[serde(default)]
    pub cache: Option<DelegateCache>,
}

/// A directory for each model in which a driver keeps what it compiled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DelegateCache {
    /// Of one model, all files together.
    pub max_bytes: u64,
    /// How long a worker may take from start to ready, and then for an invoke until it is proven, while the
    /// directory is empty.
    pub first_load_timeout_ms: u64,
}

impl Default for DelegateCache {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            first_load_timeout_ms: 600_000,
        }
    }
}

/// What happens when the kernel cannot put a worker into its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// The worker does not start.
    #[default]
    Enforced,
    /// It starts, and status, metrics and the log say loudly what is missing.
    BestEffort,
}
