//! Why a request was not answered, and why a version could not be loaded.
//!
//! Made by this module's other files; the doors turn a [`ServeError`] into a status code, the fleet side turns
//! a [`LoadFailure`] into a status. The texts are for the person at the other end and never hold a tensor.

use edgeward_models::fleet::status::RefusedDelegate;
use edgeward_models::{Manifest, ModelName, Version};

use super::sequences::SequenceId;

/// Why a version could not be loaded: each delegate with its reason.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{model} {version} does not run on this device: {reason}")]
pub struct LoadFailure {
    pub model: ModelName,
    pub version: Version,
    /// All delegates' reasons in one sentence.
    pub reason: String,
    pub refused: Vec<RefusedDelegate>,
    /// The device's own trouble (no TFLite library, no sandbox, …), not the version's: worth trying again.
    pub device_fault: bool,
}

impl LoadFailure {
    /// Before any delegate was tried.
    pub(super) fn new(manifest: &Manifest, reason: String, device_fault: bool) -> Self {
        Self {
            model: manifest.model.clone(),
            version: manifest.version.clone(),
            reason,
            refused: Vec::new(),
            device_fault,
        }
    }
}

/// Why a request was not answered. Nothing here knows a status code; `api/error.rs` maps it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServeError {
    #[error("model {0:?} is not served here")]
    UnknownModel(String),
    #[error("model {model} has no version {version:?} loaded here; {loaded} is")]
    UnknownVersion {
        model: ModelName,
        version: String,
        loaded: String,
    },
    #[error("model {model} has no label {label:?} here; its labels: {known}")]
    UnknownLabel {
        model: ModelName,
        label: String,
        known: String,
    },
    /// Known but not answering now (restarting after a crash, shutting down).
    #[error("model {model} is not ready: {reason}")]
    NotReady {
        model: ModelName,
        reason: String,
        retry_after_seconds: u64,
    },
    /// The caller's mistake; names the tensor and what was expected.
    #[error("{0}")]
    Invalid(String),
    #[error("input needs {needed} bytes; model {model} allows {limit}")]
    TooLarge {
        model: ModelName,
        needed: u64,
        limit: u64,
    },
    #[error("model {model} is at its limit of requests; try again later")]
    Overloaded {
        model: ModelName,
        retry_after_seconds: u64,
    },
    /// There is no such sequence, or not any more.
    #[error(
        "model {model}: sequence {sequence} cannot go on: {reason}; begin it again with sequence_start"
    )]
    SequenceLost {
        model: ModelName,
        sequence: SequenceId,
        reason: String,
    },
    #[error("model {model}: all {most} sequences are in use; try again later")]
    SequencesFull {
        model: ModelName,
        most: u32,
        retry_after_seconds: u64,
    },
    #[error("the deadline of {0} ms passed")]
    Deadline(u64),
    #[error("model {model}: the worker died while it ran this request: {reason}")]
    Crashed { model: ModelName, reason: String },
    /// This very input crashed the worker twice.
    #[error("model {model}: this input crashed the worker twice and is refused")]
    Poison { model: ModelName },
    /// TFLite returned an error; its own words.
    #[error("model {model}: {reason}")]
    Failed { model: ModelName, reason: String },
}

/// When to try again while a worker is being replaced.
pub(super) const RETRY_SOON_SECONDS: u64 = 1;
