//! `fleetctl device`: who belongs to the fleet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::enrolment::{EnrolmentBundle, FORMAT};
use edgeward_models::name::{DeviceId, GroupName};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::group::publish_membership;
use super::status;
use crate::devices::Device;
use crate::operator::Operator;
use crate::printer::{Printer, table};
use crate::renewal;
use crate::revocation;
use crate::statuses;
use fleetctl::request::MAX_REQUEST_BYTES;
use remove::Remove;

mod remove;

/// Enrol devices and show them
#[derive(Debug, Subcommand)]
pub enum Verb {
    Enroll(Enroll),
    List(List),
    Show(Show),
    Renew(Renew),
    AcceptHistory(AcceptHistory),
    Remove(Remove),
}

/// Certify a device's key and hand back what makes it a member
///
/// The device makes its key and a certificate request with `edgeward enroll`; the private key never leaves
/// it. Of the request only the public key is used: the certificate's name is --id, whatever the request
/// says. The bundle that comes out holds nothing secret; take it back to the device.
///
/// Enrolling the same key again renews its certificate. Another key under an id that is taken, as after the loss of a
/// device's disk, needs --replace: the certificates of the key before are revoked (`fleetctl device remove --help` says
/// how the broker learns of it).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device enroll ct-1.csr.pem --id ct-1 --group radiology --out ct-1.bundle.json")]
pub struct Enroll {
    /// The device's certificate request (PEM)
    #[arg(value_name = "CSR")]
    request: PathBuf,
    /// The name that the device gets
    #[arg(long)]
    id: DeviceId,
    /// Put the device into this group (may be repeated); absent: its groups stay as they are
    #[arg(long, value_name = "GROUP")]
    group: Vec<GroupName>,
    /// Where to write the bundle; absent: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Give an id that is taken to another key
    #[arg(long)]
    replace: bool,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

/// Show every device of the fleet with its groups
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device list
  fleetctl device list --json")]
pub struct List {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show all that is known of one device: certificate, groups, and its newest status
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device show ct-1")]
pub struct Show {
    device: DeviceId,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Make certificates of devices anew, for the keys that they have
///
/// Nothing has to come from the device, and its private key stays where it is: the new certificate travels in the
/// signed repository, and the device takes it while it serves. Without names: those that are past two thirds of their
/// lives, as `fleetctl refresh` does where the keys of the authority and of rollouts are at hand.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device renew
  fleetctl device renew ct-1 ct-2")]
pub struct Renew {
    devices: Vec<DeviceId>,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

impl Renew {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let mut devices = operator.home.devices().all()?;
        if self.devices.is_empty() {
            devices = renewal::due(devices, Timestamp::now());
        } else {
            for id in &self.devices {
                if !devices.iter().any(|device| device.id == *id) {
                    bail!("device {id} is not enrolled; `fleetctl device list` shows who is");
                }
            }
            devices.retain(|device| self.devices.contains(&device.id));
        }
        if devices.is_empty() {
            operator
                .printer
                .note("no certificate is past two thirds of its life");
            return Ok(ExitCode::SUCCESS);
        }
        let mut repository = operator.repository()?;
        let standing = match self.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        let keys = operator.keys(&repository)?;
        let publication = renewal::renew(operator, &mut repository, &keys, &devices)?;
        if let Some(standing) = standing {
            operator
                .publish(&repository, &publication, standing)
                .await?;
        }
        let ids: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
        operator
            .printer
            .note(&format!("renewed: {}", ids.join(", ")));
        Ok(ExitCode::SUCCESS)
    }
}

/// Take what a device says next as its new beginning
///
/// fleetctl remembers how far each device has come: which boot, which status of it, how long its audit log is. A
/// device whose state was lost or whose log was repaired seems to go back, and is not believed. When you have looked
/// into it, this forgets what was heard of it before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device accept-history ct-1")]
pub struct AcceptHistory {
    device: DeviceId,
}

impl AcceptHistory {
    fn run(self, operator: &Operator) -> Result<ExitCode> {
        let mut memory = operator.home.memory()?;
        let note = match memory.forget(&self.device) {
            true => format!("what {} says next is its new beginning", self.device),
            false => format!("nothing was heard of {} before", self.device),
        };
        memory.save()?;
        operator.printer.note(&note);
        Ok(ExitCode::SUCCESS)
    }
}

impl Verb {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        match self {
            Self::Enroll(args) => args.run(&operator).await,
            Self::List(args) => args.run(&operator),
            Self::Show(args) => args.run(&operator).await,
            Self::Renew(args) => args.run(&operator).await,
            Self::AcceptHistory(args) => args.run(&operator),
            Self::Remove(args) => args.run(&operator).await,
        }
    }
}

impl Enroll {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let request = durable::read(&self.request, MAX_REQUEST_BYTES)?
            .with_context(|| format!("there is no file {}", self.request.display()))?;
        let request = String::from_utf8(request)
            .map_err(|_| anyhow::anyhow!("{} is not a PEM file", self.request.display()))?;
        let devices = operator.home.devices();
        let before = devices.get(&self.id)?;
        let certificate = operator
            .home
            .authority()?
            .device(&request, &self.id)
            .with_context(|| format!("cannot enrol {}", self.id))?;
        let made = Device::from_pem(self.id.clone(), certificate.as_bytes())?;
        let replaced = before.is_some_and(|before| before.public_key != made.public_key);
        if replaced && !self.replace {
            bail!(
                "device {} is enrolled with another key; give this one another --id, or --replace if the \
                 device has got a new key",
                self.id
            );
        }
        let mut repository = operator.repository()?;
        if repository.removed(&self.id)? == Some(Digest::of(&made.public_key)) {
            bail!(
                "this key of device {} was taken out of the fleet for good; have the device make another with `edgeward \
                 enroll --request FILE --new-key`",
                self.id
            );
        }
        let mut groups = repository.groups_of(&self.id)?;
        let joins = self.group.iter().any(|group| !groups.contains(group));
        groups.extend(self.group.iter().cloned());
        let root =
            String::from_utf8(repository.root()?).context("the repository's root is not text")?;
        let bundle = EnrolmentBundle {
            format: FORMAT,
            fleet: operator.home.fleet().clone(),
            device: self.id.clone(),
            broker: operator.home.broker().clone(),
            certificate: certificate.clone(),
            broker_ca: operator.home.ca_certificate()?,
            root,
        };
        if replaced {
            let authority = operator.home.authority()?;
            revocation::revoke(
                &operator.home,
                &authority,
                &self.id,
                devices.serials(&self.id)?,
            )?;
        }
        devices.put(&self.id, &certificate)?;
        if joins {
            publish_membership(
                operator,
                &mut repository,
                &[(self.id.clone(), groups.clone())],
                self.offline,
                true,
            )
            .await?;
        }
        let text = serde_json::to_string_pretty(&bundle).context("cannot write the bundle")? + "\n";
        match &self.out {
            Some(path) => durable::write(path, text.as_bytes(), Access::Anyone)?,
            None => operator.printer.data(&text)?,
        }
        let place = match &self.out {
            Some(path) => format!("; take {} to the device", path.display()),
            None => String::new(),
        };
        operator.printer.note(&format!(
            "device {} is enrolled in {}{place}",
            self.id,
            in_groups(&groups)
        ));
        Ok(ExitCode::SUCCESS)
    }
}

fn in_groups(groups: &BTreeSet<GroupName>) -> String {
    match groups.len() {
        0 => "no group".to_owned(),
        1 => format!("group {}", names(groups)),
        _ => format!("groups {}", names(groups)),
    }
}

pub fn names(groups: &BTreeSet<GroupName>) -> String {
    groups
        .iter()
        .map(GroupName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

pub fn day(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).date().to_string()
}

impl List {
    fn run(self, operator: &Operator) -> Result<ExitCode> {
        let devices = operator.home.devices().all()?;
        let membership = operator.repository()?.membership()?;
        let groups = |device: &Device| membership.get(&device.id).cloned().unwrap_or_default();
        if self.json {
            let rows: Vec<_> = devices
                .iter()
                .map(|device| {
                    json!({
                        "device": device.id,
                        "groups": groups(device),
                        "certificate_sha256": device.fingerprint,
                        "certificate_until": device.not_after,
                    })
                })
                .collect();
            operator
                .printer
                .json(&json!({ "fleet": operator.home.fleet(), "devices": rows }))?;
            return Ok(ExitCode::SUCCESS);
        }
        if devices.is_empty() {
            operator
                .printer
                .note("no device is enrolled; begin with `edgeward enroll` on a device");
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = vec![
            ["DEVICE", "GROUPS", "CERTIFICATE UNTIL"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for device in &devices {
            let groups = groups(device);
            let groups = if groups.is_empty() {
                "-".to_owned()
            } else {
                names(&groups)
            };
            let expired = if device.not_after < Timestamp::now() {
                " (ended)"
            } else {
                ""
            };
            rows.push(vec![
                device.id.to_string(),
                groups,
                day(device.not_after) + expired,
            ]);
        }
        operator.printer.data(&table(&rows))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let device = operator
            .home
            .devices()
            .get(&self.device)?
            .with_context(|| {
                format!(
                    "device {} is not enrolled; `fleetctl device list` shows who is",
                    self.device
                )
            })?;
        let groups = operator.repository()?.groups_of(&device.id)?;
        let reports = statuses::hear(operator, std::slice::from_ref(&device)).await?;
        let report = reports
            .first()
            .context("the broker gave no answer about the device")?;
        if self.json {
            let mut value = status::to_json(report, &groups);
            value["certificate_sha256"] = json!(device.fingerprint);
            value["certificate_until"] = json!(device.not_after);
            operator.printer.json(&value)?;
        } else {
            let mut rows = vec![
                vec!["device".to_owned(), device.id.to_string()],
                vec![
                    "groups".to_owned(),
                    if groups.is_empty() {
                        "-".to_owned()
                    } else {
                        names(&groups)
                    },
                ],
                vec![
                    "certificate".to_owned(),
                    format!("until {}", day(device.not_after)),
                ],
            ];
            rows.extend(status::details(report));
            operator.printer.data(&table(&rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
