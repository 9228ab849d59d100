//! `edgeward audit`: reads the audit log, beside a running agent or without one.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use crate::config::Config;
use crate::watch::audit::verify::{Expected, Report, read, verify};
use crate::watch::audit::{Entry, Which};

const HELP: &str = "\
There are two logs: \"security\" (what happened to trust and versions) and \"inferences\" (who asked which model; \
[audit] inference says how closely). \
Every entry holds the digest of the one before it, so a change, a gap or another order is found and located. \
That the newest entries were cut off is seen only by somebody who knows how long the log was: `fleetctl device \
show` says it of each device, for --expect. The length of the other log stands in the security log. Exit status: 0 in order, 1 something is not, 2 could not be read.";

/// Arguments of `edgeward audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check every entry of the logs and say where something is wrong.
    Verify {
        /// An entry of the security log that must be there: its number and its digest, as a status said them.
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
        /// Which log.
        #[arg(long, value_enum, default_value = "security")]
        log: Which,
    },
    /// Print a whole log as it was written (JSON lines).
    Export {
        /// Which log.
        #[arg(long, value_enum, default_value = "security")]
        log: Which,
    },
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        let directory = config.state_directory;
        let mut output = io::BufWriter::new(io::stdout().lock());
        let code = match self.verb {
            Verb::Verify { expect, json } => check(&directory, expect, json, &mut output)?,
            Verb::Show { last, event, log } => {
                show(&directory, log, last, event.as_deref(), &mut output)?;
                ExitCode::SUCCESS
            }
            Verb::Export { log } => {
                read(&directory, log.book(), |_, line| {
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
    let look = || verify(directory, expect);
    let in_order = |reports: &[Report]| reports.iter().all(|report| report.findings.is_empty());
    let mut reports = look()?;
    if !in_order(&reports) {
        // A running agent may have begun another file in the midst of it.
        reports = look()?;
    }
    if json {
        serde_json::to_writer_pretty(&mut *output, &reports)?;
        writeln!(output)?;
    } else {
        for report in &reports {
            output.write_all(text(report).as_bytes())?;
        }
    }
    Ok(match in_order(&reports) {
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
    let order = match report.findings.is_empty() {
        true => "in order",
        false => "NOT in order",
    };
    lines.push(match report.head {
        None => format!("{}: {order}: no entries", report.log),
        Some(head) => format!(
            "{}: {order}: entries {} to {} in {} files, head {head}",
            report.log, report.first, report.last, report.segments
        ),
    });
    lines.join("\n") + "\n"
}

fn show(
    directory: &Path,
    log: Which,
    last: usize,
    event: Option<&str>,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let mut newest = std::collections::VecDeque::new();
    let report = read(directory, log.book(), |entry: &Entry, _| {
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
