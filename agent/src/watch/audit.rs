//! The audit log. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::path::Path;

use edgeward_models::Digest;
use edgeward_models::durable::DurableError;

/// The append-only, hash-chained log of security events. Cheap to clone.
#[derive(Clone)]
pub struct Audit {}

impl Audit {
    /// Opens (and checks the chain of) `DIRECTORY/audit.log`.
    pub fn open(directory: &Path) -> Result<Self, DurableError> {
        todo!()
    }

    /// Appends one security event and fsyncs it: call before the event takes effect. `event` is a short
    /// constant such as `version-activated`; `fields` hold names and digests, never tensors or secrets.
    pub fn record(
        &self,
        event: &'static str,
        fields: serde_json::Value,
    ) -> Result<(), DurableError> {
        todo!()
    }

    /// Number of entries and the digest of the newest.
    pub fn head(&self) -> (u64, Digest) {
        todo!()
    }
}
