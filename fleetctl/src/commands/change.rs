//! What `push` and `rollback` share: the new desired state of a group, its publication and its outcome.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use edgeward_models::fleet::health::HealthLimits;
use edgeward_models::fleet::rollout::{DesiredState, Wish};
use edgeward_models::fleet::waves::Waves;
use edgeward_models::name::{DeviceId, GroupName, ModelName, RolloutId, Version};
use edgeward_models::sign::Repository;
use jiff::Timestamp;
use serde::Serialize;

use crate::carrier::Standing;
use crate::devices::Device;
use crate::history;
use crate::operator::Operator;
use crate::overseer;
use crate::printer::table;
use crate::rollouts::{self, new_rollout};
use crate::watch::{self, Outcome, Wanted, Watch, What};
use crate::{FAILED, REFUSED};

/// How fast a group moves.
#[derive(Debug, Clone, clap::Args)]
pub struct Pace {
    /// The share of the group that may move now
    #[arg(long, value_name = "P", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub percent: u8,
    /// Devices begin within this time, each at its own moment, to spare the broker
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub jitter: u32,
    /// How long a device watches the new version, ready to put the previous one back [default: 60, after a rollback 0]
    #[arg(long, value_name = "SECONDS")]
    pub soak: Option<u32>,
}

impl Pace {
    pub fn soak_seconds(&self) -> u32 {
        const USUAL: u32 = 60;
        self.soak.unwrap_or(USUAL)
    }
}

/// Whether and how long to wait for the devices.
#[derive(Debug, Clone, clap::Args)]
pub struct Waiting {
    /// Do not wait for the devices
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for the devices, the jitter not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// Change and sign the repository only; publish later with `fleetctl sync` or carry it with
    /// `fleetctl export`
    #[arg(long)]
    pub offline: bool,
    /// Write the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a group is asked for.
pub struct Asked<'a> {
    /// By which command.
    pub verb: &'static str,
    pub model: &'a ModelName,
    pub version: &'a Version,
    pub release: u64,
    pub pace: &'a Pace,
    pub health: HealthLimits,
    /// The plan of the waves, none of them open, and the devices of the group.
    pub waves: Option<(Waves, BTreeSet<DeviceId>)>,
}

/// The desired state that follows `before` when the group is to run this version.
pub fn wish(
    before: Option<DesiredState>,
    group: &GroupName,
    asked: Asked<'_>,
) -> Result<DesiredState> {
    let Asked {
        verb,
        model,
        version,
        release,
        pace,
        health,
        waves,
    } = asked;
    let mut desired = before.unwrap_or_else(|| DesiredState::new(group.clone()));
    desired.sequence += 1;
    let current = desired.models.get(model);
    let same = current.filter(|wish| wish.version == *version && wish.release == release);
    let rollout = match same {
        // A device's place in the waves hangs on the rollout: a wider wave must keep it.
        Some(wish) if waves.is_none() && wish.waves.is_none() && wish.percent < pace.percent => {
            wish.rollout.clone()
        }
        _ => new_rollout(desired.sequence)?,
    };
    let previous = match current {
        // A rollout that some have not seen is nothing that the group could go back to.
        Some(wish) if same.is_some() || !wish.reaches_everybody() => wish.previous.clone(),
        current => current.map(|wish| wish.version.clone()),
    };
    let now = Timestamp::now();
    let waves = waves.map(|(plan, members)| plan.widened(&members, &rollout, now));
    let wish = Wish {
        previous: previous.filter(|previous| previous != version),
        percent: pace.percent,
        waves,
        jitter_seconds: pace.jitter,
        soak_seconds: pace.soak_seconds(),
        health,
        ..Wish::new(version.clone(), release, rollout)
    };
    let share = rollouts::share(&wish);
    desired.models.insert(model.clone(), wish);
    history::remember(&mut desired, format!("{verb} {model} {version}{share}"));
    Ok(desired)
}

/// What is said in the end.
#[derive(Serialize)]
struct Summary<'a> {
    group: &'a GroupName,
    model: &'a ModelName,
    version: &'a Version,
    release: u64,
    sequence: u64,
    rollout: &'a RolloutId,
    devices: Vec<Row<'a>>,
}

#[derive(Serialize)]
pub struct Row<'a> {
    device: &'a DeviceId,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// Signs a desired state and publishes it; false: it is signed alone, there being no `standing` to publish upon.
pub async fn publish(
    operator: &Operator,
    repository: &mut Repository,
    desired: &DesiredState,
    standing: Option<Standing>,
    what: &str,
) -> Result<bool> {
    repository.set_desired(desired)?;
    let publication = repository.commit(&operator.keys(repository)?, Timestamp::now())?;
    let Some(standing) = standing else {
        operator.printer.note(&format!(
            "{what} is signed; publish it with `fleetctl sync` or carry it with `fleetctl export`"
        ));
        return Ok(false);
    };
    operator.publish(repository, &publication, standing).await?;
    operator.printer.note(&format!("{what} is published"));
    Ok(true)
}

