//! `fleetctl rollback`: a group goes back to the version before.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use edgeward_models::fleet::health::HealthLimits;
use edgeward_models::name::{GroupName, ModelName, Version};

use super::change::{self, Asked, Pace, Waiting};
use crate::operator::Operator;
use crate::printer::Printer;

/// Have a group go back to the version it ran before
///
/// This is a new wish with a new sequence number, signed and published like a push: devices never obey an
/// older one. A device that still holds the earlier version need not fetch it again. Exit status as for push.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollback digits --group radiology
  fleetctl rollback digits --group radiology --to 1.0.0")]
pub struct Args {
    model: ModelName,
    /// The group that is to go back
    #[arg(long)]
    group: GroupName,
    /// The version to go back to; absent: the one that the group ran before this one
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    waiting: Waiting,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let before = repository
            .desired(&self.group)?
            .with_context(|| format!("nothing was ever pushed to group {}", self.group))?;
        let wish = before.models.get(&self.model).with_context(|| {
            format!(
                "group {} was never asked to run model {}",
                self.group, self.model
            )
        })?;
        let target = match &self.to {
            Some(version) => version.clone(),
            None => wish.previous.clone().with_context(|| {
                format!(
                    "group {} ran no other version of {} before {}; name one with --to",
                    self.group, self.model, wish.version
                )
            })?,
        };
        if target == wish.version {
            bail!(
                "group {} is asked to run {} {target} already",
                self.group,
                self.model
            );
        }
        let versions = repository.versions(&self.model)?;
        let Some((_, release)) = versions.iter().find(|(version, _)| *version == target) else {
            let known: Vec<_> = versions
                .iter()
                .map(|(version, _)| version.to_string())
                .collect();
            bail!(
                "{} {target} was never pushed; there are {}",
                self.model,
                known.join(", ")
            );
        };
        let standing = match self.waiting.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        // The version to go back to is known; the one that it would be measured against is what must go.
        let pace = Pace {
            soak: self.pace.soak.or(Some(0)),
            ..self.pace
        };
        let asked = Asked {
            verb: "rollback",
            model: &self.model,
            version: &target,
            release: *release,
            pace: &pace,
            health: HealthLimits::default(),
            waves: None,
        };
        let desired = change::wish(Some(before), &self.group, asked)?;
        change::carry_out(
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
