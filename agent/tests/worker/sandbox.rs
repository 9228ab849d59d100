//! The sandbox holds: seen from outside in /proc, and from inside by a plugin that tries everything.

use std::collections::BTreeMap;
use std::path::Path;

use edgeward_agent::config::Sandbox;
use edgeward_agent::worker::{Spawner, Worker, WorkerError};

use crate::support::{MINUTE, infer, plugin, refusal, sample, spawner, start_plugin};

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

#[tokio::test]
async fn the_kernel_confirms_filters_no_new_privileges_and_no_capabilities() {
    let sample = sample("digits-1.0.0");
    let worker = Worker::start(&spawner(), sample.spec("xnnpack"))
        .await
        .expect("start");
    let before = status(worker.facts().pid);
    worker.seal().await.expect("seal");
    let after = status(worker.facts().pid);
    for status in [&before, &after] {
        assert_eq!(status["Seccomp"], "2");
        assert_eq!(status["NoNewPrivs"], "1");
        for set in ["CapEff", "CapPrm", "CapInh"] {
            assert_eq!(status[set].trim_start_matches('0'), "", "{set}");
        }
    }
    let filters =
        |s: &BTreeMap<String, String>| s["Seccomp_filters"].parse::<u32>().expect("number");
    assert_eq!(filters(&after), filters(&before) + 1);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.facts().pid));
    let limits = limits.expect("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|l| l.starts_with(name)).expect(name);
        let values = line[name.len()..].split_ascii_whitespace();
        values.map(str::to_owned).next().expect("value")
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "64");
    assert_eq!(limit("Max data size"), (1u64 << 30).to_string());
    let environment = std::fs::read(format!("/proc/{}/environ", worker.facts().pid));
    assert_eq!(environment.expect("environment"), b"");
}

fn results(text: &str) -> BTreeMap<&str, &str> {
    text.split_ascii_whitespace()
        .filter_map(|word| word.trim_end_matches(';').split_once('='))
        .collect()
}

const NEVER: &[&str] = &[
    "write-file",
    "socket",
    "unix-socket",
    "socketpair",
    "kill-parent",
    "signal-by-fcntl",
    "ptrace",
    "fork",
    "exec",
    "io_uring",
    "bpf",
    "userfaultfd",
    "mount",
    "peek-parent",
];

#[tokio::test]
async fn a_plugin_can_neither_read_nor_connect_nor_run_nor_signal_while_loading() {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    spec.profile = Some(plugin(&[("do_create", "probe")]));
    let reason = refusal(spec).await;
    let results = results(&reason);
    assert!(!results.is_empty(), "the probe did not report: {reason}");
    for what in NEVER.iter().chain(&["read-passwd", "read-program"]) {
        assert!(
            ["EPERM", "EACCES"].contains(&results[what]),
            "{what}: {reason}"
        );
    }
    assert_eq!(results["openat2"], "ENOSYS");
    for what in ["thread", "memory", "read-cpuinfo"] {
        assert_eq!(results[what], "ok", "{what}: {reason}");
    }
}

#[tokio::test]
async fn after_the_seal_a_plugin_opens_nothing_and_makes_nothing_executable() {
    let worker = start_plugin(&[("do_invoke", "probe")])
        .await
        .expect("start");
    worker.seal().await.expect("seal");
    let answer = infer(&worker, &sample("digits-1.0.0").inputs(0, 1), MINUTE).await;
    let reason = answer.map(drop).expect_err("the probe fails").to_string();
    let results = results(&reason);
    assert!(!results.is_empty(), "the probe did not report: {reason}");
    let opens = [
        "read-passwd",
        "read-program",
        "read-cpuinfo",
        "openat2",
        "executable-memory",
    ];
    for what in NEVER.iter().chain(&opens) {
        assert!(
            ["EPERM", "EACCES"].contains(&results[what]),
            "{what}: {reason}"
        );
    }
    for what in ["thread", "memory"] {
        assert_eq!(results[what], "ok", "{what}: {reason}");
    }
}

