//! The agent's configuration: one TOML file, read once, passed on and never global.
//!
//! Unknown keys are errors, units stand in the names, and every field has a default but those without a
//! sensible one. `agent/agent.example.toml` shows all of it and is read by a test.

mod check;
mod explain;
mod maintenance;
mod models;
mod rates;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgeward_models::ModelName;
use edgeward_models::name::DelegateName;
use serde::Deserialize;

pub use check::Problem;
pub use explain::{Located, explain};
pub use maintenance::Maintenance;
pub use models::{Batching, ModelSettings};
pub use rates::{CallerRates, Rate};

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

/// The local socket for inference. Ignored where systemd passes one named `edgeward.socket`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnixDoor {
    pub path: PathBuf,
    /// Octal, as text: who may open the socket at all.
    pub mode: String,
    /// Group name or number that the socket belongs to; absent: the agent's own.
    pub group: Option<String>,
    /// Users (names or numbers) whose requests are answered. Both lists empty: whoever can open the socket.
    pub allow_users: Vec<String>,
    /// Groups (names or numbers) whose members' requests are answered (primary or supplementary).
    pub allow_groups: Vec<String>,
}

impl Default for UnixDoor {
    fn default() -> Self {
        Self {
            path: "/run/edgeward/edgeward.sock".into(),
            mode: "0660".to_owned(),
            group: None,
            allow_users: Vec::new(),
            allow_groups: Vec::new(),
        }
    }
}

/// The HTTPS listener.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsDoor {
    pub listen: SocketAddr,
    /// PEM: the server's certificate chain.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub private_key: PathBuf,
    /// PEM: client certificates must come from this authority.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Bearer tokens, as `edgeward token` makes them: a name and the SHA-256 of the token.
    #[serde(default)]
    pub tokens: Vec<Token>,
    /// With both `client_ca` and `tokens`: either is enough, unless this is true.
    #[serde(default)]
    pub require_both: bool,
    /// Must say `anyone-who-can-connect-may-infer` to listen without client certificates and tokens.
    #[serde(default)]
    pub without_authentication: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Whose it is: stands in logs and the audit log.
    pub name: String,
    /// SHA-256 of the token, 64 hexadecimal digits.
    pub sha256: String,
}

/// What one caller, or all of them, may ask of the agent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of one request; a model's own limit may be lower.
    pub max_body_bytes: u64,
    /// Memory for the bodies of all requests together; beyond it a request is answered 429.
    pub max_bodies_bytes: u64,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// To send a request's headers, from its first byte or the connection's start.
    pub header_timeout_ms: u64,
    /// Between requests of one connection, and for a client to take its answer.
    pub idle_timeout_ms: u64,
    /// To send a request's body.
    pub body_timeout_ms: u64,
    /// A request waits this long for a free slot before it is answered 429.
    pub queue_timeout_ms: u64,
    /// Deadline of a request that names none.
    pub default_deadline_ms: u64,
    /// The longest deadline a request may ask for.
    pub max_deadline_ms: u64,
    /// Requests that may wait or run at once, per interpreter.
    pub slots_per_instance: usize,
    /// On shutdown, requests in flight get this long. (A version that another one follows gets as long as its
    /// requests' deadlines.)
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 64 << 20,
            max_bodies_bytes: 256 << 20,
            max_header_bytes: 16 << 10,
            max_connections: 1024,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 300_000,
            body_timeout_ms: 30_000,
            queue_timeout_ms: 100,
            default_deadline_ms: 30_000,
            max_deadline_ms: 300_000,
            slots_per_instance: 16,
            drain_timeout_ms: 10_000,
        }
    }
}

impl Limits {
    pub fn queue_timeout(&self) -> Duration {
        Duration::from_millis(self.queue_timeout_ms)
    }

    pub fn default_deadline(&self) -> Duration {
        Duration::from_millis(self.default_deadline_ms)
    }

    pub fn max_deadline(&self) -> Duration {
        Duration::from_millis(self.max_deadline_ms)
    }

    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// What speed may cost.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Power {
    /// While requests follow each other closely, idle cores do not sleep (`/dev/cpu_dma_latency`).
    pub awake_under_load: bool,
}

impl Default for Power {
    fn default() -> Self {
        Self {
            awake_under_load: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tflite {
    /// The TFLite C library.
    pub library: PathBuf,
    /// Most anonymous memory of one worker, in bytes (RLIMIT_DATA); 0: no limit.
    pub worker_memory_bytes: u64,
    /// Most memory of all workers together, as measured, in bytes; 0: no limit.
    pub memory_budget_bytes: u64,
    /// Cores that all workers share; 0: every core that this process may use.
    pub cores: usize,
    /// How long a worker may take from start to ready.
    pub load_timeout_ms: u64,
}

impl Default for Tflite {
    fn default() -> Self {
        Self {
            library: "/usr/lib/edgeward/libtensorflowlite_c.so".into(),
            worker_memory_bytes: 2 << 30,
            memory_budget_bytes: 0,
            cores: 0,
            load_timeout_ms: 60_000,
        }
    }
}

/// A delegate library with the external-delegate ABI, and what its worker may touch.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateProfile {
    pub library: PathBuf,
    /// Further files and directories the driver reads.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Device nodes it opens, ioctl included.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// Options that override those of manifests.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The driver opens files after loading: keep file opening (within the paths above) possible.
    #[serde(default)]
    pub opens_files_late: bool,
    /// What the driver compiles is kept for the next start.
    #[serde(default)]
    pub cache: Option<DelegateCache>,
}

/// A directory for each model in which a driver keeps what it compiled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DelegateCache {
    /// Of one model, all files together.
    pub max_bytes: u64,
    /// How long a worker may take from start to ready, and then for an invoke until it is proven, while the
    /// directory is empty.
    pub first_load_timeout_ms: u64,
}

impl Default for DelegateCache {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            first_load_timeout_ms: 600_000,
        }
    }
}

/// What happens when the kernel cannot put a worker into its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// The worker does not start.
    #[default]
    Enforced,
    /// It starts, and status, metrics and the log say loudly what is missing.
    BestEffort,
}

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
