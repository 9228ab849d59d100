//! `fleetctl sign`: what others made, read and signed here.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use edgeward_models::sign;
use jiff::Timestamp;

use crate::REFUSED;
use crate::operator::Operator;
use crate::pending;
use crate::printer::Printer;

/// Show what a change that waits for signatures would do, and sign it
///
/// Where a role needs more signatures than there are keys on one machine (`fleetctl key threshold`), the verb that
/// makes a change writes a file. Here it is shown in plain words what signing it would allow, against what is signed
/// now: every key, every version with its files' digests, every field of what devices are told. With your word the
/// keys that are here sign exactly those bytes, and the signatures are put into the file. When enough have signed,
/// `fleetctl publish` carries it out.
///
/// The metadata that the file changes must follow from the copy of the repository that this directory has; `fleetctl
/// pull` brings that up to date. Exit status: 0 signed; 1 not signed; 2 the file cannot be used.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl sign /media/stick/releases-rollouts-4fe21ab0.json")]
pub struct Args {
    file: PathBuf,
    /// Sign without asking
    #[arg(long)]
    yes: bool,
}

impl Args {
    pub fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let mut proposal = pending::read(&self.file)?;
        let reading = || format!("cannot sign {}", self.file.display());
        let before = proposal
            .verified_before(&repository)
            .with_context(reading)?;
        let lines = proposal
            .explain(&before, Timestamp::now())
            .with_context(reading)?;
        printer.data(&format!("made at {}, it would change:", proposal.made))?;
        for line in lines {
            printer.data(&line)?;
        }
        if !self.yes && !confirmed()? {
            printer.note("nothing is signed");
            return Ok(ExitCode::from(REFUSED));
        }
        let directory = operator.home.keys_directory();
        let present = operator.keys(&repository)?;
        let mut signed = proposal.sign(&before, &present)?;
        let after = proposal.roster_after(&before)?;
        let waiting = sign::keys_under(&directory, operator.home.unlock(), &after)?;
        signed.extend(proposal.sign(&before, &waiting)?);
        if signed.is_empty() {
            bail!(
                "none of the keys in {} may sign it and has not signed it; {}",
                directory.display(),
                pending::wanted(&proposal.lacks(&before)?)
            );
        }
        pending::write(&self.file, &proposal)?;
        signed.sort_unstable();
        signed.dedup();
        let roles: Vec<&str> = signed.iter().map(|role| role.name()).collect();
        let lacks = proposal.lacks(&before)?;
        printer.note(&format!(
            "signed for {}; {}",
            roles.join(", "),
            match lacks.is_empty() {
                true => "all signatures are there: carry it back and run `fleetctl publish FILE`"
                    .to_owned(),
                false => format!("still {}", pending::wanted(&lacks)),
            }
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks on the terminal. Whoever cannot be asked has not agreed.
fn confirmed() -> Result<bool> {
    let input = io::stdin();
    if !input.is_terminal() {
        bail!(
            "there is no terminal to ask for your word; read what it would change, then say --yes"
        );
    }
    write!(io::stderr(), "sign this? Type yes: ")?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
