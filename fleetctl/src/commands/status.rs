//! `fleetctl status`: what every device says of itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::fleet::health::Soak;
use edgeward_models::fleet::routing::{BesideStatus, ShadowStatus};
use edgeward_models::fleet::status::{ModelStatus, Phase, Status};
use edgeward_models::name::GroupName;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::device::names;
use super::doctor;
use crate::operator::Operator;
use crate::printer::{Printer, plain, table};
use crate::statuses::{self, Heard, Report};

/// Show what every device says of itself
///
/// One line per device and model: whether the device is connected, what serves, on which delegate, how far
/// the version it was asked for has come ("watched": it serves, and its soak goes on), and the newest thing that
/// went wrong. AGE is how long ago the device said so, by its own clock. Only statuses signed with the device's
/// certified key are believed, and only if they are not older than what this operator has heard from it before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl status
  fleetctl status --group radiology --json")]
pub struct Args {
    /// Only the devices of this group
    #[arg(long)]
    group: Option<GroupName>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let membership = repository.membership()?;
        doctor::warn(&operator, &repository)?;
        // Others may use it while this one asks.
        drop(repository);
        let mut devices = operator.home.devices().all()?;
        if let Some(group) = &self.group {
            devices.retain(|d| {
                membership
                    .get(&d.id)
                    .is_some_and(|groups| groups.contains(group))
            });
        }
        let reports = statuses::hear(&operator, &devices).await?;
        let groups = |report: &Report| membership.get(&report.device).cloned().unwrap_or_default();
        if self.json {
            let rows: Vec<_> = reports.iter().map(|r| to_json(r, &groups(r))).collect();
            printer.json(&json!({ "fleet": operator.home.fleet(), "devices": rows }))?;
        } else if reports.is_empty() {
            printer.note("no device is enrolled here");
        } else {
            let now = Timestamp::now().as_second();
            let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
            for report in &reports {
                rows.extend(lines(report, &groups(report), now));
            }
            printer.data(&table(&rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

const HEAD: [&str; 9] = [
    "DEVICE", "ONLINE", "GROUPS", "MODEL", "ACTIVE", "PHASE", "DELEGATE", "AGE", "NOTE",
];

/// A device for programs. `status` is there only if the device signed it.
pub fn to_json(report: &Report, groups: &BTreeSet<GroupName>) -> Value {
    let (status, problem) = match &report.status {
        Heard::Nothing => (None, None),
        Heard::NotBelieved(why) => (None, Some(why)),
        Heard::Status(status) => (Some(status), None),
    };
    json!({
        "device": report.device,
        "groups": groups,
        "online": report.online.as_ref().map(|o| o.online),
        "online_reason": report.online.as_ref().map(|o| &o.reason),
        "verified": status.is_some(),
        "problem": problem,
        "status": status,
    })
}

fn presence(report: &Report) -> String {
    match &report.online {
        None => "-".to_owned(),
        Some(online) if online.online => "yes".to_owned(),
        Some(_) => "no".to_owned(),
    }
}

/// One line per model, or one that says why there is none.
fn lines(report: &Report, groups: &BTreeSet<GroupName>, now: i64) -> Vec<Vec<String>> {
    let groups = if groups.is_empty() {
        "-".to_owned()
    } else {
        names(groups).replace(", ", ",")
    };
    let head = [report.device.to_string(), presence(report), groups];
    let line = |rest: [String; 6]| head.iter().cloned().chain(rest).collect::<Vec<_>>();
    let dash = || "-".to_owned();
    let empty = |age, note| vec![line([dash(), dash(), dash(), dash(), age, note])];
    match &report.status {
        Heard::Nothing => empty(dash(), "has not spoken yet".to_owned()),
        Heard::NotBelieved(why) => empty(dash(), format!("NOT BELIEVED: {}", plain(why))),
        Heard::Status(status) if status.models.is_empty() => {
            empty(age(status, now), note(status, None, true))
        }
        Heard::Status(status) => status
            .models
            .iter()
            .enumerate()
            .flat_map(|(row, model)| {
                let active = model.active.as_ref();
                let first = line([
                    model.model.to_string(),
                    active.map_or_else(dash, |a| a.version.to_string()),
                    phase(model),
                    active.map_or_else(dash, |a| a.delegate.to_string()),
                    age(status, now),
                    note(status, Some(model), row == 0),
                ]);
                let routing = model.routing.iter();
                let beside = routing.flat_map(|routing| &routing.versions).map(|v| {
                    let delegate = v.served.as_ref().map(|served| served.delegate.to_string());
                    line([
                        model.model.to_string(),
                        dash(),
                        beside(v),
                        delegate.unwrap_or_else(dash),
                        age(status, now),
                        v.reason.as_deref().map_or_else(dash, plain),
                    ])
                });
                std::iter::once(first).chain(beside).collect::<Vec<_>>()
            })
            .collect(),
    }
}

/// The phase, with the version it is about where that is not the active one.
fn phase(model: &ModelStatus) -> String {
    let word = match (model.phase, model.soak) {
        (Phase::Active, Some(Soak::Watching)) => "watched",
        (Phase::Active, Some(Soak::Failed)) => "failed",
        (phase, _) => phase.word(),
    };
    let active = model.active.as_ref().map(|a| &a.version);
    match &model.target {
        Some(target) if Some(target) != active => format!("{word} {target}"),
        _ => word.to_owned(),
    }
}

/// The phase of a version beside the active one.
fn beside(version: &BesideStatus) -> String {
    match version.phase {
        Phase::Active => format!("beside {}", version.version),
        phase => format!("beside {} {}", version.version, phase.word()),
    }
}

/// What a line says at its end; what concerns the whole device only `first`.
fn note(status: &Status, model: Option<&ModelStatus>, first: bool) -> String {
    let mut notes = Vec::new();
    if status.stale {
        notes.push("STALE: takes nothing new until the metadata is refreshed".to_owned());
    }
    if status.sandbox != "enforced" {
        notes.push(format!("SANDBOX: {}", plain(&status.sandbox)));
    }
    let warnings = status.warnings.iter().filter(|_| first);
    notes.extend(warnings.map(|text| format!("WARNING: {}", plain(text))));
    let routing = model.and_then(|m| m.routing.as_ref());
    if let Some(routing) = routing.filter(|routing| routing.overridden) {
        notes.push(format!("OVERRIDE on the device: {}", routing.routing));
    }
    let reason = model.and_then(|m| m.reason.as_deref());
    if let Some(text) = reason.or(status.last_error.as_deref()) {
        notes.push(plain(text));
    }
    if notes.is_empty() {
        "-".to_owned()
    } else {
        notes.join("; ")
    }
}

fn age(status: &Status, now: i64) -> String {
    match now.saturating_sub(status.at) {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds @ 86_400.. => format!("{} d", seconds / 86_400),
        _ => "in the future".to_owned(),
    }
}

/// Everything of one device's status, in rows of name and value.
pub fn details(report: &Report) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    match &report.online {
        None => row("online", "never seen by this broker".to_owned()),
        Some(o) => row(
            "online",
            format!(
                "{} ({})",
                if o.online { "yes" } else { "no" },
                plain(&o.reason)
            ),
        ),
    }
    let status = match &report.status {
        Heard::Nothing => {
            row("status", "has not spoken yet".to_owned());
            return rows;
        }
        Heard::NotBelieved(why) => {
            row("status", format!("NOT BELIEVED: {}", plain(why)));
            return rows;
        }
        Heard::Status(status) => status,
    };
    row(
        "said",
        format!("{} ago", age(status, Timestamp::now().as_second())),
    );
    row("agent", plain(&status.agent_version));
    row("sandbox", plain(&status.sandbox));
    let stale = if status.stale {
        " (stale: takes nothing new)"
    } else {
        ""
    };
    row(
        "repository",
        format!("timestamp {}{stale}", status.timestamp_version),
    );
    row(
        "audit log",
        format!(
            "{} entries, head {}",
            status.audit_length, status.audit_head
        ),
    );
    row("disk free", format!("{} MiB", status.disk_free_bytes >> 20));
    for group in &status.groups {
        row(
            "applied",
            format!("group {} sequence {}", group.group, group.sequence),
        );
    }
    for model in &status.models {
        let active = match &model.active {
            Some(a) => format!(
                "{} (release {}) on {}, {} of {} nodes",
                a.version, a.release, a.delegate, a.delegated_nodes, a.total_nodes
            ),
            None => "nothing active".to_owned(),
        };
        row(
            &format!("model {}", model.model),
            format!("{active}; {}", phase(model)),
        );
        if let Some(reason) = &model.reason {
            row("  reason", plain(reason));
        }
        if let Some(previous) = &model.previous {
            row("  previous", previous.to_string());
        }
        if let Some(routing) = &model.routing {
            let whose = match routing.overridden {
                true => " (an override on the device)",
                false => "",
            };
            row("  routing", format!("{}{whose}", routing.routing));
            if let Some(shadow) = &routing.shadow {
                let ShadowStatus {
                    version,
                    compared,
                    different,
                    dropped,
                    failed,
                } = shadow;
                let text = format!(
                    "{version}: {compared} compared, {different} different, {dropped} dropped, {failed} failed"
                );
                row("  shadow", text);
            }
            for version in &routing.versions {
                let reason = version.reason.as_deref().map(plain);
                let reason = reason.map(|reason| format!("; {reason}"));
                let reason = reason.unwrap_or_default();
                row(
                    "  beside it",
                    format!("{} {}{reason}", version.version, version.phase.word()),
                );
            }
        }
        for refused in model.active.iter().flat_map(|a| &a.refused_delegates) {
            row(
                "  refused",
                format!("{}: {}", refused.delegate, plain(&refused.reason)),
            );
        }
    }
    if let Some(error) = &status.last_error {
        row("last error", plain(error));
    }
    for warning in &status.warnings {
        row("warning", plain(warning));
    }
    rows
}

#[cfg(test)]
mod tests;
