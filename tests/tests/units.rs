//! The systemd units are well formed and stay within the exposure that the design allows.

use std::path::Path;
use std::process::Command;

use edgeward_tests::{binaries, process};

/// A unit scored worse than this (0 is best, 10 worst) is a defect.
const MOST_EXPOSURE: u32 = 15; // tenths

#[allow(clippy::print_stderr)]
fn systemd_analyze(arguments: &[&str], directory: &Path) -> Option<process::Finished> {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: systemd-analyze is not installed here");
        return None;
    }
    let mut command = Command::new("systemd-analyze");
    Some(process::run(command.args(arguments).current_dir(directory)))
}

#[test]
fn the_units_are_well_formed() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(binaries::root().join("systemd")).expect("units") {
        let path = entry.expect("entry").path();
        let name = path
            .file_name()
            .expect("name")
            .to_string_lossy()
            .into_owned();
        if [".service", ".socket", ".timer"]
            .iter()
            .any(|e| name.ends_with(e))
        {
            // The programs are not installed where the tests run.
            let text = std::fs::read_to_string(&path).expect("unit");
            let text = text.replace("/usr/bin/edgeward", "/bin/true");
            let text = text.replace("/usr/bin/fleetctl", "/bin/true");
            std::fs::write(directory.path().join(&name), text).expect("write");
            names.push(format!("./{name}"));
        }
    }
    assert!(names.len() >= 2, "no units found");
    let mut arguments = vec!["verify", "--man=no"];
    arguments.extend(names.iter().map(String::as_str));
    let Some(finished) = systemd_analyze(&arguments, directory.path()) else {
        return;
    };
    let said = finished.to_string();
    finished.expect_success();
    for name in &names {
        // It warns without failing about directives that it does not know.
        let ours = name.trim_start_matches("./");
        let warned = said.lines().skip(1).find(|line| line.contains(ours));
        assert_eq!(warned, None, "{said}");
    }
}

#[test]
fn the_agent_unit_leaves_little_to_attack() {
    let units = binaries::root().join("systemd");
    let limit = MOST_EXPOSURE.to_string();
    let arguments = [
        "security",
        "--offline=true",
        "--threshold",
        &limit,
        "edgeward.service",
    ];
    if let Some(finished) = systemd_analyze(&arguments, &units) {
        assert!(
            finished.stdout.contains("Overall exposure level"),
            "{finished}"
        );
        finished.expect_success();
    }
}

#[test]
fn the_filter_leaves_the_calls_that_the_workers_sandbox_is_made_with() {
    let unit = std::fs::read_to_string(binaries::root().join("systemd/edgeward.service"));
    let unit = unit.expect("unit");
    let removed = unit
        .find("SystemCallFilter=~")
        .expect("a group that is removed");
    let added: Vec<&str> = unit[removed..]
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
        .flat_map(str::split_whitespace)
        .collect();
    for call in [
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
        "seccomp",
        "sched_setaffinity",
        "setpriority",
        "prlimit64",
    ] {
        assert!(
            added.contains(&call),
            "{call} is not allowed after the removals"
        );
    }
}
