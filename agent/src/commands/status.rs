//! `edgeward status`: what the running agent serves and how it is.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use edgeward_models::fleet::routing::{BesideStatus, ShadowStatus};
use edgeward_models::fleet::status::ModelStatus;

use crate::config::Config;
use crate::fleet::admin::{Client, Report, WorkerReport};
use crate::serving::Difference;

/// Arguments of `edgeward status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the whole status as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        let report = Client::running(&config)?
            .status()
            .context("the agent did not answer")?;
        let mut output = std::io::stdout();
        if self.json {
            serde_json::to_writer_pretty(&mut output, &report)?;
            writeln!(output)?;
        } else {
            output.write_all(text(&report).as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let status = &report.status;
    let mut lines = Vec::new();
    if report.enrolled {
        let groups = status
            .groups
            .iter()
            .map(|g| format!("{} ({})", g.group, g.sequence));
        lines.push(format!("device    {}", status.device));
        lines.push(format!(
            "groups    {}",
            groups.collect::<Vec<_>>().join(", ")
        ));
        let ends = report.certificate_ends.iter();
        lines.extend(
            ends.map(|ends| format!("identity  certificate until {}", ends.strftime("%Y-%m-%d"))),
        );
    } else {
        lines.push("device    not enrolled (edgeward enroll)".to_owned());
    }
    lines.push(format!("agent     {}", status.agent_version));
    let link = report.link.as_deref().unwrap_or("no broker configured");
    lines.push(format!("link      {link}"));
    let stale = if status.stale {
        ", stale: nothing new is installed"
    } else {
        ""
    };
    lines.push(format!(
        "trust     timestamp {}{stale}",
        status.timestamp_version
    ));
    lines.push(format!("sandbox   {}", status.sandbox));
    lines.push(format!(
        "audit     {} entries, head {}",
        status.audit_length, status.audit_head
    ));
    if let Some(error) = &status.last_error {
        lines.push(format!("trouble   {error}"));
    }
    let warnings = status.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning   {warning}")));
    lines.push(String::new());
    if status.models.is_empty() {
        lines.push("no models".to_owned());
    }
    lines.extend(status.models.iter().flat_map(model_lines));
    lines.extend(report.differences.iter().map(difference_line));
    if !report.workers.is_empty() {
        lines.push(String::new());
        lines.extend(report.workers.iter().map(worker_line));
    }
    lines.join("\n") + "\n"
}

fn model_lines(model: &ModelStatus) -> Vec<String> {
    let mut line = match &model.active {
        Some(active) => format!(
            "{} {} (release {}) on {}, {} of {} nodes",
            model.model,
            active.version,
            active.release,
            active.delegate,
            active.delegated_nodes,
            active.total_nodes
        ),
        None => format!("{}: nothing serves", model.model),
    };
    line.push_str(&format!(" · {}", model.phase.word()));
    let active = model.active.as_ref().map(|a| &a.version);
    if let Some(target) = model.target.as_ref().filter(|t| Some(*t) != active) {
        line.push_str(&format!(" · wanted: {target}"));
    }
    if let Some(previous) = &model.previous {
        line.push_str(&format!(" · previous: {previous}"));
    }
    let mut lines = vec![line];
    lines.extend(model.reason.iter().map(|reason| format!("    {reason}")));
    if let Some(routing) = &model.routing {
        let whose = if routing.overridden {
            " (an override on this device; `edgeward route` ends it)"
        } else {
            ""
        };
        lines.push(format!("    routing: {}{whose}", routing.routing));
        lines.extend(routing.versions.iter().map(beside_line));
        lines.extend(routing.shadow.iter().map(shadow_line));
    }
    if let Some(active) = &model.active {
        let refused = active.refused_delegates.iter();
        lines.extend(refused.map(|r| format!("    not on {}: {}", r.delegate, r.reason)));
    }
    lines
}

fn beside_line(version: &BesideStatus) -> String {
    let served = version.served.as_ref();
    let served = served.map(|s| format!(" (release {}) on {}", s.release, s.delegate));
    let reason = version.reason.as_ref().map(|reason| format!(": {reason}"));
    format!(
        "    beside it: {}{} · {}{}",
        version.version,
        served.unwrap_or_default(),
        version.phase.word(),
        reason.unwrap_or_default()
    )
}

fn worker_line(worker: &WorkerReport) -> String {
    let WorkerReport {
        model,
        version,
        memory_bytes,
        interpreters,
        unloaded,
    } = worker;
    match unloaded {
        Some(reason) => format!("memory    {model} {version}: unloaded, {reason}"),
        None => {
            let mebibytes = *memory_bytes as f64 / f64::from(1 << 20);
            let all = if *interpreters == 1 {
                "1 interpreter".to_owned()
            } else {
                format!("{interpreters} interpreters")
            };
            format!("memory    {model} {version}: {mebibytes:.1} MiB for {all}")
        }
    }
}

fn shadow_line(shadow: &ShadowStatus) -> String {
    format!(
        "    shadow {}: {} compared, {} different, {} dropped, {} failed",
        shadow.version, shadow.compared, shadow.different, shadow.dropped, shadow.failed
    )
}

fn difference_line(difference: &Difference) -> String {
    let Difference {
        model,
        version,
        shadow,
        output,
        ..
    } = difference;
    let distance = match (difference.largest, difference.allowed) {
        (Some(largest), Some(allowed)) => format!(" by {largest:.3e} ({allowed:.3e} is allowed)"),
        _ => " in its shape, its type or a string".to_owned(),
    };
    format!("difference of {model} {shadow} from {version}: output {output:?}{distance}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeward_models::Digest;
    use edgeward_models::fleet::status::{ActiveVersion, FORMAT, Phase, Status};

    #[test]
    fn the_report_names_what_serves_and_why_something_else_does_not() {
        let report = Report {
            enrolled: true,
            certificate_ends: None,
            link: Some("connected to broker:8883".to_owned()),
            connected: true,
            differences: Vec::new(),
            status: Status {
                format: FORMAT,
                device: "scanner-1".parse().expect("name"),
                boot_id: "b".to_owned(),
                sequence: 0,
                at: 0,
                agent_version: "0.1.0".to_owned(),
                groups: Vec::new(),
                models: vec![ModelStatus {
                    model: "digits".parse().expect("name"),
                    active: Some(ActiveVersion {
                        version: "1.0.0".parse().expect("version"),
                        release: 1,
                        delegate: "xnnpack".parse().expect("name"),
                        delegated_nodes: 7,
                        total_nodes: 8,
                        refused_delegates: Vec::new(),
                    }),
                    previous: None,
                    target: Some("2.0.0".parse().expect("version")),
                    rollout: None,
                    soak: None,
                    phase: Phase::Refused,
                    reason: Some("2.0.0 failed on this device: golden vector 3 is off".to_owned()),
                    routing: None,
                }],
                timestamp_version: 4,
                stale: false,
                sandbox: "enforced".to_owned(),
                audit_length: 9,
                audit_head: Digest::of(b""),
                disk_free_bytes: 0,
                last_error: None,
                warnings: Vec::new(),
            },
            workers: [(7 << 20, None), (0, Some("nobody has asked for it"))]
                .map(|(memory_bytes, unloaded)| WorkerReport {
                    model: "digits".parse().expect("name"),
                    version: "1.0.0".parse().expect("version"),
                    memory_bytes,
                    interpreters: 1,
                    unloaded: unloaded.map(str::to_owned),
                })
                .into(),
        };
        let text = text(&report);
        for line in [
            "memory    digits 1.0.0: 7.0 MiB for 1 interpreter\n",
            "memory    digits 1.0.0: unloaded, nobody has asked for it\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let line = "digits 1.0.0 (release 1) on xnnpack, 7 of 8 nodes · refused · wanted: 2.0.0";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("golden vector 3 is off"), "{text}");
    }
}
