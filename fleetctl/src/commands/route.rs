//! `fleetctl route`: which versions a group serves beside the active one, and how requests find them.
//!
//! `push --label` uses it too, for a version that is to be served and not to be the active one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgGroup;
use edgeward_models::fleet::rollout::DesiredState;
use edgeward_models::fleet::routing::{Routing, parse_label, parse_weight};
use edgeward_models::name::{GroupName, LabelName, ModelName, Version};
use edgeward_models::sign::Repository;
use serde_json::json;

use super::change::{self, Waiting};
use crate::carrier::Standing;
use crate::history;
use crate::operator::Operator;
use crate::printer::Printer;
use crate::rollouts;
use crate::watch::{self, Wanted, Watch, What};

/// Say which versions of a model a group serves beside the active one, and how requests find them
///
/// This is the whole routing of the model: what is not named any more is not served beside the active version any
/// more. Which version is the active one, `push` and `rollback` alone say. The routing is signed, and every device of the
/// group follows it at once; a version that does not run there is told and kept out, and the active one serves on.
/// `fleetctl push --label` signs a version and adds it here in one step.
///
/// Exit status as for push.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true), after_long_help = "\
Examples:
  fleetctl route digits --group radiology --label stable=1.0.0 --label canary=2.0.0
  fleetctl route digits --group radiology --label canary=2.0.0 --split 1.0.0=90,2.0.0=10
  fleetctl route digits --group radiology --shadow 3.0.0
  fleetctl route digits --group radiology --clear")]
pub struct Args {
    model: ModelName,
    /// The group whose devices are to follow it
    #[arg(long)]
    group: GroupName,
    /// A name that requests may use instead of the version
    #[arg(long = "label", value_name = "NAME=VERSION", value_parser = parse_label, group = "what")]
    labels: Vec<(LabelName, Version)>,
    /// How requests that name no version are split, by weight; those with one sticky key go to the same version
    #[arg(long, value_name = "VERSION=WEIGHT,…", value_delimiter = ',', value_parser = parse_weight, group = "what")]
    split: Vec<(Version, u32)>,
    /// A version that gets a copy of the requests that name none, and whose answers are compared with those given
    #[arg(long, value_name = "VERSION", group = "what")]
    shadow: Option<Version>,
    /// A version to be served that nothing else here names
    #[arg(long = "also", value_name = "VERSION", group = "what")]
    versions: Vec<Version>,
    /// The active version alone
    #[arg(long, group = "what", conflicts_with_all = ["labels", "split", "shadow", "versions"])]
    clear: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let before = repository.desired(&self.group)?;
        let routing = Routing {
            rollout: None,
            labels: self.labels.into_iter().collect(),
            split: self.split.into_iter().collect(),
            shadow: self.shadow,
            versions: self.versions.into_iter().collect(),
        };
        let desired = routed(&repository, before, &self.group, &self.model, routing)?;
        let standing = match self.waiting.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        carry_out(
            &operator,
            repository,
            desired,
            &self.model,
            standing,
            &self.waiting,
        )
        .await
    }
}

/// The desired state that follows `before` when a version is to be served under a label, beside whatever is active.
pub fn labelled(
    repository: &Repository,
    before: Option<DesiredState>,
    group: &GroupName,
    model: &ModelName,
    (label, version): (LabelName, Version),
) -> Result<DesiredState> {
    let mut routing = before
        .as_ref()
        .and_then(|desired| desired.routing.get(model).cloned())
        .unwrap_or_default();
    routing.labels.insert(label, version);
    routed(repository, before, group, model, routing)
}

/// The desired state that follows `before` when a model is to be routed so.
fn routed(
    repository: &Repository,
    before: Option<DesiredState>,
    group: &GroupName,
    model: &ModelName,
    mut routing: Routing,
) -> Result<DesiredState> {
    let mut desired = before
        .filter(|desired| desired.models.contains_key(model))
        .with_context(|| {
            format!("group {group} was never asked to run model {model}: push a version first")
        })?;
    routing.check()?;
    let known: BTreeSet<Version> = repository
        .versions(model)?
        .into_iter()
        .map(|(version, _)| version)
        .collect();
    if let Some(unknown) = routing.named().into_iter().find(|v| !known.contains(v)) {
        let known: Vec<_> = known.iter().map(ToString::to_string).collect();
        bail!(
            "{model} {unknown} was never pushed; there are {}",
            known.join(", ")
        );
    }
    desired.sequence += 1;
    if routing.is_empty() {
        desired.routing.remove(model);
    } else {
        routing.rollout = Some(rollouts::new_rollout(desired.sequence)?);
        desired.routing.insert(model.clone(), routing);
    }
    Ok(desired)
}

/// Signs and publishes a desired state whose routing of `model` is new, then follows it on the devices. `standing`
/// absent: offline.
pub async fn carry_out(
    operator: &Operator,
    mut repository: Repository,
    mut desired: DesiredState,
    model: &ModelName,
    standing: Option<Standing>,
    waiting: &Waiting,
) -> Result<ExitCode> {
    let routing = desired.routing.get(model).cloned().unwrap_or_default();
    history::remember(&mut desired, format!("route {model} {routing}"));
    let what = format!("{model} for group {}: {routing}", desired.group);
    let mut outcomes = Vec::new();
    if change::publish(operator, &mut repository, &desired, standing, &what).await? {
        let devices = change::members(operator, &repository, &desired.group, |_| true)?;
        // Others may use the repository while this one waits.
        drop(repository);
        if !devices.is_empty() && !waiting.no_wait {
            let wanted = Wanted {
                group: desired.group.clone(),
                sequence: desired.sequence,
                model: model.clone(),
                what: What::Routing(routing.clone()),
            };
            let watch = Watch::new(wanted, devices, operator.home.memory()?);
            let time = Duration::from_secs(waiting.timeout);
            outcomes = watch::follow(operator, watch, time).await?.outcomes();
        }
    }
    if waiting.json {
        operator.printer.json(&json!({
            "group": desired.group,
            "model": model,
            "sequence": desired.sequence,
            "routing": routing,
            "devices": change::rows(&outcomes),
        }))?;
    } else if !outcomes.is_empty() {
        operator
            .printer
            .data(&change::describe(model.as_str(), &outcomes))?;
    }
    Ok(change::exit_code(&outcomes))
}
