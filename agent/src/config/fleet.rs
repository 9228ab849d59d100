//! The fleet: its broker, what is believed of it, what it is told.

use serde::Deserialize;

/// The link to the fleet's broker. Identity and trust come from `edgeward enroll`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// Overrides the broker of the enrolment.
    pub broker_host: Option<String>,
    pub broker_port: Option<u16>,
    pub keep_alive_seconds: u16,
    /// The largest MQTT packet taken or sent, in bytes.
    pub max_packet_bytes: u32,
    /// Bytes of chunks asked for and not yet there.
    pub fetch_window_bytes: usize,
    /// How long silence after a SUBACK means that a retained topic is empty.
    pub quiet_period_ms: u64,
    /// The repository is looked at again after this time even without a message.
    pub reconcile_seconds: u64,
    /// Free space that an installation must leave on the disk.
    pub disk_reserve_bytes: u64,
    /// Installed versions kept per model beside the active one.
    pub keep_versions: usize,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            broker_host: None,
            broker_port: None,
            keep_alive_seconds: 30,
            max_packet_bytes: 256 << 10,
            fetch_window_bytes: 512 << 10,
            quiet_period_ms: 500,
            reconcile_seconds: 300,
            disk_reserve_bytes: 64 << 20,
            keep_versions: 2,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// Metadata older than this makes the device `stale`: it serves on and takes nothing new. Air-gapped
    /// sites that are visited once a year say 365.
    pub stale_after_days: u32,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            stale_after_days: 30,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    pub level: TelemetryLevel,
    pub interval_seconds: u32,
    /// Samples kept while the broker is away, in bytes; the oldest go first and are counted.
    pub outbox_bytes: u64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            level: TelemetryLevel::Health,
            interval_seconds: 60,
            outbox_bytes: 16 << 20,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TelemetryLevel {
    /// Nothing but the status.
    Off,
    /// Device resources.
    Health,
    /// Resources and per-version counts and latencies.
    Metrics,
}
