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
        };
        broker.restart();
        broker
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
        let file = |name: &str| self.home.join("broker").join(name).display().to_string();
        let access = self.directory.join("access");
        std::fs::write(&access, ACCESS).expect("write an access list");
        let configuration = format!(
            "# As fleetctl says how a broker should be set up, on loopback and without persistence.\n\
             user root\n\
             listener {port} 127.0.0.1\n\
             cafile {ca}\n\
             certfile {certificate}\n\
             keyfile {key}\n\
             require_certificate true\n\
             use_identity_as_username true\n\
             allow_anonymous false\n\
             acl_file {access}\n\
             set_tcp_nodelay true\n\
             max_inflight_bytes 524288\n\
             persistence false\n\
             log_dest stderr\n",
            port = self.port,
            ca = file("ca.pem"),
            certificate = file("certificate.pem"),
            key = file("private-key.pem"),
            access = access.display(),
        );
        let path = self.directory.join("mosquitto.conf");
        std::fs::write(&path, configuration).expect("write a configuration");
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

/// Devices read the repository and write only what is theirs; the operator does the rest.
const ACCESS: &str = "\
pattern read edgeward/v1/+/repo/#
pattern write edgeward/v1/+/device/%u/#
user Operator
topic readwrite edgeward/v1/#
";
