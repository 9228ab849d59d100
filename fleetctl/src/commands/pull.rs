//! `fleetctl pull`: what other operators published, into this copy of the repository.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::repository::DirectorySource;

use crate::operator::Operator;
use crate::printer::Printer;

/// Bring this copy of the repository up to what others published
///
/// For a second operator with a directory of their own, and for machines that only sign (`fleetctl init --join`).
/// From the broker, or from a directory that `fleetctl export` wrote. Everything is verified from the root that is
/// known here. Who published at the same moment as somebody else and lost has a change that nobody has: it is given
/// up with --discard-own, and made anew.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl pull
  fleetctl pull /media/stick/hospital")]
pub struct Args {
    /// Take it from this directory instead of the broker
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Give up changes of this copy that were not published
    #[arg(long)]
    discard_own: bool,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let mut repository = operator.repository()?;
        let changed = match &self.directory {
            Some(directory) => {
                let source = DirectorySource::open(directory)
                    .with_context(|| format!("cannot read {}", directory.display()))?;
                repository.pull(&source, self.discard_own).await?
            }
            None => {
                let link = operator.connect().await?;
                let carrier = operator.carrier(&link);
                let changed = repository.pull(&carrier.source(), self.discard_own).await?;
                link.close().await;
                changed
            }
        };
        printer.note(&match changed {
            true => format!("timestamp {} is here", repository.timestamp_version()),
            false => "nothing is newer than what is here".to_owned(),
        });
        Ok(ExitCode::SUCCESS)
    }
}
