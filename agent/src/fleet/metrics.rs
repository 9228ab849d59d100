//! The fleet side's part of the metrics page: link, outbox, trust, certificate, quarantines, audit log.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::board::Board;
use super::credentials::Credentials;
use crate::watch::audit::{Audit, SECURITY};
use crate::watch::page::Page;

/// Numbers that only metrics show: changing them wakes nobody.
#[derive(Debug, Default)]
pub struct Figures {
    pub connections: AtomicU64,
    pub fetched_bytes: AtomicU64,
    pub quarantines: AtomicU64,
    /// Samples that wait, and their bytes.
    pub outbox_samples: AtomicU64,
    pub outbox_bytes: AtomicU64,
    /// Since the agent was started.
    pub sent_samples: AtomicU64,
    /// Since the outbox was made.
    pub lost_samples: AtomicU64,
    /// When the newest metadata that was verified was signed, in seconds since 1970; 0: none was.
    pub metadata_signed_at: AtomicI64,
}

/// Writes the page's part.
pub struct FleetMetrics {
    pub(super) board: Arc<Board>,
    pub(super) audit: Audit,
    pub(super) credentials: Option<Arc<Credentials>>,
}

impl FleetMetrics {
    pub fn write(&self, page: &mut Page) {
        let facts = self.board.facts();
        let figures = &self.board.figures;
        let number = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let mut gauge = |name: &str, help: &str, value: i64| {
            page.gauge(name, help);
            page.value(name, &[], value);
        };
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        gauge(
            "edgeward_broker_connected",
            "1 while there is a connection to the broker.",
            facts.connected.into(),
        );
        gauge(
            "edgeward_outbox_samples",
            "Telemetry samples that wait for the broker.",
            signed(number(&figures.outbox_samples)),
        );
        gauge(
            "edgeward_outbox_bytes",
            "Bytes of the telemetry samples that wait.",
            signed(number(&figures.outbox_bytes)),
        );
        gauge(
            "edgeward_metadata_stale",
            "1 when the fleet's metadata is too old to install anything new.",
            facts.stale.into(),
        );
        gauge(
            "edgeward_warnings",
            "Things that an operator should look at, as the status has them in words.",
            signed(facts.warnings.values().flatten().count() as u64),
        );
        let signed_at = figures.metadata_signed_at.load(Ordering::Relaxed);
        if signed_at > 0 {
            gauge(
                "edgeward_metadata_signed_timestamp_seconds",
                "When the newest verified metadata was signed.",
                signed_at,
            );
        }
        page.gauge(
            "edgeward_certificate_ends_timestamp_seconds",
            "When a certificate of this device ends.",
        );
        if let Some(credentials) = &self.credentials {
            let labels = [("certificate", "device")];
            let ends = credentials.validity().ends.as_second();
            page.value("edgeward_certificate_ends_timestamp_seconds", &labels, ends);
        }
        page.gauge("edgeward_audit_entries", "The length of a log.");
        let labels = [("log", SECURITY.name)];
        page.value("edgeward_audit_entries", &labels, self.audit.head().0);
        for (name, help, figure) in [
            (
                "edgeward_broker_connections",
                "Connections to the broker that came about.",
                &figures.connections,
            ),
            (
                "edgeward_fetched_bytes",
                "Bytes of versions that were fetched.",
                &figures.fetched_bytes,
            ),
            (
                "edgeward_quarantines",
                "Versions that were quarantined.",
                &figures.quarantines,
            ),
            (
                "edgeward_telemetry_sent",
                "Telemetry samples that the broker acknowledged.",
                &figures.sent_samples,
            ),
            (
                "edgeward_telemetry_lost",
                "Telemetry samples that were lost before they were sent.",
                &figures.lost_samples,
            ),
        ] {
            page.counter(name, help);
            page.total(name, &[], number(figure));
        }
    }
}