#[tokio::test]
async fn a_profile_may_list_what_its_driver_reads_and_keep_opening_possible() {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    let mut profile = plugin(&[("do_invoke", "probe")]);
    profile.read.push("/etc/passwd".into());
    profile.opens_files_late = true;
    spec.profile = Some(profile);
    let worker = Worker::start(&spawner(), spec).await.expect("start");
    worker.seal().await.expect("seal");
    let answer = infer(&worker, &sample("digits-1.0.0").inputs(0, 1), MINUTE).await;
    let reason = answer.map(drop).expect_err("the probe fails").to_string();
    let results = results(&reason);
    assert!(!results.is_empty(), "the probe did not report: {reason}");
    assert_eq!(results["read-passwd"], "ok", "{reason}");
    assert!(
        ["EPERM", "EACCES"].contains(&results["write-file"]),
        "{reason}"
    );
    assert!(
        ["EPERM", "EACCES"].contains(&results["read-program"]),
        "{reason}"
    );
}

#[tokio::test]
async fn started_by_anyone_else_it_says_so() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .arg("worker")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("run");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by the agent"));
}

/// A spawner on a machine whose kernel lacks something.
fn spawner_on_an_old_kernel(directory: &Path, options: &[&str]) -> Spawner {
    let program = directory.join("edgeward");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/old_kernel.c");
    let compiled = std::process::Command::new("cc")
        .arg(format!("-DPROGRAM=\"{}\"", env!("CARGO_BIN_EXE_edgeward")))
        .args(options)
        .args(["-Wall", "-Werror", "-o"])
        .args([&program, &source])
        .status();
    assert!(compiled.expect("cc").success());
    Spawner::new(program).expect("spawner")
}

#[tokio::test]
async fn without_landlock_a_worker_starts_only_if_the_device_says_so_and_then_loudly() {
    let directory = tempfile::tempdir().expect("directory");
    let spawner = spawner_on_an_old_kernel(directory.path(), &[]);
    let sample = sample("digits-1.0.0");
    let mut spec = sample.spec("xnnpack");
    let Err(WorkerError::Start(reason)) = Worker::start(&spawner, spec.clone()).await else {
        panic!("it started without its sandbox, or failed otherwise");
    };
    assert!(reason.contains("Landlock is missing"), "{reason}");
    assert!(reason.contains("best-effort"), "{reason}");
    spec.sandbox = Sandbox::BestEffort;
    let worker = Worker::start(&spawner, spec).await.expect("start");
    let sandbox = &worker.facts().sandbox;
    assert!(
        sandbox.starts_with("not enforced: Landlock is missing"),
        "{sandbox}"
    );
    assert!(!sandbox.contains("seccomp"), "{sandbox}");
    assert_eq!(status(worker.facts().pid)["Seccomp"], "2");
    worker.seal().await.expect("seal");
    let answer = infer(&worker, &sample.inputs(0, 1), MINUTE)
        .await
        .expect("answer");
    sample.assert_golden(&answer, 0, 1);
}

#[tokio::test]
async fn without_anything_best_effort_still_answers() {
    let directory = tempfile::tempdir().expect("directory");
    let spawner = spawner_on_an_old_kernel(directory.path(), &["-DWITHOUT_SECCOMP"]);
    let sample = sample("digits-1.0.0");
    let mut spec = sample.spec("xnnpack");
    spec.sandbox = Sandbox::BestEffort;
    let worker = Worker::start(&spawner, spec).await.expect("start");
    let sandbox = &worker.facts().sandbox;
    assert!(
        sandbox.contains("Landlock") && sandbox.contains("seccomp is missing"),
        "{sandbox}"
    );
    worker.seal().await.expect("nothing to seal");
    let answer = infer(&worker, &sample.inputs(0, 1), MINUTE)
        .await
        .expect("answer");
    sample.assert_golden(&answer, 0, 1);
}
