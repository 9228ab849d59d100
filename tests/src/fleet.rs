//! An operator's desk: a fleet with its keys, `fleetctl`, and a broker.

use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

use crate::broker::{Broker, BrokerKind};
use crate::device::Device;
use crate::package::Package;
use crate::process::{self, Finished};
use crate::{binaries, plugin, wait};

/// A new fleet in a directory of its own, which goes with it (and stays when the test fails).
pub struct Fleet {
    directory: TempDir,
    name: String,
    port: u16,
    pub broker: Option<Broker>,
}

impl Fleet {
    /// A fleet with a running, empty broker.
    pub fn with(kind: BrokerKind) -> Self {
        let mut fleet = Self::without_broker();
        fleet.start_broker(kind);
        fleet
    }

    /// Gives a fleet that had none a running, empty broker.
    pub fn start_broker(&mut self, kind: BrokerKind) {
        let broker = Broker::start(kind, self.port, &self.home(), self.directory());
        self.broker = Some(broker);
    }

    /// A fleet whose broker's address nobody listens on.
    pub fn without_broker() -> Self {
        // Short, because a Unix socket's path has at most 107 bytes.
        let directory = tempfile::Builder::new()
            .prefix("ew-")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        let fleet = Self {
            directory,
            name: "hospital".to_owned(),
            port: wait::free_port(),
            broker: None,
        };
        let broker = format!("localhost:{}", fleet.port);
        fleet
            .fleetctl(&[
                "init",
                &fleet.name,
                "--broker",
                &broker,
                "--broker-certificate",
                "localhost,127.0.0.1",
            ])
            .expect_success();
        fleet
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What `fleetctl --home` gets.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    pub fn broker(&mut self) -> &mut Broker {
        self.broker.as_mut().expect("a fleet with a broker")
    }

    /// Runs `fleetctl` to its end.
    pub fn fleetctl(&self, arguments: &[&str]) -> Finished {
        self.fleetctl_in(&self.home(), arguments)
    }

    /// Runs `fleetctl` at another desk.
    pub fn fleetctl_in(&self, home: &Path, arguments: &[&str]) -> Finished {
        let mut command = Command::new(binaries::program("fleetctl"));
        command.arg("--home").arg(home).args(arguments);
        process::run(&mut command)
    }

    /// Runs `fleetctl` as if it were this moment.
    pub fn fleetctl_at(&self, now: Timestamp, arguments: &[&str]) -> Finished {
        let shift = now.as_second() - Timestamp::now().as_second();
        let mut command = Command::new(binaries::program("fleetctl"));
        command.env("LD_PRELOAD", plugin::shifted_clock());
        command.env("CLOCK_SHIFT", shift.to_string());
        command.arg("--home").arg(self.home()).args(arguments);
        process::run(&mut command)
    }

    /// A new device of this fleet, enrolled into `group` and not started.
    pub fn device(&self, id: &str, group: &str) -> Device {
        let device = Device::new(id, self.directory());
        let request = self.directory().join(format!("{id}.csr.pem"));
        let bundle = self.directory().join(format!("{id}.bundle.json"));
        device
            .edgeward(&["enroll", "--request", path(&request)])
            .expect_success();
        let enroll = ["device", "enroll", path(&request), "--id", id];
        let rest = ["--group", group, "--out", path(&bundle)];
        let offline = self.offline();
        self.fleetctl(&[&enroll[..], &rest[..], &offline].concat())
            .expect_success();
        device
            .edgeward(&["enroll", "--accept", path(&bundle)])
            .expect_success();
        device
    }

    /// What a command that changes the fleet is told where there is no broker.
    fn offline(&self) -> Vec<&str> {
        self.broker
            .is_none()
            .then_some("--offline")
            .into_iter()
            .collect()
    }

    /// Pushes without waiting for the devices: scenarios wait for what they are about.
    pub fn push(&self, package: &Path, group: &str) -> Finished {
        let push = ["push", path(package), "--group", group, "--no-wait"];
        self.fleetctl(&[&push[..], &self.offline()].concat())
    }

    pub fn push_sample(&self, sample: &str, group: &str) {
        self.push(&binaries::sample(sample), group).expect_success();
    }

    pub fn rollback(&self, model: &str, group: &str) {
        self.fleetctl(&["rollback", model, "--group", group, "--no-wait"])
            .expect_success();
    }

    /// `fleetctl status --json`.
    pub fn status(&self) -> Value {
        let text = self.fleetctl(&["status", "--json"]).expect_success();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
    }

    /// The signed repository as a directory, such as a USB stick carries.
    pub fn export(&self, name: &str) -> PathBuf {
        let directory = self.directory().join(name);
        self.fleetctl(&["export", path(&directory)])
            .expect_success();
        directory
    }

    /// A copy of a sample, to be edited.
    pub fn package(&self, sample: &str) -> Package {
        Package::copy_of(sample, &self.directory().join("packages"))
    }
}

impl Drop for Fleet {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!(
                "---- the fleet's files stay in {}",
                self.directory().display()
            );
        }
    }
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
