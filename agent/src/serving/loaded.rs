//! One loaded version: its worker (or why there is none just now), who uses it, and what it did.
//!
//! `engine` routes to it, `served` serves requests from it, `supervise` replaces its worker after a death.
//! A version that was routed away lives on until nobody uses it any more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use edgeward_models::fleet::status::ActiveVersion;
use edgeward_models::manifest::Manifest;
use tokio::sync::{Notify, watch};

use super::admission::WaitingRoom;
use super::budget::Grant;
use super::error::{RETRY_SOON_SECONDS, ServeError};
use super::evidence::Subject;
use super::poison::Poison;
use super::proof::Proven;
use super::sequences::Sequences;
use super::stats::Stats;
use crate::config::Limits;
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
    state: RwLock<State>,
    /// Requests between `resolve` and their answer.
    users: AtomicUsize,
    unused: Notify,
    ended: watch::Sender<bool>,
}

struct State {
    /// What serves, or served last.
    active: ActiveVersion,
    worker: Result<Worker, Outage>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let worker = self.worker.as_ref().map(|w| w.facts().pid);
        f.debug_struct("State")
            .field("active", &self.active)
            .field("worker", &worker)
            .finish()
    }
}

/// Why there is no worker.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    pub(super) reason: String,
    /// When the next worker is tried.
    pub(super) retry_at: Instant,
}

impl Loaded {
    pub(super) fn new(subject: Subject, grant: Grant, limits: &Limits, proven: Proven) -> Self {
        let slots = slots(grant, limits);
        Self {
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
                worker: Ok(proven.worker),
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

    pub(super) fn ready(&self) -> bool {
        self.read().worker.is_ok()
    }

    pub(super) fn worker(&self) -> Result<Worker, Outage> {
        self.read().worker.clone()
    }

    /// The worker for a request.
    pub(super) fn serving_worker(&self) -> Result<Worker, ServeError> {
        match &self.read().worker {
            Ok(worker) => Ok(worker.clone()),
            Err(outage) => Err(self.not_ready(outage)),
        }
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
        state.worker = Ok(proven.worker);
    }

    pub(super) fn set_down(&self, outage: Outage) {
        self.write().worker = Err(outage);
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

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|e| e.into_inner())
    }
}

/// Slots of a worker: requests that may wait or run at once.
pub(super) fn slots(grant: Grant, limits: &Limits) -> usize {
    grant.instances * limits.slots_per_instance.max(1)
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
