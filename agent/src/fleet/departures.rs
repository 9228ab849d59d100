//! What leaves the device, recorded before it does: the log `departures`.
//!
//! One entry for each message that is handed to the connection with the broker, the last will included: its class, its
//! length and the SHA-256 of its exact payload. Beside those messages the link carries the device's name, topics that
//! are read, and MQTT's own acknowledgements. Nothing else of this program connects anywhere.
//!
//! A message may be recorded and then not leave (the connection was lost); under `residency = "on-site"` none leaves
//! that could not be recorded. Elsewhere a full disk must not keep a device from saying so.

use std::sync::{Mutex, MutexGuard, PoisonError};

use edgeward_models::Digest;
use serde_json::json;
use tracing::warn;

use super::board::chain;
use crate::config::{Config, Residency};
use crate::watch::audit::{Audit, DEPARTURES, New, SideLog};

/// Kept: about 100,000 messages.
const BYTES: u64 = 32 << 20;

pub struct Departures {
    log: Mutex<SideLog>,
    residency: Residency,
}

impl Departures {
    pub fn new(config: &Config, audit: Audit) -> Self {
        let log = SideLog::new(&config.state_directory, DEPARTURES, BYTES, audit);
        Self {
            log: Mutex::new(log),
            residency: config.residency,
        }
    }

    /// A message is about to leave; an error says why it may not.
    pub fn leaving(&self, topic: &str, payload: &[u8]) -> Result<(), String> {
        let class = topic.rsplit('/').next().unwrap_or_default();
        let fields = json!({"class": class, "bytes": payload.len(), "sha256": Digest::of(payload)});
        let mut log = self.log();
        let recorded = log.append([New::now("left", fields)]);
        log.check_point(false);
        match (recorded, self.residency) {
            (Ok(()), _) => Ok(()),
            (Err(problem), Residency::OnSite) => Err(chain(&problem)),
            (Err(problem), Residency::Unrestricted) => {
                warn!(class, problem = %chain(&problem), "a message leaves that could not be recorded");
                Ok(())
            }
        }
    }

    /// Nothing leaves any more.
    pub fn close(&self) {
        self.log().check_point(true);
    }

    fn log(&self) -> MutexGuard<'_, SideLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::audit::verify::{read, verify};

    fn departures(directory: &std::path::Path, residency: Residency) -> Departures {
        let config = Config {
            state_directory: directory.to_owned(),
            residency,
            ..Config::default()
        };
        let audit = Audit::open(directory).expect("audit log");
        Departures::new(&config, audit)
    }

    #[test]
    fn a_message_is_listed_by_class_and_digest_under_the_security_logs_head() {
        let directory = tempfile::tempdir().expect("tempdir");
        let departures = departures(directory.path(), Residency::Unrestricted);
        let left = departures.leaving("edgeward/v1/f/device/d/status", b"payload");
        assert_eq!(left, Ok(()));
        departures.close();
        let mut listed = Vec::new();
        let report = read(directory.path(), DEPARTURES, |entry, _| {
            listed.push(entry.fields.clone());
            Ok(())
        });
        assert!(report.expect("readable").findings.is_empty());
        let digest = Digest::of(b"payload");
        assert_eq!(
            listed,
            [json!({"class": "status", "bytes": 7, "sha256": digest})]
        );
        std::fs::write(directory.path().join(DEPARTURES.file), b"").expect("cut");
        let reports = verify(directory.path(), None).expect("readable");
        assert!(reports.iter().any(|r| !r.findings.is_empty()));
    }

    #[test]
    fn what_cannot_be_listed_stays_where_nothing_may_leave_unlisted() {
        for (residency, leaves) in [(Residency::OnSite, false), (Residency::Unrestricted, true)] {
            let directory = tempfile::tempdir().expect("tempdir");
            let in_the_way = directory.path().join(DEPARTURES.archive);
            std::fs::write(&in_the_way, b"").expect("a file where a directory belongs");
            let departures = departures(directory.path(), residency);
            assert_eq!(departures.leaving("a/status", b"1").is_ok(), leaves);
            std::fs::remove_file(&in_the_way).expect("remove");
            assert_eq!(departures.leaving("a/status", b"2"), Ok(()));
        }
    }
}
