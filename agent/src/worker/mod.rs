//! One sandboxed process per loaded model version. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::Manifest;
use edgeward_models::manifest::DelegateChoice;

use crate::config::{DelegateProfile, Sandbox};

/// Starts workers. Cheap to clone. Owns the one thread that forks them, which lives as long as the agent
/// (the parent-death signal follows the thread).
#[derive(Clone)]
pub struct Spawner {}

impl Spawner {
    /// `program`: the binary that is re-executed with the private verb `worker`.
    pub fn new(program: PathBuf) -> Result<Self, WorkerError> {
        todo!()
    }
}

/// Everything one worker needs to know. One worker = one model version on one delegate.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    pub manifest: Arc<Manifest>,
    /// The installed `.tflite` file; opened by the agent, handed over as a read-only descriptor.
    pub model_path: PathBuf,
    pub delegate: DelegateChoice,
    /// For a plugin delegate: its library and what it may touch. `None` for builtin and xnnpack.
    pub profile: Option<DelegateProfile>,
    pub library: PathBuf,
    pub instances: usize,
    /// Threads of each interpreter, already within the CPU budget.
    pub threads: usize,
    pub slots: usize,
    /// Input bytes of a slot.
    pub request_bytes: usize,
    pub memory_limit_bytes: u64,
    pub load_timeout: Duration,
    pub sandbox: Sandbox,
}

/// A running worker that has loaded its model. Dropping the last handle ends the process.
#[derive(Clone)]
pub struct Worker {}

/// What loading found out.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadFacts {
    pub pid: u32,
    pub delegated_nodes: u32,
    pub total_nodes: u32,
    pub load_time: Duration,
    /// `enforced`, or what the kernel could not do (only with `sandbox = "best-effort"`).
    pub sandbox: String,
}

/// How a worker ended.
#[derive(Debug, Clone)]
pub struct WorkerDeath {
    /// `killed by signal 11 (SIGSEGV)`, `an invoke exceeded its limit of 10 s`, …
    pub reason: String,
    /// The last lines of its stderr.
    pub stderr: String,
    /// SHA-256 over the inputs that were running (not merely waiting) when it died.
    pub suspects: Vec<edgeward_models::Digest>,
}

impl Worker {
    /// Starts a process, sandboxes it, loads library, delegate and model, builds the interpreters, checks them
    /// against the manifest's signatures. A failure carries TFLite's own words.
    pub async fn start(spawner: &Spawner, spec: WorkerSpec) -> Result<Self, WorkerError> {
        todo!()
    }

    pub fn facts(&self) -> &LoadFacts {
        todo!()
    }

    /// After the golden vectors: puts on the second seccomp filter, which also removes file opening (unless
    /// the delegate's profile needs it).
    pub async fn seal(&self) -> Result<(), WorkerError> {
        todo!()
    }

    /// A slot with room for `bytes` of inputs: the permit and the memory at once. Waits at most `wait`.
    pub async fn lease(&self, bytes: usize, wait: Duration) -> Result<Slot, WorkerError> {
        todo!()
    }

    /// Resolves when the process has ended.
    pub async fn died(&self) -> WorkerDeath {
        todo!()
    }

    /// Requests that hold a slot now.
    pub fn in_flight(&self) -> usize {
        todo!()
    }

    /// Resident bytes of the process.
    pub fn resident_bytes(&self) -> u64 {
        todo!()
    }

    /// Ends the process (SIGKILL); in-flight requests fail at once.
    pub fn kill(&self, reason: &str) {
        todo!()
    }
}

/// Memory for one request, shared with the worker. Given back when this and any [`Answer`] made from it are
/// dropped *and* the worker has finished with it.
pub struct Slot {}

impl Slot {
    /// Reserves the next input, 64-byte aligned, and returns its memory to be filled. Inputs are reserved in
    /// the signature's order. `shape` has no free dimension any more.
    pub fn input(&mut self, shape: &[i64], bytes: usize) -> Result<&mut [u8], WorkerError> {
        todo!()
    }

    /// SHA-256 over all inputs reserved so far (for the table of inputs that crashed).
    pub fn input_digest(&self) -> edgeward_models::Digest {
        todo!()
    }

    /// Runs the model (`signature`: index into the manifest). At `deadline` it answers `Deadline` whatever
    /// the device is doing; dropping the future cancels what has not started.
    pub async fn invoke(self, signature: usize, deadline: Instant) -> Result<Answer, WorkerError> {
        todo!()
    }
}

/// The outputs of one request, in the signature's order, still in shared memory.
pub struct Answer {}

impl Answer {
    pub fn output(&self, index: usize) -> &[u8] {
        todo!()
    }

    pub fn shape(&self, index: usize) -> &[i64] {
        todo!()
    }

    /// From handing over to the worker until an interpreter began.
    pub fn queue_time(&self) -> Duration {
        todo!()
    }

    pub fn invoke_time(&self) -> Duration {
        todo!()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The worker could not be started or sandboxed: the device's fault.
    #[error("cannot start a worker: {0}")]
    Start(String),
    /// TFLite or the delegate refused: the model's or the delegate's fault; its own words.
    #[error("{0}")]
    Refused(String),
    #[error("no free slot within {0:?}")]
    Busy(Duration),
    #[error("the request needs {needed} bytes of input; at most {limit} are allowed")]
    TooLarge { needed: u64, limit: u64 },
    #[error("the deadline passed")]
    Deadline,
    /// The worker died while this request was in it.
    #[error("the worker died: {0}")]
    Died(String),
    /// TFLite returned an error for this request (a shape it cannot take, …); its own words.
    #[error("the model could not run this request: {0}")]
    Invoke(String),
}

/// Options of a plugin delegate after the device's overrides.
pub fn delegate_options(
    choice: &DelegateChoice,
    profile: Option<&DelegateProfile>,
) -> BTreeMap<String, String> {
    let mut options = choice.options.clone();
    if let Some(profile) = profile {
        options.extend(profile.options.clone());
    }
    options
}
