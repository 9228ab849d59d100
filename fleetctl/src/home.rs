//! The operator's directory: fleet file, authority, keys, device certificates, repository.
//!
//! ```text
//! fleet.toml     the fleet's name and its broker
//! ca/            the fleet's certificate authority and the operator's own client certificate
//! devices/       {id}.pem, the certificate of every enrolled device
//! keys/          signing keys, one file per role
//! pending/       changes that wait for signatures of other desks
//! repository/    the signed tree: the truth of which the broker is a copy
//! claims.json    tokens that were given out to devices, and who used them
//! heard.json     what each device last said: older statuses are told by it
//! broker/        the broker's certificate and configuration, when they were asked for
//! ```
//! Every command opens one; `init` makes it. Nothing here touches the network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::enrolment::BrokerAddress;
use edgeward_models::name::FleetName;
use edgeward_models::repository::METADATA_DIRECTORY;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::devices::{Devices, not_after};
use crate::memory::Memory;
use crate::passphrase::Passphrases;

mod secrets;

/// No file of the home read whole is larger.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Certificate and key of the authority, and of the operator, below `ca/`.
pub const CA_FILES: [&str; 2] = ["ca.pem", "ca.key"];
pub const OPERATOR_FILES: [&str; 2] = ["operator.pem", "operator.key"];
/// How long before its end the operator's certificate is made anew.
const OPERATOR_RENEWAL: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What `fleet.toml` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetFile {
    pub fleet: FleetName,
    pub broker: BrokerAddress,
}

/// An operator's directory that exists.
#[derive(Debug, Clone)]
pub struct Home {
    directory: PathBuf,
    fleet: FleetFile,
    passphrases: Arc<Passphrases>,
}

