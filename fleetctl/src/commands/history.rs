//! `fleetctl history`: who changed what groups should run.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::name::GroupName;
use serde_json::json;

use crate::operator::Operator;
use crate::printer::{Printer, plain, table};

/// Show who changed what groups should run, and when
///
/// The newest changes of each group, as they stand in its signed desired state. BY is what the environment variable
/// FLEETCTL_OPERATOR said, or user and computer; whoever signed vouches for it, and for the changes before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl history
  fleetctl history radiology --json")]
pub struct Args {
    /// Only of this group
    group: Option<GroupName>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let mut changes = Vec::new();
        for group in repository.groups()? {
            if self.group.as_ref().is_some_and(|wanted| *wanted != group) {
                continue;
            }
            let history = repository.desired(&group)?.map(|d| d.history);
            let history = history.unwrap_or_default().into_iter();
            changes.extend(history.map(|change| (group.clone(), change)));
        }
        changes.sort_by_key(|(_, change)| change.at);
        if self.json {
            let rows = changes.iter().map(|(group, change)| {
                json!({
                    "group": group, "sequence": change.sequence, "at": change.at, "by": change.by,
                    "what": change.what,
                })
            });
            let rows: Vec<_> = rows.collect();
            printer.json(&json!({"fleet": operator.home.fleet(), "changes": rows}))?;
            return Ok(ExitCode::SUCCESS);
        }
        if changes.is_empty() {
            printer.note("nothing was pushed yet");
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = vec![
            ["WHEN", "GROUP", "SEQUENCE", "BY", "WHAT"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for (group, change) in &changes {
            rows.push(vec![
                change.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
                group.to_string(),
                change.sequence.to_string(),
                plain(&change.by),
                plain(&change.what),
            ]);
        }
        printer.data(&table(&rows))?;
        Ok(ExitCode::SUCCESS)
    }
}
