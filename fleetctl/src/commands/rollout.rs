//! `fleetctl rollout`: rollouts in waves.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use edgeward_models::fleet::rollout::Wish;
use edgeward_models::fleet::waves::{Decision, Waves, later};
use edgeward_models::name::{GroupName, ModelName};
use jiff::Timestamp;

use super::change::Waiting;
use crate::operator::Operator;
use crate::overseer;
use crate::printer::Printer;
use crate::rollouts::{self, Rollout};
use crate::statuses::{self, Heard};

mod list;

/// Watch, widen, pause and abort rollouts in waves
#[derive(Debug, Subcommand)]
pub enum Verb {
    List(list::List),
    Watch(Watch),
    Advance(Advance),
    Pause(Pause),
    Resume(Resume),
    Abort(Abort),
}

/// Which rollout.
#[derive(Debug, clap::Args)]
pub struct Which {
    model: ModelName,
    /// The group that it is for
    #[arg(long)]
    group: GroupName,
}

/// Widen a rollout wave by wave until it is complete or halted
///
/// As `fleetctl push --waves` does. It may be ended and begun again at any time.
///
/// Exit status: 0 every device serves the version and is well; 1 the rollout was halted; 2 it was superseded, or
/// the broker could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollout watch digits --group radiology")]
pub struct Watch {
    #[command(flatten)]
    which: Which,
    /// How long to wait for devices to go back, the jitter not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Write the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Open the next wave
///
/// For rollouts that were pushed with --approve, and to go on before a wave is complete.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollout advance digits --group radiology")]
pub struct Advance {
    #[command(flatten)]
    which: Which,
    /// Although devices of this wave have no outcome yet
    #[arg(long)]
    now: bool,
}

/// Open no further wave until `resume`
///
/// Devices that may move already still do, and failures still halt the rollout.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollout pause digits --group radiology")]
pub struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Let a paused rollout go on
///
/// If its deadline has passed, or if it was halted with nothing to go back to, it gets another chance.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollout resume digits --group radiology")]
pub struct Resume {
    #[command(flatten)]
    which: Which,
    /// When it must be over, from now, if its deadline has passed
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    deadline: u32,
}

/// End a rollout; devices that moved go back to what the group ran before
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollout abort digits --group radiology --reason 'wrong training data'")]
pub struct Abort {
    #[command(flatten)]
    which: Which,
    /// Why; it is signed and kept
    #[arg(long, default_value = "aborted by an operator")]
    reason: String,
}

impl Verb {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        match self {
            Self::List(args) => args.run(&operator),
            Self::Watch(Watch {
                which,
                timeout,
                json,
            }) => {
                let waiting = Waiting {
                    no_wait: false,
                    timeout,
                    offline: false,
                    json,
                };
                overseer::watch(&operator, &which.group, &which.model, &waiting).await
            }
            Self::Advance(args) => args.run(&operator).await,
            Self::Pause(args) => {
                change(&operator, &args.which, "pause", |waves| waves.paused = true).await?;
                args.which.tell(printer, "is paused")
            }
            Self::Resume(Resume { which, deadline }) => {
                let now = Timestamp::now();
                change(&operator, &which, "resume", |waves| {
                    (waves.paused, waves.halted) = (false, None);
                    if waves.ends < now {
                        waves.ends = later(now, deadline);
                    }
                    // Whoever was silent while it stood still is given its time.
                    waves.opened = now;
                })
                .await?;
                which.tell(printer, "goes on")
            }
            Self::Abort(args) => args.run(&operator).await,
        }
    }
}

impl Which {
    fn tell(&self, printer: &Printer, what: &str) -> Result<ExitCode> {
        printer.note(&format!(
            "the rollout of {} in group {} {what}",
            self.model, self.group
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// Changes the waves of a rollout, nothing else of it.
async fn change(
    operator: &Operator,
    which: &Which,
    verb: &'static str,
    change: impl FnOnce(&mut Waves),
) -> Result<Wish> {
    rollouts::revise(operator, &which.group, &which.model, verb, |_, rollout| {
        let mut waves = rollout.waves.clone();
        change(&mut waves);
        Ok(Wish {
            waves: Some(waves),
            ..rollout.wish.clone()
        })
    })
    .await
}

impl Advance {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let Which { model, group } = &self.which;
        let rollout = rollouts::find(&operator.repository()?, group, model)?;
        if rollout.waves.reaches_everybody() {
            bail!("every device of group {group} may move already");
        }
        if rollout.waves.halted.is_some() {
            bail!("it was halted; push a version that is well, or roll back");
        }
        if !self.now {
            ready(operator, &rollout).await?;
        }
        let judged = rollout.wish.clone();
        let wish = rollouts::revise(operator, group, model, "advance", |_, rollout| {
            if rollout.wish != judged {
                bail!("the rollout was changed meanwhile; look at it again");
            }
            Ok(rollouts::widened(rollout))
        })
        .await?;
        let rollout = Rollout {
            waves: wish.waves.clone().unwrap_or(rollout.waves),
            wish,
            ..rollout
        };
        let (devices, wave) = (rollout.moving().count(), rollout.wave());
        self.which.tell(
            &operator.printer,
            &format!("is in {wave}: {devices} devices may move"),
        )
    }
}

/// An error unless the wave is complete and well.
async fn ready(operator: &Operator, rollout: &Rollout) -> Result<()> {
    let registry = operator.home.devices();
    let mut devices = Vec::new();
    for id in rollout.moving() {
        devices.extend(registry.get(id)?);
    }
    let reports = statuses::hear(operator, &devices).await?;
    let heard = reports
        .into_iter()
        .filter_map(|report| match report.status {
            Heard::Status(status) => Some((report.device, *status)),
            Heard::Nothing | Heard::NotBelieved(_) => None,
        })
        .collect();
    let now = Timestamp::now();
    let tally = rollouts::tally(&rollout.outcomes(&heard, now));
    match rollout.waves.decide(&tally, now) {
        Decision::Wait => bail!(
            "{} of the devices of {} have no outcome yet; --now opens the next one all the same",
            tally.pending,
            rollout.wave()
        ),
        Decision::Halt(reason) => bail!(
            "{reason}: `fleetctl rollout abort {} --group {}` takes it back, `fleetctl rollout watch` does so too",
            rollout.model,
            rollout.group
        ),
        Decision::Halted => {
            bail!("it was halted; `fleetctl rollout resume` gives it another chance")
        }
        Decision::Widen | Decision::AwaitApproval | Decision::Paused | Decision::Complete => Ok(()),
    }
}

impl Abort {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let Which { model, group } = &self.which;
        let what = format!("abort ({})", self.reason);
        let wish = rollouts::revise(operator, group, model, &what, |repository, rollout| {
            rollouts::withdrawn(repository, rollout, &self.reason)
        })
        .await?;
        let what = match &wish.withdrawn {
            Some(_) => format!("is aborted; its devices go back to {}", wish.version),
            None => {
                "goes no further; the group ran nothing before that it could go back to".to_owned()
            }
        };
        self.which.tell(&operator.printer, &what)
    }
}
