//! `fleetctl rollout list`.

use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::fleet::waves::Waves;
use serde_json::json;

use crate::operator::Operator;
use crate::printer::table;
use crate::rollouts;

/// Show the rollouts that are under way
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl rollout list")]
pub struct List {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub fn run(self, operator: &Operator) -> Result<ExitCode> {
        let rollouts = rollouts::under_way(&operator.repository()?)?;
        if self.json {
            let rows = rollouts.iter().map(|rollout| {
                json!({
                    "group": rollout.group, "model": rollout.model, "wish": rollout.wish,
                    "devices": rollout.members.len(), "moving": rollout.moving().count(),
                })
            });
            let rows: Vec<_> = rows.collect();
            operator
                .printer
                .json(&json!({"fleet": operator.home.fleet(), "rollouts": rows}))?;
            return Ok(ExitCode::SUCCESS);
        }
        if rollouts.is_empty() {
            operator.printer.note("no rollout in waves is under way");
            return Ok(ExitCode::SUCCESS);
        }
        let head = [
            "GROUP", "MODEL", "VERSION", "WAVE", "DEVICES", "STATE", "ENDS",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for rollout in &rollouts {
            let waves = &rollout.waves;
            rows.push(vec![
                rollout.group.to_string(),
                rollout.model.to_string(),
                rollout.wish.version.to_string(),
                format!("{}/{}", waves.open, waves.count()),
                format!("{}/{}", rollout.moving().count(), rollout.members.len()),
                state(waves),
                waves.ends.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            ]);
        }
        operator.printer.data(&table(&rows))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn state(waves: &Waves) -> String {
    match (&waves.halted, waves.paused, waves.approve) {
        (Some(reason), _, _) => format!("halted: {reason}"),
        (None, true, _) => "paused".to_owned(),
        (None, false, true) => "by approval".to_owned(),
        (None, false, false) => "widening".to_owned(),
    }
}
