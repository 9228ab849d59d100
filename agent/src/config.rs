//! The agent's configuration: one TOML file, read once, passed on and never global.
//!
//! Unknown keys are errors, units stand in the names, and every field has a default but those without a
//! sensible one. `agent/agent.example.toml` shows all of it and is read by a test.

mod check;
mod doors;
mod explain;
mod fleet;
mod limits;
mod maintenance;
mod models;
mod rates;
mod records;
mod tflite;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeward_models::ModelName;
use edgeward_models::name::DelegateName;
use serde::Deserialize;

pub use check::Problem;
pub use doors::{TlsDoor, Token, UnixDoor};
pub use explain::{Located, explain};
pub use fleet::{Fleet, Telemetry, TelemetryLevel, Trust};
pub use limits::Limits;
pub use maintenance::Maintenance;
pub use models::{Batching, ModelSettings};
pub use rates::{CallerRates, Rate};
pub use records::{Audit, InferenceRecords, Log, LogFormat, Metrics, NamesOf};
pub use tflite::{DelegateCache, DelegateProfile, Power, Sandbox, Tflite};

/// Where the configuration lives when no `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/edgeward/agent.toml";

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Model versions, trust, pointers, audit log. Belongs to one running agent.
    pub state_directory: PathBuf,
    /// The socket of `edgeward import` and `status`, for its group as well. Absent: in the state directory, for
    /// root and the agent's own user.
    pub admin_socket: Option<PathBuf>,
    pub residency: Residency,
    pub unix: UnixDoor,
    /// Absent: nothing listens on the network.
    pub tls: Option<TlsDoor>,
    pub limits: Limits,
    pub caller_rates: CallerRates,
    pub tflite: Tflite,
    pub power: Power,
    /// Delegate libraries of this device, by the names that manifests use.
    pub delegates: BTreeMap<DelegateName, DelegateProfile>,
    /// How this device serves single models, by their names.
    pub models: BTreeMap<ModelName, ModelSettings>,
    pub sandbox: Sandbox,
    /// Absent until the device is enrolled and told to connect: the agent then serves what it has.
    pub fleet: Option<Fleet>,
    /// When new versions may be taken.
    pub maintenance: Maintenance,
    pub trust: Trust,
    pub telemetry: Telemetry,
    pub audit: Audit,
    pub metrics: Metrics,
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_directory: "/var/lib/edgeward".into(),
            admin_socket: None,
            residency: Residency::Unrestricted,
            unix: UnixDoor::default(),
            tls: None,
            limits: Limits::default(),
            caller_rates: CallerRates::default(),
            tflite: Tflite::default(),
            power: Power::default(),
            delegates: BTreeMap::new(),
            models: BTreeMap::new(),
            sandbox: Sandbox::Enforced,
            fleet: None,
            maintenance: Maintenance::default(),
            trust: Trust::default(),
            telemetry: Telemetry::default(),
            audit: Audit::default(),
            metrics: Metrics::default(),
            log: Log::default(),
        }
    }
}

/// How strictly data stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residency {
    /// Inference data stays here; statuses say in words what is wrong, and a full disk keeps nothing from being said.
    Unrestricted,
    /// Nothing leaves that is not in the log of departures, and no words: names, numbers and states only.
    OnSite,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the configuration {path} is wrong (edgeward check-config shows all problems):\n{message}"
    )]
    Parse { path: PathBuf, message: String },
    #[error(
        "the configuration {path}: {key}: {problem} (edgeward check-config shows all problems)"
    )]
    Value {
        path: PathBuf,
        key: String,
        problem: String,
    },
}

impl Config {
    /// Reads a configuration file. The error shows the line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            message: e.to_string(),
        })?;
        match config.limits.check().into_iter().next() {
            None => Ok(config),
            Some(problem) => Err(ConfigError::Value {
                path: path.to_owned(),
                key: problem.key.join("."),
                problem: problem.text,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EXAMPLE: &str = include_str!("../agent.example.toml");

    #[test]
    fn the_example_shows_the_defaults() {
        let example: Config = toml::from_str(EXAMPLE).expect("example");
        assert_eq!(example, Config::default());
    }

    #[test]
    fn what_the_example_comments_out_is_right_too() {
        // A commented line that is TOML is a key or a table header; the others are sentences.
        let is_toml = |line: &str| {
            line.starts_with('[')
                || line.split_once(" = ").is_some_and(|(key, _)| {
                    key.bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                })
        };
        let text: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if is_toml(rest) => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let all: Config = toml::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let fleet = Fleet {
            broker_host: Some("broker.example.org".to_owned()),
            broker_port: Some(8883),
            ..Fleet::default()
        };
        assert_eq!(all.fleet, Some(fleet));
        let tls = all.tls.expect("tls");
        assert_eq!(tls.tokens[0].name, "pacs");
        assert!(tls.client_ca.is_some() && !tls.require_both);
        assert_eq!(all.unix.group.as_deref(), Some("edgeward-clients"));
        let npu = &all.delegates[&"npu".parse().expect("name")];
        assert_eq!(npu.devices, [PathBuf::from("/dev/galcore")]);
        assert_eq!(npu.options.len(), 2);
        assert_eq!(npu.cache, Some(DelegateCache::default()));
        let rates = &all.caller_rates;
        let (pacs, other) = (rates.of("token:pacs"), rates.of("uid:1000"));
        assert_eq!(pacs.map(|rate| rate.requests_per_second), Some(200));
        assert_eq!(
            other.map(|rate| (rate.requests_per_second, rate.burst)),
            Some((50, 100))
        );
        let digits = &all.models[&"digits".parse().expect("name")];
        assert_eq!(digits.idle_limit(), Some(Duration::from_secs(600)));
        assert!(!digits.pinned);
        assert_eq!(all.maintenance.windows.len(), 2);
        assert!(all.maintenance.time_zone.is_some());
        let batching = digits.batching.as_ref().expect("batching");
        assert_eq!(
            (batching.max_delay_us, batching.preferred_sizes.len()),
            (0, 0)
        );
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, "[limits]\nmax_body = 5\n").expect("file");
        let error = Config::load(&path).expect_err("unknown key").to_string();
        assert!(
            error.contains("line 2") && error.contains("max_body"),
            "{error}"
        );
        std::fs::write(&path, "[limits]\nmax_connections = 0\n").expect("file");
        let error = Config::load(&path).expect_err("no room").to_string();
        assert!(error.contains("limits.max_connections"), "{error}");
        let missing = Config::load(&directory.path().join("none")).expect_err("missing");
        assert!(matches!(missing, ConfigError::Read { .. }));
    }
}