/// Signs and publishes a desired state, then follows it on the devices. `standing` absent: offline.
pub async fn carry_out(
    operator: &Operator,
    mut repository: Repository,
    desired: DesiredState,
    model: &ModelName,
    standing: Option<Standing>,
    waiting: &Waiting,
) -> Result<ExitCode> {
    let wish = desired
        .models
        .get(model)
        .context("the desired state does not name the model")?;
    let what = format!(
        "{model} {} (release {}) for group {}",
        wish.version, wish.release, desired.group
    );
    let mut outcomes = Vec::new();
    if publish(operator, &mut repository, &desired, standing, &what).await? {
        let (devices, later) = concerned(operator, &repository, &desired.group, wish)?;
        // Others may use the repository while this one waits.
        drop(repository);
        if wish.waves.is_some() {
            if waiting.no_wait {
                operator.printer.note(&format!(
                        "{} devices may move now, {later} wait for later waves; `fleetctl rollout watch {model} \
                         --group {}` widens it, as does `fleetctl controller`",
                        devices.len(),
                        desired.group
                    ));
                return Ok(ExitCode::SUCCESS);
            }
            return overseer::watch(operator, &desired.group, model, waiting).await;
        }
        if later > 0 {
            operator.printer.note(&format!(
                "{later} more devices of the group wait for a --percent larger than {}",
                wish.percent
            ));
        }
        if devices.is_empty() {
            operator.printer.note(&format!(
                "no device of group {} is to move now",
                desired.group
            ));
        } else if !waiting.no_wait {
            let wanted = Wanted {
                group: desired.group.clone(),
                sequence: desired.sequence,
                model: model.clone(),
                what: What::Active {
                    version: wish.version.clone(),
                    release: wish.release,
                },
            };
            let time = Duration::from_secs(waiting.timeout + u64::from(wish.jitter_seconds));
            let watch = Watch::new(wanted, devices, operator.home.memory()?);
            outcomes = watch::follow(operator, watch, time).await?.outcomes();
        }
    }
    if waiting.json {
        operator.printer.json(&Summary {
            group: &desired.group,
            model,
            version: &wish.version,
            release: wish.release,
            sequence: desired.sequence,
            rollout: &wish.rollout,
            devices: rows(&outcomes),
        })?;
    } else if !outcomes.is_empty() {
        operator
            .printer
            .data(&describe(&format!("{model} {}", wish.version), &outcomes))?;
    }
    Ok(exit_code(&outcomes))
}

/// The devices of the group that may move now, and how many more there are.
fn concerned(
    operator: &Operator,
    repository: &Repository,
    group: &GroupName,
    wish: &Wish,
) -> Result<(Vec<Device>, usize)> {
    let later = Cell::new(0);
    let devices = members(operator, repository, group, |id| {
        let now = wish.includes(id);
        later.set(later.get() + usize::from(!now));
        now
    })?;
    Ok((devices, later.get()))
}

/// The devices of a group whose word can be believed, of those that `concerns`.
pub fn members(
    operator: &Operator,
    repository: &Repository,
    group: &GroupName,
    concerns: impl Fn(&DeviceId) -> bool,
) -> Result<Vec<Device>> {
    let registry = operator.home.devices();
    let mut devices = Vec::new();
    let all = repository.membership()?;
    let members = all.iter().filter(|(_, groups)| groups.contains(group));
    for (id, _) in members.filter(|(id, _)| concerns(id)) {
        match registry.get(id)? {
            Some(device) => devices.push(device),
            None => operator.printer.warn(&format!(
                "device {id} is in the group and its certificate is not in this home: nothing it says can be believed"
            )),
        }
    }
    Ok(devices)
}

pub fn rows(outcomes: &[(DeviceId, Outcome)]) -> Vec<Row<'_>> {
    let rows = outcomes.iter();
    rows.map(|(device, outcome)| Row { device, outcome })
        .collect()
}

/// A line for each device, about `what`.
pub fn describe(what: &str, outcomes: &[(DeviceId, Outcome)]) -> String {
    let rows: Vec<_> = outcomes
        .iter()
        .map(|(device, outcome)| {
            let (word, text) = match outcome {
                Outcome::Active { delegate } => ("active", format!("{what} on {delegate}")),
                Outcome::Routed { versions } if versions.is_empty() => {
                    ("routed", format!("{what}: the active version alone"))
                }
                Outcome::Routed { versions } => (
                    "routed",
                    format!("{what}: beside it {}", versions.join(", ")),
                ),
                Outcome::Refused { reason } => ("refused", reason.clone()),
                Outcome::Silent { reason } => ("silent", reason.clone()),
            };
            vec![device.to_string(), word.to_owned(), text]
        })
        .collect();
    table(&rows)
}

/// 0: every device serves it; 1: one said no; 2: one did not say.
pub fn exit_code(outcomes: &[(DeviceId, Outcome)]) -> ExitCode {
    let any = |kind: fn(&Outcome) -> bool| outcomes.iter().any(|(_, outcome)| kind(outcome));
    if any(|o| matches!(o, Outcome::Refused { .. })) {
        ExitCode::from(REFUSED)
    } else if any(|o| matches!(o, Outcome::Silent { .. })) {
        ExitCode::from(FAILED)
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests;
