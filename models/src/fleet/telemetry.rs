//! Telemetry: the closed list of what may leave a device besides its status.
//!
//! Numbers and names of models only. There is no field that could hold a tensor, a request or free text, and
//! adding one is a change of this file, which a security officer can read.

use serde::{Deserialize, Serialize};

use crate::name::{DeviceId, ModelName, Version};

pub const FORMAT: u32 = 1;

/// Samples as they travel: encoded, signed, compressed with zstd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TelemetryBatch {
    pub format: u32,
    pub device: DeviceId,
    pub boot_id: String,
    pub samples: Vec<Sample>,
    /// Samples that the outbox's caps have discarded since it was made.
    pub dropped: u64,
}

/// One interval on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Counts up without a gap on one device, across restarts: a repeated one is a duplicate.
    pub sequence: u64,
    /// Seconds since 1970 at the interval's end, by the device's clock.
    pub at: i64,
    pub interval_seconds: u32,
    pub models: Vec<ModelSample>,
    pub device: DeviceSample,
}

/// What one version did in the interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSample {
    pub model: ModelName,
    pub version: Version,
    pub succeeded: u64,
    pub refused: u64,
    pub failed: u64,
    pub crashes: u64,
    pub queue_p50_us: u64,
    pub queue_p99_us: u64,
    pub invoke_p50_us: u64,
    pub invoke_p99_us: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceSample {
    pub cpu_percent: f32,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub agent_resident_bytes: u64,
    pub disk_free_bytes: u64,
}
