//! `fleetctl controller`: widens all rollouts, as a service.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::operator::Operator;
use crate::overseer;
use crate::printer::Printer;

/// Widen or halt all rollouts in waves, until it is ended
///
/// What `fleetctl rollout watch` does for one rollout, for all of them and for ever: a small service on the operator's
/// machine. It needs the keys of rollouts, snapshot and timestamp. It keeps nothing of its own: whatever it has
/// missed, it finds in the repository and in what the broker retains.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl controller
  systemctl enable --now fleetctl-controller")]
pub struct Args {}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let mut asked = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        printer.note("watching all rollouts in waves");
        tokio::select! {
            ended = overseer::control(&operator) => ended?,
            _ = asked.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}