impl Home {
    /// Where the home is when neither `--home` nor `FLEETCTL_HOME` says so.
    pub fn default_directory() -> Option<PathBuf> {
        let set = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        set("XDG_CONFIG_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".config")))
            .map(|config| config.join("fleetctl"))
    }

    /// Makes the directory with its fleet file. What else belongs in it is `init`'s to make first: a home
    /// with a fleet file is whole.
    pub fn create(directory: &Path, fleet: FleetFile) -> Result<Self> {
        let text = toml::to_string(&fleet).context("cannot write the fleet file")?;
        durable::write(
            &directory.join("fleet.toml"),
            text.as_bytes(),
            Access::Anyone,
        )?;
        Ok(Self::with(directory, fleet))
    }

    fn with(directory: &Path, fleet: FleetFile) -> Self {
        Self {
            directory: directory.to_owned(),
            fleet,
            passphrases: Arc::new(Passphrases::from_environment()),
        }
    }

    /// Makes an empty directory that only its owner can enter; refuses one that holds a fleet.
    pub fn prepare(directory: &Path) -> Result<()> {
        if directory.join("fleet.toml").exists() {
            bail!(
                "{} already holds a fleet; name another directory with --home",
                directory.display()
            );
        }
        for part in ["ca", "keys", "devices"] {
            durable::create_directory(&directory.join(part))?;
        }
        for private in [
            directory.to_owned(),
            directory.join("ca"),
            directory.join("keys"),
        ] {
            durable::make_private(&private)?;
        }
        Ok(())
    }

    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("fleet.toml");
        let Some(bytes) = durable::read(&path, MAX_FILE_BYTES)? else {
            bail!(
                "{} holds no fleet; make one with `fleetctl init NAME --broker HOST:PORT`, or name its \
                 directory with --home",
                directory.display()
            );
        };
        let text =
            String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))?;
        let fleet =
            toml::from_str(&text).with_context(|| format!("{} is wrong", path.display()))?;
        Ok(Self::with(directory, fleet))
    }

    pub fn fleet(&self) -> &FleetName {
        &self.fleet.fleet
    }

    pub fn broker(&self) -> &BrokerAddress {
        &self.fleet.broker
    }

    pub fn devices(&self) -> Devices {
        Devices::new(self.directory.join("devices"))
    }

    pub fn memory(&self) -> Result<Memory> {
        Memory::open(self.directory.join("heard.json"))
    }

    /// PEM: certificate and private key that fleetctl shows the broker. Made anew when they are about to end
    /// and the authority's key is at hand.
    pub fn operator_certificate(&self) -> Result<(String, String)> {
        let [certificate, key] = OPERATOR_FILES.map(|name| self.directory.join("ca").join(name));
        let pem = self.read(&certificate)?;
        let (now, end) = (Timestamp::now(), not_after(pem.as_bytes())?);
        if end < now + OPERATOR_RENEWAL && self.has_authority() {
            match self.authority() {
                Ok(authority) => {
                    let renewed = authority.operator()?;
                    renewed.write(&self.directory.join("ca"), OPERATOR_FILES)?;
                    return Ok((renewed.certificate, renewed.key));
                }
                // Without the passphrase the present one serves to its end; `doctor` says what is to be done.
                Err(_) if now < end => {}
                Err(error) => return Err(error),
            }
        }
        Ok((pem, self.read(&key)?))
    }

    /// PEM: the authority that broker and devices are certified by.
    pub fn ca_certificate(&self) -> Result<String> {
        self.read(&self.ca_certificate_path())
    }

    pub fn ca_certificate_path(&self) -> PathBuf {
        self.directory.join("ca").join(CA_FILES[0])
    }

    /// Whether the authority's key is here.
    pub fn has_authority(&self) -> bool {
        self.ca_key_path().exists()
    }

    fn ca_key_path(&self) -> PathBuf {
        self.directory.join("ca").join(CA_FILES[1])
    }

    pub fn ca_directory(&self) -> PathBuf {
        self.directory.join("ca")
    }

    pub fn claims_path(&self) -> PathBuf {
        self.directory.join("claims.json")
    }

    pub fn keys_directory(&self) -> PathBuf {
        self.directory.join("keys")
    }

    /// The repository's newest timestamp as it stands on disk: it tells whether anything has changed.
    pub fn timestamp(&self) -> Result<Vec<u8>> {
        let metadata = self.repository_directory().join(METADATA_DIRECTORY);
        let path = metadata.join("timestamp.json");
        durable::read(&path, MAX_FILE_BYTES)?
            .with_context(|| format!("{} is missing: restore it from a copy", path.display()))
    }

    pub fn repository_directory(&self) -> PathBuf {
        self.directory.join("repository")
    }

    pub fn broker_directory(&self) -> PathBuf {
        self.directory.join("broker")
    }

    fn read(&self, path: &Path) -> Result<String> {
        let bytes = durable::read(path, MAX_FILE_BYTES)?
            .with_context(|| format!("{} is missing from the fleet's directory", path.display()))?;
        String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))
    }
}

/// Reads `HOST:PORT`.
pub fn parse_broker(text: &str) -> Result<BrokerAddress, String> {
    let wrong = || format!("{text:?} is not HOST:PORT, such as broker.example.org:8883");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    if host.is_empty() || port == 0 || !host.chars().all(allowed) {
        return Err(wrong());
    }
    Ok(BrokerAddress {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_broker_is_a_host_and_a_port() {
        let broker = parse_broker("broker.example.org:8883").expect("address");
        assert_eq!(
            (broker.host.as_str(), broker.port),
            ("broker.example.org", 8883)
        );
        for text in [
            "",
            "broker",
            ":8883",
            "broker:",
            "broker:0",
            "broker:70000",
            "mqtt://b:1",
            "::1:8883",
        ] {
            assert!(parse_broker(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_home_is_private_and_never_made_twice() {
        let directory = tempfile::tempdir().expect("tempdir");
        let home = directory.path().join("home");
        assert!(
            Home::open(&home)
                .expect_err("none")
                .to_string()
                .contains("fleetctl init")
        );
        Home::prepare(&home).expect("prepare");
        let fleet = FleetFile {
            fleet: "hospital".parse().expect("name"),
            broker: parse_broker("localhost:8883").expect("address"),
        };
        Home::create(&home, fleet).expect("create");
        assert!(Home::prepare(&home).is_err());
        assert_eq!(
            Home::open(&home).expect("open").fleet().as_str(),
            "hospital"
        );
        let mode = std::fs::metadata(&home)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
