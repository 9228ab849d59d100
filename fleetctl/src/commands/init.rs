//! `fleetctl init`: a new fleet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::enrolment::BrokerAddress;
use edgeward_models::name::FleetName;
use edgeward_models::repository::DirectorySource;
use edgeward_models::sign::{EncryptedKey, KeyRing, Passphrase, PrivatePem, Repository};
use jiff::Timestamp;

use crate::authority::{Authority, Identity, OPERATOR};
use crate::home::{CA_FILES, FleetFile, Home, OPERATOR_FILES, parse_broker};
use crate::passphrase::Passphrases;
use crate::printer::Printer;

/// Make a new fleet: signing keys, certificate authority, operator's certificate, empty repository
///
/// All of it is made in the operator's home. Keep that directory: whoever has its keys can tell every
/// device of the fleet what to run, and without them nobody can. With --encrypt the keys of the fleet and of its
/// authority are kept behind a passphrase from the first moment; `fleetctl key encrypt` does so later.
///
/// The broker must speak MQTT 5 over TLS. With --broker-certificate the fleet's own authority
/// certifies it, and a configuration for mosquitto is written beside the certificate and printed: client
/// certificates required, and an access list in which a device can write nothing but its own topics.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl init hospital --broker broker.example.org:8883
  fleetctl init hospital --broker broker.example.org:8883 --encrypt
  fleetctl init hospital --broker broker.example.org:8883 --join /media/stick/hospital
  fleetctl init trial --broker localhost:8883 --broker-certificate localhost,127.0.0.1")]
