//! Inference records: who asked which version of which model, when, and what came of it.
//!
//! The doors make an [`Inference`] for each request; when it is dropped it is counted on its caller's account and,
//! with `[audit] inference = "every"`, handed to the [`writer`], which writes the log `inferences` on a thread of its
//! own. A request pays for three short locks and allocates nothing.
//!
//! What a power cut or a kill takes: with `every` at most the last second or the last 1,000 records, whichever is
//! less; with `per-caller-minute` at most the last minute. A log that cannot be written as fast as requests come, or
//! not at all, loses records, never requests; how many stands in the log ([`writer::LOST_EVENT`]).
//!
//! A record holds names that the configuration, the kernel or the fleet gave (callers, models, versions), the time,
//! an outcome, and the request's own id if it has the shape of one ([`RequestId`]). There is no field for a tensor.

mod caller;
mod rate;
mod request_id;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use edgeward_models::Manifest;

pub use caller::{Caller, Usage, Who};
pub use rate::TooFast;
pub use request_id::RequestId;
use writer::Writer;

use super::audit::Audit;
use super::page::Page;
use crate::config::{CallerRates, Config, InferenceRecords};
use crate::serving::Outcome;

/// Callers that are told apart; further ones are counted together.
const MAX_CALLERS: usize = 128;
/// Records that wait for the writer; beyond that they are lost and counted.
const MAX_WAITING: usize = 16 * 1024;
/// Records are written at the latest when there are so many, or when the oldest is so old.
const COMMIT_RECORDS: usize = 1000;
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// Accounts are settled (and, with `per-caller-minute`, recorded) this long after the first request on them.
const MINUTE: Duration = Duration::from_secs(60);

/// Takes down what was asked. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    every: bool,
    callers: Mutex<Vec<Arc<Caller>>>,
    rates: CallerRates,
    others: Arc<Caller>,
    inbox: Mutex<Inbox>,
    /// Told when there is something to wait for, or enough of it.
    news: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What waits for the writer.
#[derive(Default)]
struct Inbox {
    records: Vec<Record>,
    lost: u64,
    /// When the oldest record came, and the first request that is on no settled account.
    oldest: Option<Instant>,
    unsettled: Option<Instant>,
    stop: bool,
}

/// One request that is over.
struct Record {
    caller: Arc<Caller>,
    manifest: Option<Arc<Manifest>>,
    at: SystemTime,
    outcome: Outcome,
    id: Option<RequestId>,
}

impl Recorder {
    /// Opens the log, if there is to be one, and starts its writer. `audit` gets its checkpoints.
    pub fn start(config: &Config, audit: Audit) -> anyhow::Result<Self> {
        let mode = config.audit.inference;
        let rates = config.caller_rates.clone();
        let shared = Arc::new(Shared {
            every: mode == InferenceRecords::Every,
            callers: Mutex::default(),
            others: {
                let who = Who {
                    kind: "others",
                    name: String::new(),
                };
                let rate = rates.of(&who.to_string());
                Arc::new(Caller::new(who, rate))
            },
            rates,
            inbox: Mutex::default(),
            news: Condvar::new(),
            thread: Mutex::default(),
        });
        let writer = Writer::new(config, audit);
        let handed = shared.clone();
        let thread = std::thread::Builder::new()
            .name("inference-log".to_owned())
            .spawn(move || writer.run(&handed))
            .context("cannot start the thread of the inference log")?;
        *lock(&shared.thread) = Some(thread);
        Ok(Self { shared })
    }

    /// The account of a caller.
    pub fn caller(&self, kind: &'static str, name: &str) -> Arc<Caller> {
        let mut callers = lock(&self.shared.callers);
        let known = callers
            .iter()
            .find(|c| c.who.kind == kind && c.who.name == name);
        if let Some(known) = known {
            return known.clone();
        }
        if callers.len() >= MAX_CALLERS {
            return self.shared.others.clone();
        }
        let who = Who {
            kind,
            name: name.to_owned(),
        };
        let rate = self.shared.rates.of(&who.to_string());
        let caller = Arc::new(Caller::new(who, rate));
        callers.push(caller.clone());
        caller
    }

