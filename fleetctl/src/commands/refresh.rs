//! `fleetctl refresh`: the fleet stays fresh while nothing changes.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::sign::SigningRole;
use jiff::Timestamp;

use crate::operator::Operator;
use crate::printer::Printer;
use crate::{pending, renewal};

/// Sign timestamp and snapshot anew, so that a quiet fleet does not turn stale
///
/// Needs only the snapshot and timestamp keys: the host that runs it every day needs no other. Where the keys of
/// rollouts and of the certificate authority are at hand too, certificates of devices past two thirds of their lives
/// are renewed on the way. A device whose metadata is older than its site allows serves on and takes nothing new.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl refresh")]
pub struct Args {
    /// Do not ask the broker; carry the repository with `fleetctl export`
    #[arg(long)]
    offline: bool,
    /// Sign although this computer's clock is behind the last signature: the way back after something was
    /// signed on a computer whose clock ran ahead
    #[arg(long)]
    accept_earlier_clock: bool,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let mut repository = operator.repository()?;
        if self.accept_earlier_clock {
            repository.accept_earlier_clock();
        }
        let standing = match self.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        let keys = operator.keys(&repository)?;
        let now = Timestamp::now();
        let mut due = renewal::due(operator.home.devices().all()?, now);
        if !(operator.home.has_authority() && keys.has(SigningRole::Rollouts)) {
            due.clear();
        }
        if !due.is_empty()
            && let Err(problem) = renewal::unlock(&operator, &keys)
        {
            // A timer that knows no passphrase refreshes all the same.
            printer.warn(&format!(
                "certificates of {} devices are due and are not renewed: {problem:#}",
                due.len()
            ));
            due.clear();
        }
        let publication = if due.is_empty() {
            repository.refresh(&keys, now)?
        } else {
            printer.note(&format!("certificates of {} devices are due", due.len()));
            match renewal::renew(&operator, &mut repository, &keys, &due) {
                Err(problem) if pending::waits(&problem) => {
                    // The fleet stays fresh all the same, from what is signed.
                    printer.warn(&format!(
                        "they are not: {problem:#}. `fleetctl device renew` asks for the other signatures"
                    ));
                    repository = operator.repository()?;
                    repository.refresh(&keys, now)?
                }
                renewed => renewed?,
            }
        };
        if let Some(standing) = standing {
            operator
                .publish(&repository, &publication, standing)
                .await?;
        }
        printer.note(&format!(
            "timestamp {} is signed",
            repository.timestamp_version()
        ));
        Ok(ExitCode::SUCCESS)
    }
}
