//! `fleetctl init`: a new fleet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::digest::Digest;
use edgeward_models::durable;
use edgeward_models::fleet::enrolment::BrokerAddress;
use edgeward_models::name::FleetName;
use edgeward_models::repository::DirectorySource;
use edgeward_models::sign::{EncryptedKey, KeyRing, Passphrase, PrivatePem, Repository};
use jiff::Timestamp;

use super::broker_config::certify_broker;
use crate::authority::{Authority, Identity};
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
