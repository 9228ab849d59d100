//! One sandboxed process per loaded model version.
//!
//! A model file is foreign input to a large C++ parser and a delegate is a vendor's driver: both are known to
//! crash and to hang. So TFLite runs only in worker processes. The agent's side ([`Worker`], [`Slot`],
//! [`Answer`]) shares memory with the worker and believes nothing it says; the worker's side (`child`) puts
//! on its sandbox before it touches the model or a plugin, and never gets a socket or a file of its own.
//!
//! What a caller may rely on: a deadline is kept whatever the device does; only the model's own invoke limit
//! ends a worker, so no caller can; a death fails everything in flight at once and names the inputs that
//! were running.

mod answer;
mod cache;
mod child;
mod clock;
pub mod cpu;
mod filter;
mod handle;
mod memory;
mod process;
mod queue;
mod request;
mod sandbox;
mod setup;
mod slots;
mod socket;
mod spawner;
mod supervisor;
pub mod turns;
pub mod wire;

pub use answer::{Answer, check as check_output};
pub use cache::{DriverCache, PLACEHOLDER};
pub use child::run as run_child;
pub use handle::Worker;
pub use request::{KeptInputs, Slot};
pub use spawner::Spawner;
pub use wire::{Batch, Stream};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edgeward_models::Manifest;
use edgeward_models::manifest::DelegateChoice;

use crate::config::{Batching, DelegateProfile, Sandbox};

/// Everything one worker needs to know. One worker = one model version on one delegate.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    pub manifest: Arc<Manifest>,
    /// The installed `.tflite` file; opened by the agent, handed over as a read-only descriptor.
    pub model_path: PathBuf,
    pub delegate: DelegateChoice,
    /// For a plugin delegate: its library and what it may touch. `None` for builtin and xnnpack.
    pub profile: Option<DelegateProfile>,
    /// Where its driver may keep what it compiles.
    pub cache: Option<DriverCache>,
    pub library: PathBuf,
    pub instances: usize,
    /// Threads of each interpreter, already within the CPU budget.
    pub threads: usize,
    /// How requests are joined, once [`Worker::allow_batching`] was called. `None`: never.
    pub batching: Option<Batching>,
    pub slots: usize,
    /// Input bytes of a slot.
    pub request_bytes: usize,
    pub memory_limit_bytes: u64,
    pub load_timeout: Duration,
    /// How long one invoke may take until the worker is sealed, where that is more than the manifest allows: the
    /// first one may compile.
    pub proving_invoke_limit: Option<Duration>,
    pub sandbox: Sandbox,
}

/// What loading found out.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadFacts {
    pub pid: u32,
    pub delegated_nodes: u32,
    pub total_nodes: u32,
    /// Answers may depend on the questions before: requests must say which sequence they belong to.
    pub keeps_state: bool,
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
