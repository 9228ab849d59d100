//! Starting a worker and holding on to it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cache::{DriverCache, LOOK_EVERY};
use super::memory::Memory;
use super::process::{Exit, Process};
use super::request::Slot;
use super::setup::{setup, setup_document};
use super::slots::Layout;
use super::supervisor::{Ends, Supervisor, hear};
use super::wire::{FromWorker, ToWorker};
use super::{LoadFacts, Spawner, WorkerDeath, WorkerError, WorkerSpec, queue, socket};
use crate::config::Batching;

/// A running worker that has loaded its model. Dropping the last handle ends the process.
#[derive(Clone)]
pub struct Worker {
    handle: Arc<Handle>,
}

struct Handle {
    supervisor: Arc<Supervisor>,
    facts: LoadFacts,
    request_limit: u64,
    opens_files_late: bool,
    batching: Option<Batching>,
    /// Interpreters that were asked for.
    interpreters: AtomicUsize,
    /// Requests may be joined from now on.
    joins: AtomicBool,
    seal: tokio::sync::Mutex<()>,
    /// Keeps the thread that the process's life depends on.
    _spawner: Spawner,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.supervisor.end("it is no longer needed");
    }
}

/// How long a worker that is already running may take for a control message.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

impl Worker {
    /// Starts a process, sandboxes it, loads library, delegate and model, builds the interpreters, checks
    /// them against the manifest's signatures. A failure carries TFLite's own words.
    pub async fn start(spawner: &Spawner, spec: WorkerSpec) -> Result<Self, WorkerError> {
        let started = Instant::now();
        let layout = Layout::new(&spec.manifest, spec.slots, spec.request_bytes)
            .map_err(WorkerError::Start)?;
        let setup = setup(&spec, layout)?;
        let (control, their_control) = socket_pair()?;
        let control = watched(control, Interest::READABLE | Interest::WRITABLE)?;
        let (parcels, their_parcels) = socket_pair()?;
        let bell = queue::bell().map_err(start("an event descriptor"))?;
        let length = layout.total().unwrap_or(0);
        let (slots, memory) =
            Memory::create("edgeward-slots", length).map_err(start("shared memory"))?;
        let model = open_model(&spec)?;
        let document = setup_document(&setup).map_err(start("the set-up document"))?;

        let spawned = spawner.spawn(their_control).await?;
        let (model_name, version) = (&spec.manifest.model, &spec.manifest.version);
        let process = Process::watch(spawned, model_name.to_string(), version.to_string())
            .map_err(start("the thread that watches the process"))?;
        let mut guard = KillOnDrop {
            process,
            armed: true,
        };
        let descriptors = [
            document.as_fd(),
            their_parcels.as_fd(),
            model.as_fd(),
            slots.as_fd(),
            bell.as_fd(),
        ];
        socket::send(control.get_ref(), b"setup", &descriptors).map_err(start("its set-up"))?;
        // Only the worker's ends may stay open, or its death would not close them.
        drop((their_parcels, model, slots, document));
        let bell = watched(bell, Interest::READABLE)?;

        let loading = load(&control, &guard.process);
        let loaded = tokio::select! {
            loaded = tokio::time::timeout(spec.load_timeout, loading) => loaded,
            reason = outgrown(spec.cache.clone()) => return Err(WorkerError::Refused(reason)),
        };
        let loaded = loaded.map_err(|_| WorkerError::Refused(too_slow(&spec)))??;
        // From here on it is the supervisor's to end.
        guard.armed = false;
        let process = guard.process.clone();
        let facts = LoadFacts {
            pid: process.pid(),
            delegated_nodes: loaded.delegated_nodes,
            total_nodes: loaded.total_nodes,
            keeps_state: loaded.keeps_state,
            load_time: started.elapsed(),
            sandbox: loaded.missing.map_or_else(
                || "enforced".to_owned(),
                |missing| format!("not enforced: {missing}"),
            ),
        };
        tracing::debug!(
            model = %model_name, %version, delegate = %spec.delegate.delegate, pid = facts.pid,
            sandbox = facts.sandbox, "worker loaded"
        );
        let request_limit = spec.manifest.request_bytes().max(spec.request_bytes as u64);
        let invoke_limit = Duration::from_millis(spec.manifest.invoke_limit_ms)
            .max(spec.proving_invoke_limit.unwrap_or_default());
        let supervisor = Supervisor::new(
            spec.manifest,
            layout,
            memory,
            process,
            Ends {
                bell,
                parcels,
                control,
            },
            invoke_limit,
        );
        if spec.cache.is_some() {
            let supervisor = Arc::clone(&supervisor);
            tokio::spawn(async move {
                tokio::select! {
                    _ = supervisor.died() => {}
                    reason = outgrown(spec.cache) => supervisor.end(&reason),
                }
            });
        }
        Ok(Self {
            handle: Arc::new(Handle {
                supervisor,
                facts,
                request_limit,
                batching: spec.batching,
                interpreters: AtomicUsize::new(spec.instances.max(1)),
                joins: AtomicBool::new(false),
                opens_files_late: spec.profile.is_some_and(|p| p.opens_files_late),
                seal: tokio::sync::Mutex::new(()),
                _spawner: spawner.clone(),
            }),
        })
    }

