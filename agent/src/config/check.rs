//! What is wrong with a configuration that reads well: values that contradict each other or this device.
//!
//! `edgeward check-config` shows every problem, [`super::explain`] adds the lines. The checks look at the
//! device (files, users, groups) with the rights of whoever runs them. The agent itself runs only those of the
//! limits: it meets the other facts when it opens its doors and starts its workers, and says so then.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use edgeward_models::name::DelegateName;

use super::{
    Config, DelegateProfile, Fleet, Limits, ModelSettings, Rate, Tflite, TlsDoor, UnixDoor,
};
use crate::api::{peers, tls, unix};
use crate::worker::PLACEHOLDER;

/// One wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Keys from the outermost table to the value; entries of a list by their number.
    pub key: Vec<String>,
    /// What is wrong and what to do about it.
    pub text: String,
}

/// Collects problems, table by table.
#[derive(Default)]
struct Table {
    path: Vec<String>,
    problems: Vec<Problem>,
}

impl Table {
    /// Turns to another table.
    fn at(&mut self, path: &[&str]) -> &mut Self {
        self.path = path.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    fn wrong(&mut self, key: &str, text: impl Into<String>) {
        let mut path = self.path.clone();
        path.extend(
            key.split('.')
                .filter(|part| !part.is_empty())
                .map(str::to_owned),
        );
        self.problems.push(Problem {
            key: path,
            text: text.into(),
        });
    }

    fn result<T>(&mut self, key: &str, result: anyhow::Result<T>) {
        if let Err(error) = result {
            self.wrong(key, format!("{error:#}"));
        }
    }

    fn within<T: PartialOrd + std::fmt::Display>(
        &mut self,
        key: &str,
        value: T,
        least: T,
        most: T,
    ) {
        if value < least || value > most {
            self.wrong(key, format!("{value} is not between {least} and {most}"));
        }
    }

    fn absolute(&mut self, key: &str, path: &Path) -> bool {
        if path.is_absolute() {
            return true;
        }
        self.wrong(key, format!("{} must be an absolute path", path.display()));
        false
    }

    fn readable_file(&mut self, key: &str, path: &Path) {
        if !self.absolute(key, path) {
            return;
        }
        match std::fs::File::open(path).and_then(|file| file.metadata()) {
            Ok(found) if found.is_file() => {}
            Ok(_) => self.wrong(key, format!("{} is not a file", path.display())),
            Err(error) => self.wrong(key, format!("cannot read {}: {error}", path.display())),
        }
    }

    fn existing(&mut self, key: &str, path: &Path) {
        if self.absolute(key, path)
            && let Err(error) = std::fs::metadata(path)
        {
            self.wrong(key, format!("{}: {error}", path.display()));
        }
    }
}

impl Config {
    /// Everything that is wrong with these values on this device.
    pub fn check(&self) -> Vec<Problem> {
        let mut table = Table::default();
        check_state(&self.state_directory, table.at(&[]));
        if let Some(path) = &self.admin_socket {
            check_socket("admin_socket", path, &mut table);
        }
        check_unix(&self.unix, table.at(&["unix"]));
        if let Some(door) = &self.tls {
            check_tls(door, table.at(&["tls"]));
        }
        check_limits(&self.limits, table.at(&["limits"]));
        if let Some(rate) = &self.caller_rates.each {
            check_rate(rate, table.at(&["caller_rates", "each"]));
        }
        for (caller, rate) in &self.caller_rates.named {
            check_rate(rate, table.at(&["caller_rates", "named", caller]));
        }
        check_tflite(&self.tflite, table.at(&["tflite"]));
        for (name, profile) in &self.delegates {
            check_delegate(name, profile, table.at(&["delegates", name.as_str()]));
        }
        for (name, settings) in &self.models {
            check_model(settings, table.at(&["models", name.as_str()]));
        }
        if let Some(fleet) = &self.fleet {
            check_fleet(fleet, table.at(&["fleet"]));
        }
        let trust = table.at(&["trust"]);
        trust.within("stale_after_days", self.trust.stale_after_days, 1, 3650);
        let telemetry = table.at(&["telemetry"]);
        telemetry.within(
            "interval_seconds",
            self.telemetry.interval_seconds,
            1,
            86_400,
        );
        telemetry.within(
            "outbox_bytes",
            self.telemetry.outbox_bytes,
            64 << 10,
            1 << 30,
        );
        let audit = table.at(&["audit"]);
        audit.within(
            "inference_bytes",
            self.audit.inference_bytes,
            2 << 20,
            1 << 40,
        );
        let filter = tracing_subscriber::EnvFilter::builder().parse(&self.log.filter);
        if let Err(error) = filter {
            let text = format!("{:?} is not a log filter: {error}", self.log.filter);
            table.at(&["log"]).wrong("filter", text);
        }
        table.problems
    }
}

impl Limits {
    /// What is wrong with these limits anywhere: the agent does not start with a limit of no time or no room.
    pub(super) fn check(&self) -> Vec<Problem> {
        let mut table = Table::default();
        check_limits(self, table.at(&["limits"]));
        table.problems
    }
}

fn check_state(directory: &Path, table: &mut Table) {
    // It need not be there yet: the agent makes it.
    if table.absolute("state_directory", directory) && directory.exists() && !directory.is_dir() {
        let text = format!("{} is not a directory", directory.display());
        table.wrong("state_directory", text);
    }
}

fn check_socket(key: &str, path: &Path, table: &mut Table) {
    table.absolute(key, path);
    if path.as_os_str().len() > unix::MAX_PATH_BYTES {
        let text = format!(
            "a socket's path may have {} bytes at most",
            unix::MAX_PATH_BYTES
        );
        table.wrong(key, text);
    }
}

fn check_unix(door: &UnixDoor, table: &mut Table) {
    check_socket("path", &door.path, table);
    if unix::parse_mode(&door.mode).is_none() {
        let text = format!("{:?} is no octal mode such as \"0660\"", door.mode);
        table.wrong("mode", text);
    }
    if let Some(group) = &door.group {
        table.result("group", peers::group_id(group));
    }
    for (index, user) in door.allow_users.iter().enumerate() {
        table.result(&format!("allow_users.{index}"), peers::user_id(user));
    }
    for (index, group) in door.allow_groups.iter().enumerate() {
        table.result(&format!("allow_groups.{index}"), peers::group_id(group));
    }
}

fn check_tls(door: &TlsDoor, table: &mut Table) {
    if let Some(text) = tls::authentication_problem(door) {
        table.wrong("", text);
    }
    let before = table.problems.len();
    table.result("certificate", tls::certificates(&door.certificate));
    table.result("private_key", tls::private_key(&door.private_key));
    if let Some(path) = &door.client_ca {
        table.result("client_ca", tls::certificates(path));
    }
    let mut names = BTreeSet::new();
    for (index, token) in door.tokens.iter().enumerate() {
        if token.name.is_empty() {
            table.wrong(
                &format!("tokens.{index}.name"),
                "a token needs a name for the log",
            );
        } else if !names.insert(&token.name) {
            let text = format!("the name {:?} stands there twice", token.name);
            table.wrong(&format!("tokens.{index}.name"), text);
        }
        let mut digest = [0; 32];
        if hex::decode_to_slice(&token.sha256, &mut digest).is_err() {
            table.wrong(
                &format!("tokens.{index}.sha256"),
                "must be the 64 hexadecimal digits that `edgeward token` prints",
            );
        }
    }
    if table.problems.len() == before && tls::authentication_problem(door).is_none() {
        // All parts can be read: do they fit together?
        table.result("private_key", tls::Tls::new(door, None));
    }
    if let Ok(found) = std::fs::metadata(&door.private_key)
        && found.permissions().mode() & 0o007 != 0
    {
        let text = format!(
            "every user of this device may read {}: chmod 0640 or stricter",
            door.private_key.display()
        );
        table.wrong("private_key", text);
    }
}

fn check_limits(limits: &Limits, table: &mut Table) {
    const DAY_MS: u64 = 86_400_000;
    table.within("max_body_bytes", limits.max_body_bytes, 1024, 4 << 30);
    table.within(
        "max_bodies_bytes",
        limits.max_bodies_bytes,
        limits.max_body_bytes,
        1 << 40,
    );
    table.within("max_header_bytes", limits.max_header_bytes, 1024, 256 << 10);
    table.within("max_connections", limits.max_connections, 1, 100_000);
    table.within("header_timeout_ms", limits.header_timeout_ms, 100, DAY_MS);
    table.within("idle_timeout_ms", limits.idle_timeout_ms, 100, DAY_MS);
    table.within("body_timeout_ms", limits.body_timeout_ms, 100, DAY_MS);
    table.within("queue_timeout_ms", limits.queue_timeout_ms, 0, DAY_MS);
    table.within("default_deadline_ms", limits.default_deadline_ms, 1, DAY_MS);
    table.within("max_deadline_ms", limits.max_deadline_ms, 1, DAY_MS);
    table.within("slots_per_instance", limits.slots_per_instance, 1, 4096);
    table.within("drain_timeout_ms", limits.drain_timeout_ms, 0, DAY_MS);
    if limits.default_deadline_ms > limits.max_deadline_ms {
        let text = format!(
            "{} is more than max_deadline_ms, {}",
            limits.default_deadline_ms, limits.max_deadline_ms
        );
        table.wrong("default_deadline_ms", text);
    }
}

fn check_tflite(tflite: &Tflite, table: &mut Table) {
    table.readable_file("library", &tflite.library);
    if tflite.worker_memory_bytes != 0 && tflite.worker_memory_bytes < 16 << 20 {
        table.wrong(
            "worker_memory_bytes",
            "no worker starts with less than 16777216 bytes (16 MiB); 0 means no limit",
        );
    }
    if tflite.memory_budget_bytes != 0 && tflite.memory_budget_bytes < 16 << 20 {
        table.wrong(
            "memory_budget_bytes",
            "no worker finds room in less than 16777216 bytes (16 MiB); 0 means no limit",
        );
    }
    table.within("cores", tflite.cores, 0, 4096);
    table.within("load_timeout_ms", tflite.load_timeout_ms, 100, 86_400_000);
}

fn check_delegate(name: &DelegateName, profile: &DelegateProfile, table: &mut Table) {
    if [DelegateName::BUILTIN, DelegateName::XNNPACK].contains(&name.as_str()) {
        table.wrong(
            "",
            format!("{name} is part of TFLite and takes no profile: choose another name"),
        );
    }
    table.readable_file("library", &profile.library);
    for (index, path) in profile.read.iter().enumerate() {
        table.existing(&format!("read.{index}"), path);
    }
    for (index, path) in profile.devices.iter().enumerate() {
        table.existing(&format!("devices.{index}"), path);
    }
    match &profile.cache {
        Some(cache) => {
            table.within("cache.max_bytes", cache.max_bytes, 64 << 10, 1 << 40);
            let first = cache.first_load_timeout_ms;
            table.within("cache.first_load_timeout_ms", first, 100, 86_400_000);
        }
        None => {
            let mut options = profile.options.iter();
            if let Some((option, _)) = options.find(|(_, value)| value.contains(PLACEHOLDER)) {
                let text = format!(
                    "{PLACEHOLDER} has no meaning without the table [delegates.{name}.cache]"
                );
                table.wrong(&format!("options.{option}"), text);
            }
        }
    }
}

fn check_rate(rate: &Rate, table: &mut Table) {
    table.within(
        "requests_per_second",
        rate.requests_per_second,
        1,
        1_000_000,
    );
    table.within("burst", rate.burst, 1, 1_000_000);
}

fn check_model(settings: &ModelSettings, table: &mut Table) {
    if let Some(seconds) = settings.idle_unload_after_seconds {
        table.within("idle_unload_after_seconds", seconds, 1, 365 * 86_400);
        if settings.pinned {
            table.wrong(
                "pinned",
                "a pinned model is never unloaded: leave out idle_unload_after_seconds",
            );
        }
    }
    for (key, value, most) in [
        ("min_instances", settings.min_instances, 64),
        ("max_instances", settings.max_instances, 64),
        ("threads", settings.threads, 256),
    ] {
        if let Some(value) = value {
            table.within(key, value, 1, most);
        }
    }
    if settings.min_instances > settings.max_instances.or(settings.min_instances) {
        table.wrong("min_instances", "is more than max_instances");
    }
    if let Some(batching) = &settings.batching {
        let most = batching.max_batch_size;
        table.within("batching.max_batch_size", most, 2, 4096);
        table.within("batching.max_delay_us", batching.max_delay_us, 0, 1_000_000);
        for (index, size) in batching.preferred_sizes.iter().enumerate() {
            let key = format!("batching.preferred_sizes.{index}");
            table.within(&key, *size, 1, most);
        }
    }
}

fn check_fleet(fleet: &Fleet, table: &mut Table) {
    if fleet.broker_host.as_deref() == Some("") {
        table.wrong("broker_host", "must be a host name or an address");
    }
    if fleet.broker_port == Some(0) {
        table.wrong(
            "broker_port",
            "must be 1 to 65535; MQTT over TLS is 8883 by habit",
        );
    }
    table.within("keep_alive_seconds", fleet.keep_alive_seconds, 5, 3600);
    table.within(
        "max_packet_bytes",
        fleet.max_packet_bytes,
        16 << 10,
        256 << 20,
    );
    table.within(
        "fetch_window_bytes",
        fleet.fetch_window_bytes,
        64 << 10,
        512 << 10,
    );
    table.within("quiet_period_ms", fleet.quiet_period_ms, 10, 60_000);
    table.within("reconcile_seconds", fleet.reconcile_seconds, 1, 86_400);
    table.within("keep_versions", fleet.keep_versions, 1, 100);
}
