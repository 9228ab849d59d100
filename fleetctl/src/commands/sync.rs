//! `fleetctl sync`: the broker gets everything that it should hold.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::operator::Operator;
use crate::printer::Printer;

/// Publish the whole repository again: the broker is a copy that may lose everything
///
/// What the broker holds with the same bytes is not sent again, and nothing is removed. Use it after the
/// broker lost its retained messages, after work with --offline, and when a publication broke off.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl sync")]
pub struct Args {}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let (sent, present) = operator.sync(&repository).await?;
        printer.note(&format!(
            "{sent} messages were published, {present} were there"
        ));
        Ok(ExitCode::SUCCESS)
    }
}
