//! What the agent writes down and shows: audit log, metrics, log.

use serde::Deserialize;

/// What the audit log says of requests. Security events are always in it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    pub inference: InferenceRecords,
    /// Inference records that are kept, in bytes; the oldest go first.
    pub inference_bytes: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            inference: InferenceRecords::PerCallerMinute,
            inference_bytes: 64 << 20,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InferenceRecords {
    /// One for each request.
    Every,
    /// Counts for each caller, model and version, each minute in which there were any.
    PerCallerMinute,
    /// None.
    Off,
}

/// The metrics page.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Other servers under whose names the models' metrics are shown once more.
    pub names_of: Vec<NamesOf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamesOf {
    Triton,
    TensorflowServing,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A `tracing` filter such as `info` or `edgeward_agent::fleet=debug,info`.
    pub filter: String,
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}
