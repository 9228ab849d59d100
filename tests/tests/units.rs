//! The systemd units are well formed, stay within the exposure that the design allows, and let a worker start.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use edgeward_tests::{Site, binaries, process};
use seccompiler::{BpfProgram, compile_from_json};
use serde_json::json;

/// A unit scored worse than this (0 is best, 10 worst) is a defect.
const MOST_EXPOSURE: u32 = 15; // tenths

/// Part of Debian's package `systemd`, which need not be running.
fn systemd_analyze(arguments: &[&str], directory: &Path) -> process::Finished {
    let mut command = Command::new("systemd-analyze");
    process::run(command.args(arguments).current_dir(directory))
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
    let finished = systemd_analyze(&arguments, directory.path());
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
    let finished = systemd_analyze(&arguments, &units);
    assert!(
        finished.stdout.contains("Overall exposure level"),
        "{finished}"
    );
    finished.expect_success();
}

#[test]
fn a_version_is_loaded_and_asked_under_the_units_filter() {
    let program = compile(&allowed_calls());
    // A filter is a thread's, and what the thread starts inherits it.
    let asking = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("the filter is put on");
        let site = Site::new(|_| {});
        site.install(&binaries::sample("digits-1.0.0"));
        site.device
            .answers_as("digits", "digits-1.0.0")
            .expect("the known answer");
        let status = site.device.status().expect("a status");
        assert_eq!(status["sandbox"], "enforced", "{status}");
    });
    if let Err(problem) = asking.join() {
        std::panic::resume_unwind(problem);
    }
}

/// What the unit's `SystemCallFilter=` lines allow, as systemd reads them: the first opens the list, `~` takes
/// out, later lines add; `@` is a group, which `systemd-analyze` lists.
fn allowed_calls() -> BTreeSet<String> {
    let unit = std::fs::read_to_string(binaries::root().join("systemd/edgeward.service"));
    let unit = unit.expect("unit");
    let mut allowed = BTreeSet::new();
    let lines = unit
        .lines()
        .filter_map(|l| l.strip_prefix("SystemCallFilter="));
    for line in lines {
        let (names, taken_out) = match line.strip_prefix('~') {
            Some(names) => (names, true),
            None => (line, false),
        };
        for call in names.split_whitespace().flat_map(expand) {
            if taken_out {
                allowed.remove(&call);
            } else {
                allowed.insert(call);
            }
        }
    }
    // Always allowed, whatever a unit says.
    allowed.extend(expand("@default"));
    assert!(allowed.contains("read"), "{allowed:?}");
    allowed
}

fn expand(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let listed = systemd_analyze(&["syscall-filter", name], Path::new("/")).expect_success();
    let names = listed.lines().skip(1).map(str::trim);
    names
        .filter(|n| !n.is_empty() && !n.starts_with('#'))
        .flat_map(expand)
        .collect()
}

/// A program that refuses all other calls with EPERM.
fn compile(calls: &BTreeSet<String>) -> BpfProgram {
    let architecture = std::env::consts::ARCH.try_into().expect("a processor");
    let compile = |calls: &[&String]| {
        let rules: Vec<_> = calls.iter().map(|c| json!({ "syscall": c })).collect();
        let filter = json!({ "unit": {
            "mismatch_action": { "errno": libc::EPERM },
            "match_action": "allow",
            "filter": rules,
        }});
        compile_from_json(filter.to_string().as_bytes(), architecture)
    };
    // Groups name calls of all processors.
    let here: Vec<_> = calls.iter().filter(|c| compile(&[c]).is_ok()).collect();
    let mut programs = compile(&here).expect("a filter");
    programs.remove("unit").expect("the program")
}
