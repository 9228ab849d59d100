//! `fleetctl device`: who belongs to the fleet.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use edgeward_models::name::{DeviceId, GroupName};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::status;
use crate::devices::Device;
use crate::operator::Operator;
use crate::printer::{Printer, table};
use crate::renewal;
use crate::statuses;
use enroll::Enroll;
use remove::Remove;

pub mod enroll;
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
