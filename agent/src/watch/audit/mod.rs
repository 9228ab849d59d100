//! The audit log: what happened to this device's trust and models, in an order that cannot be changed unseen.
//!
//! One JSON object a line, each holding the SHA-256 of the line before it. A status carries length and head
//! of the chain to the operator, so that a shortened or rewritten log is seen from outside. Security events
//! are fsynced before they take effect. The log is bounded: a full file is archived ([`segment`]), the chain goes
//! on in the next, and the oldest is removed when there are too many, which the log itself records ([`chain`]).
//! Beside the security log there are others of the same form ([`book`]). [`verify`] looks at all of them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgeward_models::Digest;
use edgeward_models::durable::DurableError;
use serde_json::{Value, json};

pub use book::{Book, CHECKPOINT_EVENT, DEPARTURES, INFERENCES, SECURITY, Which};
pub use chain::{Chain, Limits, New};
pub use segment::Entry;
pub use side_log::SideLog;

mod book;
mod chain;
mod segment;
mod side_log;
#[cfg(test)]
mod tests;
pub mod verify;

/// 32 MiB of security events: about 100,000 entries.
const SECURITY_BYTES: u64 = 32 << 20;

/// The append-only, hash-chained log of security events. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    chain: Arc<Mutex<Chain>>,
}

impl Audit {
    /// Opens the security log of a state directory and checks its chain. It belongs to one process at a time.
    pub fn open(directory: &Path) -> Result<Self, DurableError> {
        Self::open_with(directory, Limits::of_bytes(SECURITY_BYTES))
    }

    fn open_with(directory: &Path, limits: Limits) -> Result<Self, DurableError> {
        let chain = Chain::open(directory, SECURITY, limits)?;
        Ok(Self {
            chain: Arc::new(Mutex::new(chain)),
        })
    }

    /// Appends one security event and fsyncs it: call before the event takes effect. `event` is a short
    /// constant such as `version-activated`; `fields` hold names and digests, never tensors or secrets.
    pub fn record(&self, event: &'static str, fields: Value) -> Result<(), DurableError> {
        self.lock().append([New::now(event, fields)])
    }

    /// Puts the head of another log under the signatures that cover this one.
    pub fn checkpoint(&self, of: Book, (entries, head): (u64, Digest)) -> Result<(), DurableError> {
        let fields = json!({"log": of.name, "entries": entries, "head": head});
        self.record(CHECKPOINT_EVENT, fields)
    }

    /// Number of entries and the digest of the newest.
    pub fn head(&self) -> (u64, Digest) {
        self.lock().head()
    }

    fn lock(&self) -> MutexGuard<'_, Chain> {
        // A panic while the lock was held cannot leave a half-changed log: fields change after the append.
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
