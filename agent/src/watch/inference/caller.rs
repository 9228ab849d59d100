//! Who asks for inferences, and what each of them asked for.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgeward_models::Manifest;

use super::rate::{Bucket, TooFast};
use crate::config::Rate;
use crate::serving::Outcome;

/// How a caller is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// `uid`, `certificate`, `token`, or `anyone` where a door asks nobody.
    pub kind: &'static str,
    /// The number of the user, or the name of the certificate or token.
    pub name: String,
}

impl Who {
    pub fn uid(uid: u32) -> Self {
        Self {
            kind: "uid",
            name: uid.to_string(),
        }
    }

    pub fn certificate(name: String) -> Self {
        Self {
            kind: "certificate",
            name,
        }
    }

    pub fn anyone() -> Self {
        Self {
            kind: "anyone",
            name: String::new(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => f.write_str(self.kind),
            name => write!(f, "{}:{name}", self.kind),
        }
    }
}

/// A caller with its account. One lock a request, which nobody holds for long.
#[derive(Debug)]
pub struct Caller {
    pub(super) who: Who,
    /// `None`: it may ask as fast as it likes.
    bucket: Option<Bucket>,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// Since the agent was started.
    total: Usage,
    /// Since they were last taken.
    recent: Vec<Line>,
}

/// One version, as one caller used it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Absent for requests that named no model that is here.
    pub(super) manifest: Option<Arc<Manifest>>,
    pub(super) usage: Usage,
    pub(super) outcomes: [u64; Outcome::ALL.len()],
}

/// What requests cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub requests: u64,
    /// Running the model.
    pub compute: Duration,
    /// Bodies as they were read, and tensors as they were answered.
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.compute += other.compute;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
    }
}

impl Caller {
    pub(super) fn new(who: Who, rate: Option<Rate>) -> Self {
        Self {
            who,
            bucket: rate.map(|rate| Bucket::new(rate, Instant::now())),
            account: Mutex::default(),
        }
    }

    /// Whether it may ask for an inference now.
    pub(super) fn admit(&self) -> Result<(), TooFast> {
        let Some(bucket) = &self.bucket else {
            return Ok(());
        };
        let Rate {
            requests_per_second: per_second,
            burst,
        } = bucket.rate();
        bucket.take(Instant::now()).map_err(|retry_after| TooFast {
            caller: self.who.to_string(),
            per_second,
            burst,
            retry_after,
        })
    }

    /// How often it was told that it asks too fast.
    pub(super) fn refused(&self) -> u64 {
        self.bucket.as_ref().map_or(0, Bucket::refused)
    }

    pub(super) fn count(&self, manifest: Option<&Arc<Manifest>>, usage: Usage, outcome: Outcome) {
        let mut account = self.account();
        account.total.add(usage);
        let same = |line: &Line| match (&line.manifest, manifest) {
            (Some(a), Some(b)) => {
                Arc::ptr_eq(a, b) || (a.model == b.model && a.version == b.version)
            }
            (None, None) => true,
            _ => false,
        };
        let place = account.recent.iter().position(same);
        let place = place.unwrap_or_else(|| {
            account.recent.push(Line {
                manifest: manifest.cloned(),
                usage: Usage::default(),
                outcomes: Default::default(),
            });
            account.recent.len() - 1
        });
        let line = &mut account.recent[place];
        line.usage.add(usage);
        line.outcomes[outcome as usize] += 1;
    }

    pub(super) fn take_recent(&self) -> Vec<Line> {
        std::mem::take(&mut self.account().recent)
    }

    pub(super) fn total(&self) -> Usage {
        self.account().total
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
