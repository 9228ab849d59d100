//! One loaded version: its worker (or why there is none just now), who uses it, and what it did.
//!
//! `engine` routes to it, `served` serves requests from it, `supervise` replaces its worker after a death.
//! A version that was routed away lives on until nobody uses it any more.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use edgeward_models::fleet::status::ActiveVersion;
use edgeward_models::manifest::Manifest;
use tokio::sync::{Notify, watch};
use tracing::info;

use super::admission::WaitingRoom;
use super::budget::Grant;
use super::error::{RETRY_SOON_SECONDS, ServeError};
use super::evidence::Subject;
use super::memory::guess;
use super::poison::Poison;
use super::proof::Proven;
use super::sequences::Sequences;
use super::stats::Stats;
use crate::config::{Config, Limits, ModelSettings};
use crate::worker::Worker;

#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) subject: Subject,
    pub(super) grant: Grant,
    pub(super) queue_timeout: Duration,
    pub(super) waiting: WaitingRoom,
    pub(super) poison: Poison,
    pub(super) sequences: Sequences,
    pub(super) stats: Stats,
    /// Told when a request has failed.
    pub(super) in_doubt: Notify,
    /// Unloaded after nobody asked for so long; `None`: never for that.
    pub(super) idle_limit: Option<Duration>,
    /// Never unloaded.
    pinned: bool,
    /// What its worker took when it was last measured.
    bytes: AtomicU64,
    pub(super) unloads: Unloads,
    state: RwLock<State>,
    /// Told when `state` has changed.
    changed: watch::Sender<()>,
    /// Requests that wait until it is loaded again.
    wishes: watch::Sender<usize>,
    /// Requests between `resolve` and their answer.
    users: AtomicUsize,
    unused: Notify,
    ended: watch::Sender<bool>,
}

struct State {
    /// What serves, or served last.
    active: ActiveVersion,
    stand: Stand,
    /// When it came to that.
    since: Instant,
}

enum Stand {
    Serving(Worker),
    Down(Outage),
    /// Nothing is wrong: the next request loads it again. With the reason.
    Unloaded(&'static str),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("State");
        shown.field("active", &self.active);
        match &self.stand {
            Stand::Serving(worker) => shown.field("worker", &worker.facts().pid),
            Stand::Down(outage) => shown.field("down", outage),
            Stand::Unloaded(reason) => shown.field("unloaded", reason),
        };
        shown.finish()
    }
}

/// A request that waits until a version is loaded again.
struct Wish<'a>(&'a watch::Sender<usize>);

impl<'a> Wish<'a> {
    fn of(wishes: &'a watch::Sender<usize>) -> Self {
        wishes.send_modify(|wishes| *wishes += 1);
        Self(wishes)
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|wishes| *wishes -= 1);
    }
}

/// How often it was unloaded, and loaded again for a request.
#[derive(Debug, Default)]
pub(super) struct Unloads {
    pub(super) count: AtomicU64,
    pub(super) reloads: AtomicU64,
}

/// Why there is no worker.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    pub(super) reason: String,
    /// When the next worker is tried.
    pub(super) retry_at: Instant,
}

impl Loaded {
    pub(super) fn new(subject: Subject, grant: Grant, config: &Config, proven: Proven) -> Self {
        let limits = &config.limits;
        let slots = slots(grant, limits);
        let settings = config.models.get(&subject.manifest().model);
        Self {
            idle_limit: settings.and_then(ModelSettings::idle_limit),
            pinned: settings.is_some_and(|settings| settings.pinned),
            bytes: AtomicU64::new(proven.worker.memory_bytes()),
            unloads: Unloads::default(),
            changed: watch::Sender::new(()),
            wishes: watch::Sender::new(0),
            sequences: Sequences::new(subject.manifest().sequences),
            subject,
            grant,
            queue_timeout: limits.queue_timeout(),
            waiting: WaitingRoom::new(slots),
            poison: Poison::default(),
            stats: Stats::new(),
            in_doubt: Notify::new(),
            state: RwLock::new(State {
                active: proven.active,
                stand: Stand::Serving(proven.worker),
                since: Instant::now(),
            }),
            users: AtomicUsize::new(0),
            unused: Notify::new(),
            ended: watch::Sender::new(false),
        }
    }

