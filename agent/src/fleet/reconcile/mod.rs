//! One task that brings this device from what it runs to what its fleet wishes, and never the other way
//! round: whatever fails, what serves goes on serving.
//!
//! It wakes on a new timestamp, a new connection, an import, an engine event, the end of a job and the
//! passing of time; then it compares wishes with pointers and starts, supersedes or commits jobs. All state
//! of models is changed here and nowhere else. This file holds the state and the loop; `looking` reads
//! repositories, `steering` turns wishes into jobs, `committing` jobs into pointers, `routing` and
//! `beside` do the same for versions beside the active one, `soaking` watches what became active, `failures` says what
//! becomes of what went wrong, `import` speaks with a person who holds a directory out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeward_models::chunk::Source;
use edgeward_models::name::RolloutId;
use edgeward_models::verify::{Policy, TrustStore, VerifyError};
use edgeward_models::{DeviceId, Digest, ModelName, Version};
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use super::credentials::Credentials;
use super::goal::{Goal, Looked};
use super::identity::TrustedClock;
use super::job::{FaultKind, JobError, Ready, Workshop};
use super::pause;
use super::state::{Applied, ModelRecord};
use crate::serving::EngineEvent;
use beside::Beside;
pub use import::{ImportEvent, ImportOutcome, ImportRequest};
use pace::{Pace, Refusals};
pub use routing::OverrideRequest;
use soaking::Watched;

mod beside;
mod committing;
mod failures;
mod import;
mod looking;
mod pace;
mod renewal;
mod routing;
mod soaking;
mod steering;

/// What the reconciler listens to.
pub struct Wires {
    pub imports: mpsc::Receiver<ImportRequest>,
    pub overrides: mpsc::Receiver<OverrideRequest>,
    /// The newest timestamp that the broker showed, as it travels.
    pub timestamps: watch::Receiver<Option<Bytes>>,
    /// Counts connections.
    pub sessions: watch::Receiver<u64>,
    /// The repository behind the broker.
    pub remote: Option<Arc<dyn Source>>,
    pub engine: broadcast::Receiver<EngineEvent>,
    pub stop: watch::Receiver<bool>,
}

/// Who this device is to its fleet.
pub struct Membership {
    pub device: DeviceId,
    pub credentials: Arc<Credentials>,
    pub trust: Arc<Mutex<TrustStore>>,
    pub clock: Arc<TrustedClock>,
    pub policy: Policy,
}

pub struct Reconciler {
    workshop: Arc<Workshop>,
    /// Absent until the device is enrolled, or when its trust state is unreadable.
    membership: Option<Arc<Membership>>,
    records: BTreeMap<ModelName, ModelRecord>,
    applied: Applied,
    goal: Option<Arc<Goal>>,
    jobs: JoinSet<Result<Ready, JobError>>,
    running: HashMap<ModelName, Running>,
    attempts: HashMap<ModelName, Attempt>,
    /// Jobs that bring an active version back which does not serve, and their last failures: beside whatever is
    /// done for a wish, which may fail for ever.
    reloading: HashMap<ModelName, Running>,
    reloads: HashMap<ModelName, Attempt>,
    /// Versions beside the active ones.
    beside: Beside,
    /// Versions that became active and are being watched.
    watched: HashMap<ModelName, Watched>,
    /// A version waits for a window, which may be open by then.
    window_look: Option<Instant>,
    looking: Option<(JoinHandle<Result<Looked, VerifyError>>, LookRequest)>,
    waiting_looks: VecDeque<LookRequest>,
    /// The newest timestamp that the broker showed, and that of the last look that succeeded.
    heard: Option<Digest>,
    seen: Option<Digest>,
    pace: Pace,
    refusals: Refusals,
    /// After a look that failed: how many have by now, and when the next one is due.
    look_failures: u32,
    look_at: Option<Instant>,
    import: Option<mpsc::Sender<ImportEvent>>,
}

struct Running {
    abort: AbortHandle,
    kind: Kind,
    /// Fetches from a directory that somebody holds out.
    local: bool,
    version: Version,
    rollout: Option<RolloutId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Towards a wish; another wish supersedes it.
    Wish,
    /// The previous version, since the active one fails.
    PutBack,
    /// The active version, which could not be loaded at the start.
    Reload,
}

/// What was tried last and failed.
struct Attempt {
    version: Version,
    rollout: Option<RolloutId>,
    failures: u32,
    again: Instant,
    error: JobError,
}