    pub fn facts(&self) -> &LoadFacts {
        &self.handle.facts
    }

    /// After the golden vectors: from here on the manifest's invoke limit holds. Puts on the second seccomp filter,
    /// which also removes file opening (unless the delegate's profile needs it).
    pub async fn seal(&self) -> Result<(), WorkerError> {
        self.handle.supervisor.proven();
        if self.handle.opens_files_late {
            return Ok(());
        }
        // One question at a time: answers carry no number.
        let _turn = self.handle.seal.lock().await;
        let supervisor = &self.handle.supervisor;
        let sealing = async {
            supervisor.tell(&ToWorker::Seal).await?;
            supervisor.hear().await
        };
        match tokio::time::timeout(CONTROL_TIMEOUT, sealing).await {
            Ok(Ok(FromWorker::Sealed)) => Ok(()),
            Ok(Ok(FromWorker::CannotSeal { reason })) => Err(WorkerError::Start(format!(
                "the second filter of its sandbox: {reason}"
            ))),
            Ok(Ok(_)) => Err(WorkerError::Start("it answered out of turn".to_owned())),
            Ok(Err(_)) => Err(supervisor.died_error()),
            Err(_) => Err(WorkerError::Start(
                "it did not put on the second filter of its sandbox in time".to_owned(),
            )),
        }
    }

    /// From now on requests may run together, where the specification says how.
    pub fn allow_batching(&self) {
        let joins = self.handle.batching.is_some();
        self.handle.joins.store(joins, Ordering::Relaxed);
    }

    /// Whether requests may run together.
    pub fn joins(&self) -> bool {
        self.handle.joins.load(Ordering::Relaxed)
    }

    /// A slot with room for `bytes` of inputs: the permit and the memory at once. Waits at most `wait`.
    pub async fn lease(&self, bytes: usize, wait: Duration) -> Result<Slot, WorkerError> {
        let limit = self.handle.request_limit;
        if bytes as u64 > limit {
            let needed = bytes as u64;
            return Err(WorkerError::TooLarge { needed, limit });
        }
        self.lease_any(bytes, wait).await
    }

    /// The same for inputs that may be larger than a request's: several requests together.
    pub async fn lease_any(&self, bytes: usize, wait: Duration) -> Result<Slot, WorkerError> {
        let lease = self.handle.supervisor.lease(wait).await?;
        Slot::new(self, lease, bytes)
    }

    /// Resolves when the process has ended.
    pub fn died(&self) -> impl Future<Output = WorkerDeath> + Send + use<> {
        // Not through `self`: waiting for the end must not be what keeps the worker alive.
        let supervisor = Arc::clone(&self.handle.supervisor);
        async move { supervisor.died().await }
    }

    /// How many interpreters answer, or are being built or let go to come to that number.
    pub fn interpreters(&self) -> usize {
        self.handle.interpreters.load(Ordering::Relaxed)
    }

