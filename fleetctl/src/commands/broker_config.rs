//! `fleetctl broker-config`: what a broker has to be told so that nobody can do more than they should.
//!
//! Signatures, not these lists, are what devices and fleetctl believe; the lists keep rogue clients from wasting
//! everybody's time and from reading what is not theirs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use edgeward_models::durable::{self, Access};
use edgeward_models::name::FleetName;

use crate::authority::{Authority, OPERATOR};
use crate::home::Home;
use crate::printer::Printer;
use crate::revocation::{self, CRL_FILE};

/// The broker's certificate and private key, in the broker's directory.
pub const BROKER_FILES: [&str; 2] = ["certificate.pem", "private-key.pem"];
const CONFIGURATION_FILE: &str = "mosquitto.conf";
const ACL_FILE: &str = "acl";

/// Write what a broker has to be told: who may connect, and who may do what
///
/// Each device reads the repository and writes its own topics, nothing else; the operator writes the repository and
/// reads the devices. For mosquitto a whole configuration, its access list and the list of revoked certificates are
/// written into broker/ beside the certificate (`fleetctl broker --certificate` makes that) and tested with every
/// change of this program. For EMQX and AWS IoT Core an example is printed, with this fleet's name in it, that nobody has
/// tried yet.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl broker-config mosquitto
  fleetctl broker-config aws-iot > policies.json")]
pub struct Args {
    broker: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Mosquitto,
    Emqx,
    AwsIot,
}

const EMQX: &str = include_str!("../../brokers/emqx-acl.conf");
const AWS_IOT: &str = include_str!("../../brokers/aws-iot-policies.json");

impl Args {
    pub fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let home = Home::open(home)?;
        let filled = |text: &str| text.replace("FLEET", home.fleet().as_str());
        match self.broker {
            Kind::Mosquitto => {
                let written = write(&home, &home.authority()?)?;
                printer.note(&format!("written: {}", written.display()));
            }
            Kind::Emqx => printer.data(&filled(EMQX))?,
            Kind::AwsIot => printer.data(&filled(AWS_IOT))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Certifies a broker and writes what mosquitto needs beside the certificate; prints its configuration.
pub fn certify_broker(
    home: &Home,
    authority: &Authority,
    hosts: &[String],
    printer: &Printer,
) -> Result<()> {
    let directory = home.broker_directory();
    durable::create_directory(&directory)?;
    authority.broker(hosts)?.write(&directory, BROKER_FILES)?;
    let path = write(home, authority)?;
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
    printer.data(&configuration(home))
}

/// Writes all that mosquitto needs but its own certificate; returns the configuration's file.
fn write(home: &Home, authority: &Authority) -> Result<PathBuf> {
    let directory = home.broker_directory();
    durable::create_directory(&directory)?;
    let files = [
        ("ca.pem", home.ca_certificate()?),
        (ACL_FILE, access_list(home.fleet())),
        (CONFIGURATION_FILE, configuration(home)),
    ];
    for (name, text) in files {
        durable::write(&directory.join(name), text.as_bytes(), Access::Anyone)?;
    }
    revocation::write_list(home, authority)?;
    Ok(directory.join(CONFIGURATION_FILE))
}

fn configuration(home: &Home) -> String {
    let directory = home.broker_directory();
    let file = |name: &str| directory.join(name).display().to_string();
    let [certificate, key] = BROKER_FILES.map(file);
    format!(
        "\
# mosquitto for an Edgeward fleet: a whole configuration, for `mosquitto -c`. Every client shows a certificate of the fleet's authority; its common
# name is its user name and its client id, so that nobody can take over another's connection.
listener {port}
cafile {ca}
certfile {certificate}
keyfile {key}
# Certificates of devices that were removed; read when mosquitto starts.
crlfile {crl}
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
        port = home.broker().port,
        ca = file("ca.pem"),
        crl = file(CRL_FILE),
        acl = file(ACL_FILE),
    )
}

/// Who may do what.
fn access_list(fleet: &FleetName) -> String {
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
