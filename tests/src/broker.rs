//! A broker process with TLS that takes only clients with certificates: a real mosquitto, or ours.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Process, dying_with_us};
use crate::{binaries, wait};

/// Which broker a fleet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerKind {
    /// Debian's mosquitto with access control. It forgets everything when it ends.
    Mosquitto,
    /// `fleetctl broker`. It forgets everything when it ends.
    Embedded,
}

/// A broker on a port of the loopback interface. It can be killed and started again, empty.
pub struct Broker {
    kind: BrokerKind,
    port: u16,
    /// Where its configuration and log are.
    directory: PathBuf,
    home: PathBuf,
    process: Option<Process>,
    /// Further lines of mosquitto's configuration.
    more: String,
    /// Retained messages outlast a proper end.
    persistent: bool,
}

impl Broker {
    /// Starts a broker for the fleet whose `fleetctl` directory is `home`.
    pub fn start(kind: BrokerKind, port: u16, home: &Path, directory: &Path) -> Self {
        let mut broker = Self {
            kind,
            port,
            directory: directory.to_owned(),
            home: home.to_owned(),
            process: None,
            more: String::new(),
            persistent: false,
        };
        broker.restart();
        broker
    }

    /// Adds a line to mosquitto's configuration, from the next start on.
    pub fn configure(&mut self, line: &str) {
        self.more = format!("{}{line}\n", self.more);
    }

    /// From the next start on mosquitto keeps its retained messages when it ends properly.
    pub fn persist(&mut self) {
        self.persistent = true;
    }

    /// mosquitto's access list.
    fn access_list(&self) -> PathBuf {
        self.home.join("broker/acl")
    }

    /// Changes mosquitto's access list, for the connections that are up too. Returns the one before.
    pub fn permit(&self, change: impl FnOnce(&str) -> String) -> String {
        let before = std::fs::read_to_string(self.access_list()).expect("an access list");
        std::fs::write(self.access_list(), change(&before)).expect("write an access list");
        self.process.as_ref().expect("a running broker").hang_up();
        before
    }

    /// SIGTERM: it saves what it is to keep.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("a running broker");
        process.stop(Duration::from_secs(20));
    }

    /// SIGKILL, at whatever moment. All it kept is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends the running one, if any, and starts a new and empty one.
    pub fn restart(&mut self) {
        self.kill();
        let (name, command) = match self.kind {
            BrokerKind::Mosquitto => ("mosquitto", self.mosquitto()),
            BrokerKind::Embedded => ("fleetctl broker", self.embedded()),
        };
        let mut process = Process::start(name, command, &self.directory.join("broker.log"));
        wait::until(
            "the broker to listen",
            Duration::from_secs(20),
            || match process.ended() {
                Some(status) => panic!("{name} ended with {status}:\n{}", process.log()),
                None => TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                    .map(drop)
                    .map_err(|e| e.to_string()),
            },
        );
        self.process = Some(process);
    }

    fn embedded(&self) -> Command {
        let mut command = dying_with_us(&binaries::program("fleetctl"));
        command.arg("--home").arg(&self.home).arg("broker");
        command
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port));
        command
    }

    fn mosquitto(&self) -> Command {
        // As fleetctl wrote it for this fleet, but on loopback only, without persistence, and able to read
        // the operator's files.
        let written = self.home.join("broker/mosquitto.conf");
        let text = std::fs::read_to_string(&written)
            .unwrap_or_else(|e| panic!("{}: {e}", written.display()));
        let listener = format!("listener {}\n", self.port);
        assert!(text.contains(&listener) && text.contains("persistence true\n"));
        let text = text.replace(&listener, &format!("listener {} 127.0.0.1\n", self.port));
        let text = match self.persistent {
            false => text.replace("persistence true\n", "persistence false\n"),
            true => text.replace(
                "/var/lib/mosquitto/",
                &format!("{}/", self.directory.display()),
            ),
        };
        let path = self.directory.join("mosquitto.conf");
        std::fs::write(
            &path,
            format!("user root\nlog_dest stderr\n{}{text}", self.more),
        )
        .expect("write a configuration");
        // Debian keeps it where only root's PATH looks.
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.is_file())
            .expect("mosquitto is not installed: run `make setup`");
        let mut command = dying_with_us(program);
        command.arg("-c").arg(path);
        command
    }
}
