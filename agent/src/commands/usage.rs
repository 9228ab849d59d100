//! `edgeward usage`: what each caller used in a month.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::Config;
use crate::watch::usage::{self, Month, Row};

const HELP: &str = "\
Months are those of UTC by the device's clock. compute_ms is the time that models ran; bytes are those of bodies as they \
were read, and of tensors as they were answered. The newest minute is missing while the agent runs.";

/// Arguments of `edgeward usage`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Such as 2026-11; the current one if it is left out.
    #[arg(long)]
    month: Option<Month>,
    /// Print comma-separated values.
    #[arg(long)]
    csv: bool,
}

const COLUMNS: [&str; 9] = [
    "month",
    "caller",
    "model",
    "version",
    "requests",
    "succeeded",
    "compute_ms",
    "received_bytes",
    "sent_bytes",
];

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        let month = self.month.unwrap_or_else(Month::now);
        let rows = usage::read(&config.state_directory, month)
            .context("the month's usage cannot be read; be root or the agent's own user")?;
        let rows: Vec<_> = rows.iter().map(|row| cells(month, row)).collect();
        let text = match self.csv {
            true => csv(&rows),
            false => table(&rows),
        };
        io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}

type Cells = [String; COLUMNS.len()];

fn cells(month: Month, row: &Row) -> Cells {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    [
        month.to_string(),
        row.caller.clone(),
        name(&row.model),
        name(&row.version),
        row.requests.to_string(),
        row.succeeded.to_string(),
        format!("{}.{:03}", row.compute_us / 1000, row.compute_us % 1000),
        row.received_bytes.to_string(),
        row.sent_bytes.to_string(),
    ]
}

/// RFC 4180.
fn csv(rows: &[Cells]) -> String {
    let mut text = COLUMNS.join(",") + "\r\n";
    for row in rows {
        let quoted = row.iter().map(|cell| {
            if cell.contains([',', '"', '\r', '\n']) {
                format!("\"{}\"", cell.replace('"', "\"\""))
            } else {
                cell.clone()
            }
        });
        text.push_str(&quoted.collect::<Vec<_>>().join(","));
        text.push_str("\r\n");
    }
    text
}

fn table(rows: &[Cells]) -> String {
    let head = COLUMNS.map(str::to_owned);
    let width = |column: usize| {
        let cells = rows
            .iter()
            .chain([&head])
            .map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for row in [&head].into_iter().chain(rows) {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_same_in_both_forms_and_names_cannot_break_out_of_theirs() {
        let row = Row {
            caller: "certificate:a \"b\", c".to_owned(),
            model: Some("digits".to_owned()),
            version: None,
            requests: 3,
            succeeded: 2,
            compute_us: 12_034,
            received_bytes: 5,
            sent_bytes: 6,
        };
        let month = "2026-11".parse().expect("month");
        let rows = [cells(month, &row)];
        let lines = csv(&rows);
        assert_eq!(
            lines.lines().nth(1),
            Some("2026-11,\"certificate:a \"\"b\"\", c\",digits,,3,2,12.034,5,6")
        );
        assert!(
            table(&rows)
                .lines()
                .nth(1)
                .expect("row")
                .ends_with("12.034      5               6")
        );
    }
}
