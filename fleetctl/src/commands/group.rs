//! `fleetctl group`: which devices run the same versions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use edgeward_models::name::{DeviceId, GroupName};
use edgeward_models::sign::Repository;
use jiff::Timestamp;
use serde_json::json;

use crate::operator::{Operator, is_broken_link};
use crate::printer::{Printer, table};
use crate::rollouts;

/// Put devices into groups and show them
#[derive(Debug, Subcommand)]
pub enum Verb {
    List(List),
    Add(Change),
    Remove(RemoveChange),
}

/// Show every group: its devices and what it should run
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl group list")]
pub struct List {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Put devices into a group
///
/// The membership is signed and published; each device then fetches what the group should run.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl group add radiology ct-1 ct-2")]
pub struct Change {
    group: GroupName,
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<DeviceId>,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

/// Take devices out of a group
///
/// What a device already serves it goes on serving; it takes no further versions for that group.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl group remove radiology ct-2")]
pub struct RemoveChange {
    #[command(flatten)]
    change: Change,
}

impl Verb {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        match self {
            Self::List(args) => args.run(&operator),
            Self::Add(change) => {
                let join =
                    |groups: &mut BTreeSet<_>, group: &GroupName| groups.insert(group.clone());
                change.run(&operator, join, "in").await
            }
            Self::Remove(RemoveChange { change }) => {
                let leave = |groups: &mut BTreeSet<_>, group: &GroupName| groups.remove(group);
                change.run(&operator, leave, "out of").await
            }
        }
    }
}

impl Change {
    async fn run(
        self,
        operator: &Operator,
        apply: impl Fn(&mut BTreeSet<GroupName>, &GroupName) -> bool,
        relation: &str,
    ) -> Result<ExitCode> {
        let registry = operator.home.devices();
        let mut repository = operator.repository()?;
        let mut changes = Vec::new();
        for device in &self.devices {
            if registry.get(device)?.is_none() {
                bail!("device {device} is not enrolled; `fleetctl device list` shows who is");
            }
            let mut groups = repository.groups_of(device)?;
            if apply(&mut groups, &self.group) {
                changes.push((device.clone(), groups));
            }
        }
        if changes.is_empty() {
            operator
                .printer
                .note(&format!("they are {relation} group {} already", self.group));
            return Ok(ExitCode::SUCCESS);
        }
        publish_membership(operator, &mut repository, &changes, self.offline, false).await?;
        for (device, _) in &changes {
            operator.printer.note(&format!(
                "device {device} is {relation} group {}",
                self.group
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Signs changed memberships and publishes them. Where the broker may be out of reach (`forgiving`), that
/// is a note and no failure.
pub async fn publish_membership(
    operator: &Operator,
    repository: &mut Repository,
    changes: &[(DeviceId, BTreeSet<GroupName>)],
    offline: bool,
    forgiving: bool,
) -> Result<()> {
    let standing = if offline {
        None
    } else {
        match operator.standing(repository).await {
            Ok(standing) => Some(standing),
            Err(error) if forgiving && is_broken_link(&error) => {
                operator
                    .printer
                    .note(&format!("{error:#}; publish later with `fleetctl sync`"));
                None
            }
            Err(error) => return Err(error),
        }
    };
    for (device, groups) in changes {
        repository.set_groups(device, groups.clone())?;
    }
    let publication = repository.commit(&operator.keys(repository)?, Timestamp::now())?;
    if let Some(standing) = standing {
        operator.publish(repository, &publication, standing).await?;
    }
    Ok(())
}

impl List {
    fn run(self, operator: &Operator) -> Result<ExitCode> {
        let repository = operator.repository()?;
        let mut groups: BTreeMap<GroupName, Vec<DeviceId>> = repository
            .groups()?
            .into_iter()
            .map(|group| (group, Vec::new()))
            .collect();
        for (device, its_groups) in repository.membership()? {
            for group in its_groups {
                groups.entry(group).or_default().push(device.clone());
            }
        }
        if self.json {
            let rows = groups
                .iter()
                .map(|(group, devices)| {
                    let desired = repository.desired(group)?;
                    Ok(json!({ "group": group, "devices": devices, "desired": desired }))
                })
                .collect::<Result<Vec<_>>>()?;
            operator
                .printer
                .json(&json!({ "fleet": operator.home.fleet(), "groups": rows }))?;
            return Ok(ExitCode::SUCCESS);
        }
        if groups.is_empty() {
            operator
                .printer
                .note("there is no group; `fleetctl group add GROUP DEVICE` makes one");
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = vec![
            ["GROUP", "DEVICES", "SHOULD RUN"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for (group, devices) in &groups {
            let desired = repository.desired(group)?;
            let (models, routing) = desired.map(|d| (d.models, d.routing)).unwrap_or_default();
            let wishes = models
                .iter()
                .map(|(model, wish)| format!("{model} {}{}", wish.version, rollouts::share(wish)));
            let routing = routing
                .iter()
                .map(|(model, routing)| format!("{model} {routing}"));
            let wishes: Vec<_> = wishes.chain(routing).collect();
            let wishes = if wishes.is_empty() {
                "-".to_owned()
            } else {
                wishes.join(", ")
            };
            let devices: Vec<_> = devices.iter().map(DeviceId::as_str).collect();
            let devices = match devices.len() {
                0 => "-".to_owned(),
                1..=4 => devices.join(", "),
                count => format!("{}, … ({count})", devices[..3].join(", ")),
            };
            rows.push(vec![group.to_string(), devices, wishes]);
        }
        operator.printer.data(&table(&rows))?;
        Ok(ExitCode::SUCCESS)
    }
}