pub struct Args {
    /// The fleet's name; it is part of every topic and cannot be changed later
    name: FleetName,
    /// Where the broker listens
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_broker)]
    broker: BrokerAddress,
    /// Also certify a broker under these names and addresses
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    broker_certificate: Vec<String>,
    /// Keep the private keys of the fleet behind a passphrase
    #[arg(long)]
    encrypt: bool,
    /// Make a further desk of a fleet that exists, from its repository as `fleetctl export` wrote it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["encrypt", "broker_certificate"])]
    join: Option<PathBuf>,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        Home::prepare(home)?;
        if let Some(directory) = &self.join {
            return self.join(home, directory, printer).await;
        }
        let now = Timestamp::now();
        let passphrase = match self.encrypt {
            true => Some(Passphrases::from_environment().choose()?),
            false => None,
        };
        let mut ca = Authority::generate(&self.name)?;
        let authority = Authority::from_pem(&ca.certificate, &ca.key)?;
        if let Some(passphrase) = &passphrase {
            encrypt(&mut ca, passphrase)?;
        }
        ca.write(&home.join("ca"), CA_FILES)?;
        authority
            .operator()?
            .write(&home.join("ca"), OPERATOR_FILES)?;
        let keys = KeyRing::generate_with(&home.join("keys"), passphrase.as_ref())?;
        Repository::create(&home.join("repository"), &keys, now)?;
        // Last: a home with a fleet file is whole.
        let fleet = FleetFile {
            fleet: self.name.clone(),
            broker: self.broker,
        };
        let made = Home::create(home, fleet)?;
        printer.note(&format!(
            "fleet {} is made in {}",
            self.name,
            home.display()
        ));
        printer.note(&format!(
            "keep {} safe and offline where you can: those keys are the fleet",
            made.keys_directory().display()
        ));
        if !self.broker_certificate.is_empty() {
            certify_broker(&made, &authority, &self.broker_certificate, printer)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Args {
    /// A desk without keys: `key generate` makes its own, which the others add.
    async fn join(&self, home: &Path, directory: &Path, printer: &Printer) -> Result<ExitCode> {
        let source = DirectorySource::open(directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        let repository = Repository::join(&home.join("repository"), &source).await?;
        let first = durable::read(&directory.join("metadata/1.root.json"), MAX_ROOT_BYTES)?;
        let fleet = FleetFile {
            fleet: self.name.clone(),
            broker: self.broker.clone(),
        };
        Home::create(home, fleet)?;
        printer.note(&format!(
            "{} is a further desk of fleet {} at timestamp {}. Compare its first root with the first desk's (repository/metadata/1.root.json): sha256 {}",
            home.display(),
            self.name,
            repository.timestamp_version(),
            Digest::of(&first.unwrap_or_default())
        ));
        printer.note(
            "make a key here with `fleetctl key generate`; to use the broker from here, copy ca/ca.pem and \
             ca/operator.* of the first desk, and devices/ to believe what devices say",
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn encrypt(identity: &mut Identity, passphrase: &Passphrase) -> Result<()> {
    match PrivatePem::parse(identity.key.as_bytes()).context("a key that was just made is none")? {
        PrivatePem::Plain(document) => {
            identity.key = EncryptedKey::seal(&document, passphrase)?.to_pem();
        }
        PrivatePem::Encrypted(_) => {}
    }
    Ok(())
}

const MAX_ROOT_BYTES: u64 = 128 * 1024;

/// The broker's certificate and private key, in the broker's directory.
pub const BROKER_FILES: [&str; 2] = ["certificate.pem", "private-key.pem"];

/// Certifies a broker and writes what mosquitto needs beside the certificate; prints its configuration.
pub fn certify_broker(
    home: &Home,
    authority: &Authority,
    hosts: &[String],
    printer: &Printer,
) -> Result<()> {
    let directory = home.broker_directory();
    durable::create_directory(&directory)?;
    let identity = authority.broker(hosts)?;
    let [certificate, key] = identity.write(&directory, BROKER_FILES)?;
    let ca = directory.join("ca.pem");
    durable::write(&ca, home.ca_certificate()?.as_bytes(), Access::Anyone)?;
    let acl = directory.join("acl");
    durable::write(&acl, mosquitto_acl(home.fleet()).as_bytes(), Access::Anyone)?;
    let configuration = mosquitto_configuration(home.broker().port, &ca, &certificate, &key, &acl);
    let path = directory.join("mosquitto.conf");
    durable::write(&path, configuration.as_bytes(), Access::Anyone)?;
    printer.note(&format!(
        "the broker {} is certified; {} holds all that it needs. Its private key there is readable by you \
         only: give it to the broker's user",
        hosts.join(", "),
        directory.display()
    ));
    printer.note(&format!(
        "a configuration for mosquitto is in {}:",
        path.display()
    ));
    printer.data(&configuration)
}

fn mosquitto_configuration(
    port: u16,
    ca: &Path,
    certificate: &Path,
    key: &Path,
    acl: &Path,
) -> String {
    format!(
        "\
# mosquitto for an Edgeward fleet: a whole configuration, for `mosquitto -c`. Every client shows a certificate of the fleet's authority; its common
# name is its user name and its client id, so that nobody can take over another's connection.
listener {port}
cafile {ca}
certfile {certificate}
keyfile {key}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {acl}

# Without this a fetch takes up to a hundred times as long.
set_tcp_nodelay true
# Statuses are the largest messages; chunks are at most 60 KiB.
max_packet_size 270336
max_inflight_bytes 524288
# A broker without persistence forgets everything at a restart; `fleetctl sync` brings it back.
persistence true
persistence_location /var/lib/mosquitto/
persistent_client_expiration 14d
",
        ca = ca.display(),
        certificate = certificate.display(),
        key = key.display(),
        acl = acl.display(),
    )
}

/// Who may do what. Signatures, not this list, are what devices and fleetctl believe; it keeps rogue
/// clients from wasting everybody's time.
fn mosquitto_acl(fleet: &FleetName) -> String {
    let base = format!("edgeward/v1/{fleet}");
    format!(
        "\
# The operator. No device can be called so: device ids have no capital letters.
user {OPERATOR}
topic readwrite {base}/repo/#
topic read {base}/device/#

# Devices (%u is the common name of the certificate): they read the repository and speak for themselves.
pattern read {base}/repo/#
pattern readwrite {base}/device/%u/online
pattern readwrite {base}/device/%u/status
pattern write {base}/device/%u/telemetry
"
    )
}