    /// A request that begins; it is recorded when the result is dropped.
    pub fn begin(&self, caller: Arc<Caller>) -> Inference {
        Inference {
            shared: self.shared.clone(),
            caller,
            manifest: None,
            usage: Usage {
                requests: 1,
                ..Usage::default()
            },
            outcome: Outcome::Cancelled,
            id: None,
        }
    }

    /// Writes what is there and ends the writer. Blocks while it writes.
    pub fn close(&self) {
        lock(&self.shared.inbox).stop = true;
        self.shared.news.notify_one();
        let thread = lock(&self.shared.thread).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of inference records ended in a panic");
        }
    }

    /// Each caller's account since the agent was started.
    pub fn write_metrics(&self, page: &mut Page) {
        let accounts: Vec<_> = self
            .shared
            .callers()
            .iter()
            .map(|caller| (caller.who.to_string(), caller.total()))
            .collect();
        page.counter(
            "edgeward_caller_refusals",
            "Inference requests of a caller that asked faster than it may.",
        );
        for caller in self.shared.callers() {
            let name = caller.who.to_string();
            let labels = [("caller", name.as_str())];
            page.total("edgeward_caller_refusals", &labels, caller.refused());
        }
        page.counter("edgeward_caller_requests", "Inference requests by caller.");
        for (caller, total) in &accounts {
            let labels = [("caller", caller.as_str())];
            page.total("edgeward_caller_requests", &labels, total.requests);
        }
        page.counter(
            "edgeward_caller_compute_seconds",
            "Running models for a caller.",
        );
        for (caller, total) in &accounts {
            let labels = [("caller", caller.as_str())];
            let seconds = total.compute.as_secs_f64();
            page.total("edgeward_caller_compute_seconds", &labels, seconds);
        }
        page.counter(
            "edgeward_caller_bytes",
            "Bodies read from a caller, and tensors answered to it.",
        );
        for (caller, total) in &accounts {
            for (direction, bytes) in [
                ("received", total.received_bytes),
                ("sent", total.sent_bytes),
            ] {
                let labels = [("caller", caller.as_str()), ("direction", direction)];
                page.total("edgeward_caller_bytes", &labels, bytes);
            }
        }
    }
}

impl Shared {
    fn callers(&self) -> Vec<Arc<Caller>> {
        let mut callers = lock(&self.callers).clone();
        callers.push(self.others.clone());
        callers
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    fn ended(&self, inference: &Inference) {
        let Inference {
            caller, manifest, ..
        } = inference;
        caller.count(manifest.as_ref(), inference.usage, inference.outcome);
        let mut inbox = self.inbox();
        let mut tell = inbox.unsettled.is_none();
        if self.every {
            match inbox.records.len() {
                MAX_WAITING.. => inbox.lost += 1,
                waiting => {
                    tell |= waiting == 0 || waiting + 1 == COMMIT_RECORDS;
                    inbox.records.push(Record {
                        caller: caller.clone(),
                        manifest: manifest.clone(),
                        at: SystemTime::now(),
                        outcome: inference.outcome,
                        id: inference.id,
                    });
                }
            }
        }
        if tell {
            let now = Instant::now();
            inbox.unsettled.get_or_insert(now);
            if !inbox.records.is_empty() {
                inbox.oldest.get_or_insert(now);
            }
            drop(inbox);
            self.news.notify_one();
        }
    }
}

/// One request on its way; recorded when it is dropped.
pub struct Inference {
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    manifest: Option<Arc<Manifest>>,
    usage: Usage,
    outcome: Outcome,
    id: Option<RequestId>,
}

impl Inference {
    /// Whether its caller may ask now, or asks too fast.
    pub fn admit(&self) -> Result<(), TooFast> {
        self.caller.admit()
    }

    /// The version that it is for.
    pub fn about(&mut self, manifest: &Arc<Manifest>) {
        self.manifest = Some(manifest.clone());
    }

    /// What its caller calls it, and how much there is to read of it.
    pub fn read(&mut self, id: Option<&str>, bytes: usize) {
        self.id = id.and_then(RequestId::of);
        self.usage.received_bytes = bytes as u64;
    }

    /// What it cost.
    pub fn answered(&mut self, compute: Duration, bytes: usize) {
        self.usage.compute = compute;
        self.usage.sent_bytes = bytes as u64;
    }

    /// What came of it. Without a word its caller left.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Inference {
    fn drop(&mut self) {
        self.shared.ended(self);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