    /// From now on so many interpreters answer. More are built while the others answer on.
    pub async fn set_interpreters(&self, wanted: usize) -> Result<(), WorkerError> {
        let supervisor = &self.handle.supervisor;
        let told = supervisor.tell(&ToWorker::Interpreters(wanted)).await;
        told.map_err(|_| supervisor.died_error())?;
        self.handle.interpreters.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the process has ended: true before any request fails of it.
    pub fn is_gone(&self) -> bool {
        self.handle.supervisor.is_gone()
    }

    /// Requests that hold a slot now.
    pub fn in_flight(&self) -> usize {
        self.handle.supervisor.in_flight()
    }

    /// Resident bytes of the process.
    pub fn resident_bytes(&self) -> u64 {
        self.handle.supervisor.process.resident_bytes()
    }

    /// What the process takes of the device's memory: pages that it shares count in part. 0 once it has ended.
    pub fn memory_bytes(&self) -> u64 {
        self.handle.supervisor.process.memory_bytes()
    }

    /// Ends the process (SIGKILL); in-flight requests fail at once.
    pub fn kill(&self, reason: &str) {
        self.handle.supervisor.end(reason);
    }
}

/// What a worker says of itself when it is ready.
struct Said {
    /// Of the sandbox.
    missing: Option<String>,
    delegated_nodes: u32,
    total_nodes: u32,
    keeps_state: bool,
}

/// Waits until the model is loaded.
async fn load(control: &AsyncFd<OwnedFd>, process: &Process) -> Result<Said, WorkerError> {
    let mut sandboxed = None;
    loop {
        match (hear(control).await, &sandboxed) {
            (Ok(FromWorker::Sandboxed { missing }), None) => sandboxed = Some(missing),
            (Ok(FromWorker::CannotStart { reason }), _) => return Err(WorkerError::Start(reason)),
            (Ok(FromWorker::Refused { reason }), Some(_)) => {
                return Err(WorkerError::Refused(reason));
            }
            (
                Ok(FromWorker::Ready {
                    delegated_nodes,
                    total_nodes,
                    keeps_state,
                }),
                Some(missing),
            ) => {
                return Ok(Said {
                    missing: missing.clone(),
                    delegated_nodes,
                    total_nodes,
                    keeps_state,
                });
            }
            (Ok(_), _) => {
                return Err(WorkerError::Start("it answered out of turn".to_owned()));
            }
            (Err(_), sandboxed) => {
                let Exit { words, stderr } = process.ended().await;
                let said = if stderr.is_empty() {
                    String::new()
                } else {
                    format!("; its last words: {stderr}")
                };
                return Err(if sandboxed.is_some() {
                    WorkerError::Refused(format!(
                        "loading it ended the worker, which was {words}{said}"
                    ))
                } else {
                    WorkerError::Start(format!("it ended early: {words}{said}"))
                });
            }
        }
    }
}

/// Resolves when a driver keeps more than it may, with the reason; never where it keeps nothing.
async fn outgrown(cache: Option<DriverCache>) -> String {
    match cache {
        Some(cache) => cache.outgrown(LOOK_EVERY).await,
        None => std::future::pending().await,
    }
}

fn too_slow(spec: &WorkerSpec) -> String {
    let time = spec.load_timeout;
    let setting = match spec.proving_invoke_limit {
        Some(_) => "first_load_timeout_ms of the delegate's cache",
        None => "[tflite] load_timeout_ms",
    };
    format!("loading took longer than {time:?}; raise {setting} if the device needs it")
}

/// A start that is given up, for whatever reason, leaves no process behind.
struct KillOnDrop {
    process: Process,
    armed: bool,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.armed {
            self.process.kill();
        }
    }
}

fn start<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> WorkerError {
    move |error| WorkerError::Start(format!("{what}: {error}"))
}

/// Our end, which never waits, and the worker's.
fn socket_pair() -> Result<(OwnedFd, OwnedFd), WorkerError> {
    let pair = || {
        let (ours, theirs) = socket::pair()?;
        socket::set_nonblocking(&ours)?;
        std::io::Result::Ok((ours, theirs))
    };
    pair().map_err(start("a socket pair"))
}

fn watched(descriptor: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, WorkerError> {
    // SAFETY: an `OwnedFd` is this one descriptor until it is dropped, and is never exchanged for another.
    #[allow(unsafe_code)]
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    watched.map_err(|error| WorkerError::Start(format!("watching a descriptor: {error}")))
}

fn open_model(spec: &WorkerSpec) -> Result<OwnedFd, WorkerError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(&spec.model_path, flags, rustix::fs::Mode::empty()).map_err(|error| {
        WorkerError::Start(format!(
            "the model file {}: {error}",
            spec.model_path.display()
        ))
    })
}