    pub(super) fn manifest(&self) -> &Arc<Manifest> {
        self.subject.manifest()
    }

    pub(super) fn active(&self) -> ActiveVersion {
        self.read().active.clone()
    }

    /// Whether a request is answered, though it may have to be loaded for it.
    pub(super) fn ready(&self) -> bool {
        !matches!(self.read().stand, Stand::Down(_))
    }

    /// Whether a request that comes now would be answered: a worker whose death nobody has taken note of yet answers
    /// none.
    pub(super) fn answers(&self) -> bool {
        match &self.read().stand {
            Stand::Serving(worker) => !worker.is_gone(),
            Stand::Unloaded(_) => true,
            Stand::Down(_) => false,
        }
    }

    pub(super) fn worker(&self) -> Option<Worker> {
        match &self.read().stand {
            Stand::Serving(worker) => Some(worker.clone()),
            Stand::Down(_) | Stand::Unloaded(_) => None,
        }
    }

    /// Why there is no worker, though there should be one.
    pub(super) fn outage(&self) -> Option<Outage> {
        match &self.read().stand {
            Stand::Down(outage) => Some(outage.clone()),
            Stand::Serving(_) | Stand::Unloaded(_) => None,
        }
    }

    /// Why it is unloaded, if it is.
    pub(super) fn unloaded(&self) -> Option<&'static str> {
        match &self.read().stand {
            Stand::Unloaded(reason) => Some(reason),
            Stand::Serving(_) | Stand::Down(_) => None,
        }
    }

    /// The worker for a request, loaded for it if there is none. `None`: not before the deadline.
    pub(super) async fn serving_worker(
        &self,
        deadline: Instant,
    ) -> Option<Result<Worker, ServeError>> {
        match &self.read().stand {
            Stand::Serving(worker) => return Some(Ok(worker.clone())),
            Stand::Down(outage) => return Some(Err(self.not_ready(outage))),
            Stand::Unloaded(_) => {}
        }
        let mut changed = self.changed.subscribe();
        let _wish = Wish::of(&self.wishes);
        let loaded = async {
            loop {
                match &self.read().stand {
                    Stand::Serving(worker) => return Ok(worker.clone()),
                    Stand::Down(outage) => return Err(self.not_ready(outage)),
                    Stand::Unloaded(_) => {}
                }
                // The sender lives in `self`.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout_at(deadline.into(), loaded).await.ok()
    }

    fn not_ready(&self, outage: &Outage) -> ServeError {
        let pause = outage.retry_at.saturating_duration_since(Instant::now());
        ServeError::NotReady {
            model: self.manifest().model.clone(),
            reason: outage.reason.clone(),
            retry_after_seconds: pause.as_secs_f64().ceil().max(1.0) as u64,
        }
    }

    /// The error of a request whose worker went before it was taken in.
    pub(super) fn worker_gone(&self, reason: String) -> ServeError {
        ServeError::NotReady {
            model: self.manifest().model.clone(),
            reason,
            retry_after_seconds: RETRY_SOON_SECONDS,
        }
    }

    pub(super) fn set_up(&self, proven: Proven) {
        let mut state = self.write();
        // A version that ended in the meantime keeps no worker: dropping this one ends its process.
        if *self.ended.borrow() {
            return;
        }
        state.active = proven.active;
        state.stand = Stand::Serving(proven.worker);
        state.since = Instant::now();
        drop(state);
        self.changed.send_replace(());
    }

    pub(super) fn set_down(&self, outage: Outage) {
        self.write().stand = Stand::Down(outage);
        self.changed.send_replace(());
    }

    /// Ends the worker for good.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
        self.set_down(Outage {
            reason: "this version is no longer served".to_owned(),
            retry_at: Instant::now(),
        });
    }

    /// Resolves when [`end`](Self::end) was called.
    pub(super) async fn ended(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Waits until nobody uses this version, at most `patience`. Call after routing away from it.
    pub(super) async fn drain(&self, patience: Duration) -> bool {
        let empty = async {
            loop {
                let unused = self.unused.notified();
                if self.users.load(Ordering::Acquire) == 0 {
                    return;
                }
                unused.await;
            }
        };
        tokio::time::timeout(patience, empty).await.is_ok()
    }

    /// Ends the worker until somebody asks again, unless it is answering. Returns what resolves when it has ended.
    pub(super) fn unload(&self, reason: &'static str) -> Option<impl Future<Output = ()> + use<>> {
        let bytes = self.measure();
        let worker = {
            let mut state = self.write();
            // Who comes from now on finds it unloaded; who has come before is counted.
            if !matches!(state.stand, Stand::Serving(_)) || self.users.load(Ordering::Acquire) > 0 {
                return None;
            }
            state.since = Instant::now();
            match std::mem::replace(&mut state.stand, Stand::Unloaded(reason)) {
                Stand::Serving(worker) => worker,
                other => {
                    state.stand = other;
                    return None;
                }
            }
        };
        self.unloads.count.fetch_add(1, Ordering::Relaxed);
        let manifest = self.manifest();
        info!(model = %manifest.model, version = %manifest.version, reason, bytes, "version unloaded");
        self.changed.send_replace(());
        let ended = worker.died();
        Some(async move { drop(ended.await) })
    }

    /// Resolves when a request waits until it is loaded again.
    pub(super) async fn wanted(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.wishes.subscribe().wait_for(|wishes| *wishes > 0).await;
    }

    /// Whether it may be unloaded: it is loaded, not pinned, and nobody needs it now.
    pub(super) fn may_go(&self, now: Instant) -> bool {
        !self.pinned
            && self.users.load(Ordering::Acquire) == 0
            && self.worker().is_some()
            && !self.sequences.any(now)
    }

    /// Interpreters that it has now, or gets back when it is loaded again.
    pub(super) fn interpreters(&self) -> usize {
        let worker = self.worker();
        worker.map_or(self.grant.instances, |worker| worker.interpreters())
    }

    pub(super) fn threads(&self) -> usize {
        self.interpreters() * self.grant.threads
    }

    /// When it was last used, or loaded.
    pub(super) fn used(&self) -> Instant {
        self.stats.latest_answer().max(self.read().since)
    }

    /// What its worker takes; 0 without one.
    pub(super) fn measure(&self) -> u64 {
        let Some(worker) = self.worker() else {
            return 0;
        };
        let bytes = worker.memory_bytes();
        if bytes > 0 {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        bytes
    }

    /// What its next worker will take: what the last one did.
    pub(super) fn expected_bytes(&self) -> u64 {
        match self.bytes.load(Ordering::Relaxed) {
            0 => guess(self.manifest()),
            bytes => bytes,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|e| e.into_inner())
    }
}

/// Slots of a worker: requests that may wait or run at once.
pub(super) fn slots(grant: Grant, limits: &Limits) -> usize {
    grant.most * limits.slots_per_instance.max(1)
}

/// Keeps a version loaded while somebody uses it.
#[derive(Debug)]
pub(super) struct Hold(Arc<Loaded>);

impl Hold {
    pub(super) fn of(loaded: &Arc<Loaded>) -> Self {
        loaded.users.fetch_add(1, Ordering::AcqRel);
        Self(loaded.clone())
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.unused.notify_waiters();
        }
    }
}

impl std::ops::Deref for Hold {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.0
    }
}
