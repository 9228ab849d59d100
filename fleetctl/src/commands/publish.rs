//! `fleetctl publish`: a change that others have signed is carried out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::sign::{self, SignError};
use jiff::Timestamp;

use crate::REFUSED;
use crate::operator::Operator;
use crate::pending;
use crate::printer::Printer;

/// Carry out a change that was signed elsewhere
///
/// Run it where the change was made: the files of a new version are there. The signatures are counted, snapshot and
/// timestamp are signed here, and everything is published. Where the repository moved on meanwhile the change is
/// refused, since it would undo what came between: make it anew.
///
/// Exit status: 0 done; 1 signatures are missing; 2 it could not be carried out.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl publish /media/stick/releases-rollouts-4fe21ab0.json")]
pub struct Args {
    file: PathBuf,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let proposal = pending::read(&self.file)?;
        let mut repository = operator.repository()?;
        let standing = match self.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        let directory = operator.home.keys_directory();
        operator.keys(&repository)?;
        let after = repository.roster_after(&proposal)?;
        let keys = sign::keys_under(&directory, operator.home.unlock(), &after)?;
        let publication = match repository.complete(proposal, &keys, Timestamp::now()) {
            Err(SignError::Unsigned { lacks, .. }) => {
                printer.note(&format!("not published: {}", pending::wanted(&lacks)));
                return Ok(ExitCode::from(REFUSED));
            }
            publication => {
                publication.with_context(|| format!("cannot publish {}", self.file.display()))?
            }
        };
        sign::settle(&directory, &repository)?;
        if let Some(standing) = standing {
            operator
                .publish(&repository, &publication, standing)
                .await?;
        }
        printer.note(&format!(
            "timestamp {} is signed{}",
            repository.timestamp_version(),
            match self.offline {
                true => "; publish it with `fleetctl sync` or carry it with `fleetctl export`",
                false => " and published",
            }
        ));
        Ok(ExitCode::SUCCESS)
    }
}
