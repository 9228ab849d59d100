//! Changes that wait for signatures of other machines, each a file.
//!
//! Whatever verb made it, it ends here when the keys at hand do not suffice: nothing is changed, and the file goes to
//! the others. `sign` adds signatures to it, `publish` carries it out.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::durable::{self, Access};
use edgeward_models::sign::{Lack, MAX_PROPOSAL_BYTES, Proposal, SignError};

use crate::REFUSED;
use crate::printer::Printer;

/// Whether an error is about signatures of keys that are not at hand.
pub fn waits(error: &anyhow::Error) -> bool {
    unsigned(error).is_some()
}

fn unsigned(error: &anyhow::Error) -> Option<(&Vec<Lack>, &Proposal)> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(SignError::Unsigned { lacks, proposal }) => Some((lacks, proposal.as_ref())),
        _ => None,
    })
}

/// Writes the change that an error is about into the home, and says what is to be done with it. Other errors pass.
pub fn keep(home: &Path, printer: &Printer, error: anyhow::Error) -> Result<ExitCode> {
    let Some((lacks, proposal)) = unsigned(&error) else {
        return Err(error);
    };
    let directory = home.join("pending");
    durable::create_directory(&directory)?;
    let path = directory.join(proposal.name());
    write(&path, proposal)?;
    printer.note(&format!(
        "nothing is changed yet: more signatures are needed. {}",
        wanted(lacks)
    ));
    printer.note(
        "Carry this file to where those keys are and run `fleetctl sign FILE` there; then, here, `fleetctl publish \
         FILE`:",
    );
    printer.data(&path.display().to_string())?;
    Ok(ExitCode::from(REFUSED))
}

/// What is missing, with the keys that could sign.
pub fn wanted(lacks: &[Lack]) -> String {
    let lacks: Vec<String> = lacks
        .iter()
        .map(|lack| {
            let from: Vec<&str> = lack.from.iter().map(|id| &id[..id.len().min(12)]).collect();
            format!(
                "{lack} signatures, keys {} have not signed",
                from.join(", ")
            )
        })
        .collect();
    lacks.join("; ")
}

pub fn read(path: &Path) -> Result<Proposal> {
    let bytes = durable::read(path, MAX_PROPOSAL_BYTES)?
        .with_context(|| format!("there is no file {}", path.display()))?;
    Proposal::read(&bytes).with_context(|| format!("cannot use {}", path.display()))
}

pub fn write(path: &Path, proposal: &Proposal) -> Result<()> {
    Ok(durable::write(path, &proposal.to_bytes()?, Access::Anyone)?)
}
