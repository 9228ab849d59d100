//! `fleetctl export`: the repository for a USB stick.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::operator::Operator;
use crate::printer::Printer;

/// Write the whole signed repository to a directory, for devices that no line reaches
///
/// `edgeward import DIR` on the device takes it, with the same checks as over the broker. A copy older
/// than what the device knows does no harm.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl export /media/stick/hospital")]
pub struct Args {
    /// The directory to write; it is made if it does not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Args {
    pub fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        repository.export(&self.directory)?;
        printer.note(&format!(
            "timestamp {} of fleet {} is in {}",
            repository.timestamp_version(),
            operator.home.fleet(),
            self.directory.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}
