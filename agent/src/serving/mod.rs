//! Versions, admission, lifecycle and statistics: between the doors and the workers. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::sync::Arc;
use std::time::Instant;

use edgeward_models::fleet::status::{ActiveVersion, RefusedDelegate};
use edgeward_models::fleet::telemetry::ModelSample;
use edgeward_models::manifest::{Signature, TensorSpec};
use edgeward_models::package::InstalledVersion;
use edgeward_models::{Manifest, ModelName, Version};

use crate::config::Config;
use crate::worker::Spawner;

/// All served models. Cheap to clone.
#[derive(Clone)]
pub struct Engine {}

/// A version that is loaded, proven and warm, and not yet routed to.
pub struct Prepared {}

impl Prepared {
    pub fn active_version(&self) -> &ActiveVersion {
        todo!()
    }
}

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

/// What the fleet side must react to.
#[derive(Debug, Clone)]
pub enum EngineEvent {
    /// The worker died and is restarted after a pause.
    Crashed {
        model: ModelName,
        version: Version,
        reason: String,
    },
    /// Crashes on different inputs, or failing golden vectors on restart, on every delegate: give the
    /// previous version a chance, if there is one. Otherwise it keeps backing off and trying.
    Failing {
        model: ModelName,
        version: Version,
        reason: String,
    },
    /// Serving again after a crash.
    Recovered { model: ModelName, version: Version },
}

/// A snapshot of one served model.
#[derive(Debug, Clone)]
pub struct ServedModel {
    pub model: ModelName,
    pub manifest: Arc<Manifest>,
    pub active: ActiveVersion,
    /// Loaded and answering (a dead worker shows as false until it is back).
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    pub worker_pid: Option<u32>,
    pub worker_resident_bytes: u64,
    pub sandbox: String,
}

impl Engine {
    pub fn new(config: Arc<Config>, spawner: Spawner) -> Self {
        todo!()
    }

    /// Loads a version beside whatever serves: delegates in the manifest's order, share of nodes, golden
    /// vectors, warm-up, seal.
    pub async fn prepare(&self, version: &InstalledVersion) -> Result<Prepared, LoadFailure> {
        todo!()
    }

    /// Routes new requests to `prepared`; the version before finishes what it has and is unloaded.
    pub fn activate(&self, prepared: Prepared) {
        todo!()
    }

    /// Stops serving a model; in-flight requests finish.
    pub async fn retire(&self, model: &ModelName) {
        todo!()
    }

    pub fn models(&self) -> Vec<ServedModel> {
        todo!()
    }

    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<EngineEvent> {
        todo!()
    }

    /// Counters and latencies since the last call (one caller: telemetry).
    pub fn take_samples(&self) -> Vec<ModelSample> {
        todo!()
    }

    /// Finds what a request means. `version`: a semantic version or a release number; absent: the active one.
    pub fn resolve(&self, model: &str, version: Option<&str>) -> Result<Served, ServeError> {
        todo!()
    }

    /// Refuse new requests, let those in flight finish within `limits.drain_timeout`, end all workers.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// One served version, as a request sees it.
#[derive(Clone)]
pub struct Served {}

impl Served {
    pub fn manifest(&self) -> &Arc<Manifest> {
        todo!()
    }

    pub fn ready(&self) -> bool {
        todo!()
    }

    /// Takes a slot for a request of `bytes` input bytes; waits at most the configured queue time and never
    /// past the deadline.
    pub async fn begin(
        &self,
        signature: usize,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Request, ServeError> {
        todo!()
    }
}

/// One admitted request.
pub struct Request {}

impl Request {
    pub fn signature(&self) -> &Signature {
        todo!()
    }

    /// Memory of the next input (signature's order), after its shape was checked against the manifest.
    pub fn input(&mut self, shape: &[i64]) -> Result<&mut [u8], ServeError> {
        todo!()
    }

    pub async fn infer(self) -> Result<Answer, ServeError> {
        todo!()
    }
}

pub use crate::worker::Answer;

/// Checks a request's shape against the specification: rank, fixed dimensions, free ones at least 1.
/// Returns the bytes of the tensor. The error names the tensor and both shapes.
pub fn check_shape(spec: &TensorSpec, shape: &[i64]) -> Result<u64, ServeError> {
    todo!()
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
