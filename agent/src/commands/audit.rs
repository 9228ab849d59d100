//! `edgeward audit`: reads the audit log, beside a running agent or without one.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use crate::config::Config;
use crate::watch::audit::Entry;
use crate::watch::audit::verify::{Expected, Report, verify};

const HELP: &str = "\
Every entry holds the digest of the one before it, so a change, a gap or another order is found and located. \
That the newest entries were cut off is seen only by somebody who knows how long the log was: `fleetctl device \
show` says it of each device, for --expect. Exit status: 0 in order, 1 something is not, 2 could not be read.";

/// Arguments of `edgeward audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check every entry of the log and say where something is wrong.
    Verify {
        /// An entry that must be there: its number and its digest, as a status said them.
        #[arg(long, value_name = "NUMBER:SHA256", value_parser = parse_expected)]
        expect: Option<Expected>,
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the newest entries, one a line.
    Show {
        /// How many.
        #[arg(long, default_value_t = 20)]
        last: usize,
        /// Only those of this event, such as version-activated.
        #[arg(long)]
        event: Option<String>,
    },
    /// Print the whole log as it was written (JSON lines).
    Export,
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        let directory = config.state_directory;
        let mut output = io::BufWriter::new(io::stdout().lock());
        let code = match self.verb {
            Verb::Verify { expect, json } => check(&directory, expect, json, &mut output)?,
            Verb::Show { last, event } => {
                show(&directory, last, event.as_deref(), &mut output)?;
                ExitCode::SUCCESS
            }
            Verb::Export => {
                verify(&directory, None, |_, line| {
                    output.write_all(line)?;
                    output.write_all(b"\n")
                })?;
                ExitCode::SUCCESS
            }
        };
        output.flush().context("cannot write to standard output")?;
        Ok(code)
    }
}

fn check(
    directory: &Path,
    expect: Option<Expected>,
    json: bool,
    output: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let look = || verify(directory, expect, |_, _| Ok(()));
    let mut report = look()?;
    if !report.findings.is_empty() {
        // A running agent may have begun another file in the midst of it.
        report = look()?;
    }
    if json {
        serde_json::to_writer_pretty(&mut *output, &report)?;
        writeln!(output)?;
    } else {
        output.write_all(text(&report).as_bytes())?;
    }
    Ok(match report.findings.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        lines.push(format!(
            "{} line {}: {}",
            finding.file, finding.line, finding.problem
        ));
    }
    if report.more > 0 {
        lines.push(format!("and {} more findings", report.more));
    }
    if report.torn {
        lines.push(
            "the last line is incomplete: the device lost power, or the agent is writing it"
                .to_owned(),
        );
    }
    let head = report
        .head
        .map_or("none".to_owned(), |head| head.to_string());
    lines.push(format!(
        "{}: entries {} to {} in {} files, head {head}",
        match report.findings.is_empty() {
            true => "in order",
            false => "NOT in order",
        },
        report.first,
        report.last,
        report.segments
    ));
    lines.join("\n") + "\n"
}

fn show(
    directory: &Path,
    last: usize,
    event: Option<&str>,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let mut newest = std::collections::VecDeque::new();
    let report = verify(directory, None, |entry: &Entry, _| {
        if event.is_none_or(|event| entry.event == event) {
            newest.push_back(format!(
                "{}  {}  {}  {}",
                entry.number, entry.at, entry.event, entry.fields
            ));
            if newest.len() > last {
                newest.pop_front();
            }
        }
        Ok(())
    })?;
    for line in newest {
        writeln!(output, "{line}")?;
    }
    if !report.findings.is_empty() {
        writeln!(
            io::stderr(),
            "edgeward: the log is not in order; see `edgeward audit verify`"
        )?;
    }
    Ok(())
}

fn parse_expected(text: &str) -> Result<Expected, String> {
    let parsed = text.split_once(':').and_then(|(number, digest)| {
        Some(Expected {
            number: number.parse().ok()?,
            digest: digest.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| format!("{text:?} is not NUMBER:SHA256"))
}
