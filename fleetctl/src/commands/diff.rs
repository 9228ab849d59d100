//! `fleetctl diff`: what devices run, beside what they should.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::fleet::rollout::DesiredState;
use edgeward_models::name::{DeviceId, GroupName, ModelName, Version};
use edgeward_models::sign::Repository;
use serde::Serialize;
use serde_json::json;

use super::change;
use crate::operator::Operator;
use crate::printer::{Printer, table};
use crate::statuses::{self, Heard};

/// Show what would change on the devices of a group if they did all that is signed
///
/// `fleetctl push --dry-run` shows the same for a push that is not made.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl diff radiology
  fleetctl push digits-2.0.0.tflite --group radiology --waves 10% --dry-run")]
pub struct Args {
    group: GroupName,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let desired = repository
            .desired(&self.group)?
            .with_context(|| format!("nothing was ever pushed to group {}", self.group))?;
        show(&operator, repository, &desired, self.json).await
    }
}

/// One device that would run something else.
#[derive(Serialize)]
struct Difference {
    device: DeviceId,
    model: ModelName,
    /// Absent: nothing, or the device has never said.
    runs: Option<Version>,
    heard: bool,
    should_run: Version,
    /// It may move at once; others wait for a later wave.
    now: bool,
}

/// Asks the devices of the group and says where they differ from this desired state.
pub async fn show(
    operator: &Operator,
    repository: Repository,
    desired: &DesiredState,
    json: bool,
) -> Result<ExitCode> {
    let devices = change::members(operator, &repository, &desired.group, |_| true)?;
    // Others may use it while this one asks.
    drop(repository);
    let reports = statuses::hear(operator, &devices).await?;
    let mut differences = Vec::new();
    for report in &reports {
        let status = match &report.status {
            Heard::Status(status) => Some(status),
            Heard::Nothing | Heard::NotBelieved(_) => None,
        };
        for (model, wish) in &desired.models {
            let said = status.and_then(|s| s.models.iter().find(|m| m.model == *model));
            let runs = said
                .and_then(|m| m.active.as_ref())
                .map(|a| a.version.clone());
            if runs.as_ref() != Some(&wish.version) {
                differences.push(Difference {
                    device: report.device.clone(),
                    model: model.clone(),
                    runs,
                    heard: status.is_some(),
                    should_run: wish.version.clone(),
                    now: wish.includes(&report.device),
                });
            }
        }
    }
    if json {
        operator.printer.json(&json!({
            "group": desired.group, "sequence": desired.sequence, "devices": reports.len(),
            "differences": differences,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if differences.is_empty() {
        operator.printer.note(&format!(
            "all {} devices of group {} run what they should",
            reports.len(),
            desired.group
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["DEVICE", "MODEL", "RUNS", "SHOULD RUN", "WHEN"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(differences.iter().map(|difference| {
        let runs = match (&difference.runs, difference.heard) {
            (Some(version), _) => version.to_string(),
            (None, true) => "nothing".to_owned(),
            (None, false) => "unknown".to_owned(),
        };
        let when = if difference.now { "now" } else { "later" };
        vec![
            difference.device.to_string(),
            difference.model.to_string(),
            runs,
            difference.should_run.to_string(),
            when.to_owned(),
        ]
    }));
    operator.printer.data(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}