impl Attempt {
    /// A further one after `before`, with a longer pause.
    fn after(
        before: Option<&Self>,
        version: Version,
        rollout: Option<RolloutId>,
        error: JobError,
    ) -> Self {
        let failures = before.map_or(0, |before| before.failures) + 1;
        Self {
            version,
            rollout,
            failures,
            again: Instant::now() + pause::after(failures),
            error,
        }
    }
}

struct LookRequest {
    source: Arc<dyn Source>,
    timestamp: Option<Digest>,
    import: Option<mpsc::Sender<ImportEvent>>,
}

impl Reconciler {
    pub fn new(
        workshop: Arc<Workshop>,
        membership: Option<Membership>,
        records: BTreeMap<ModelName, ModelRecord>,
        applied: Applied,
        absent: BTreeMap<ModelName, JobError>,
    ) -> Self {
        let reloads = absent
            .into_iter()
            .filter_map(|(model, error)| {
                let active = records.get(&model)?.active.as_ref()?;
                let attempt = Attempt {
                    version: active.version.clone(),
                    rollout: active.rollout.clone(),
                    failures: 1,
                    again: Instant::now() + pause::FIRST,
                    error,
                };
                Some((model, attempt))
            })
            .collect();
        Self {
            workshop,
            membership: membership.map(Arc::new),
            records,
            applied,
            goal: None,
            jobs: JoinSet::new(),
            running: HashMap::new(),
            attempts: HashMap::new(),
            reloading: HashMap::new(),
            reloads,
            beside: Beside::default(),
            watched: HashMap::new(),
            window_look: None,
            looking: None,
            waiting_looks: VecDeque::new(),
            heard: None,
            seen: None,
            pace: Pace::new(Instant::now()),
            refusals: Refusals::default(),
            look_failures: 0,
            look_at: None,
            import: None,
        }
    }

    pub async fn run(mut self, mut wires: Wires) {
        let period = self
            .workshop
            .config
            .fleet
            .as_ref()
            .map_or(300, |f| f.reconcile_seconds);
        let mut timer = tokio::time::interval(Duration::from_secs(period.max(1)));
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.reset();
        self.refresh_age();
        self.recall_routings();
        loop {
            let pause = self.pause();
            tokio::select! {
                _ = wires.stop.changed() => break,
                Some(request) = wires.imports.recv() => self.import(request),
                Some(request) = wires.overrides.recv() => self.override_routing(request),
                Ok(()) = wires.timestamps.changed() => {
                    let payload = wires.timestamps.borrow_and_update().clone();
                    self.heard(wires.remote.as_ref(), payload);
                }
                Ok(()) = wires.sessions.changed() => self.reconnected(),
                _ = timer.tick() => self.look_again(wires.remote.as_ref()),
                event = wires.engine.recv() => self.engine_event(event),
                Some(ended) = self.jobs.join_next_with_id() => self.job_ended(ended),
                looked = async {
                    match self.looking.as_mut() {
                        Some((task, _)) => task.await,
                        None => std::future::pending().await,
                    }
                } => self.looked(looked).await,
                () = tokio::time::sleep(pause) => {
                    if self.look_at.is_some_and(|at| at <= Instant::now()) {
                        self.look_again(wires.remote.as_ref());
                    }
                    self.look_at_soaks();
                    self.steer();
                }
            }
            self.finish_import();
        }
        self.jobs.shutdown().await;
        if let Some((task, _)) = self.looking.take() {
            task.abort();
        }
    }

    /// Until the next attempt is due.
    fn pause(&self) -> Duration {
        let next = self
            .attempts
            .iter()
            .filter(|(model, _)| !self.running.contains_key(*model))
            .chain(
                self.reloads
                    .iter()
                    .filter(|(model, _)| !self.reloading.contains_key(*model)),
            )
            .map(|(_, a)| a.again)
            .chain(self.beside.next())
            .chain(self.look_at)
            .chain(self.next_soak_look())
            .chain(self.window_look)
            .min();
        next.map_or(Duration::from_secs(3600), |at| {
            at.saturating_duration_since(Instant::now())
        })
    }

    fn reconnected(&mut self) {
        for attempt in self.attempts.values_mut().chain(self.reloads.values_mut()) {
            if attempt.error.kind == FaultKind::Carrier {
                attempt.again = Instant::now();
            }
        }
        self.beside.hurry(|error| error.kind == FaultKind::Carrier);
        self.steer();
    }
}
