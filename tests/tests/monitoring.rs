//! The metrics of a real agent, as Prometheus reads them, and the dashboard and alert rules that are made for them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use edgeward_tests::fleet::path;
use edgeward_tests::http::Client;
use edgeward_tests::package::known;
use edgeward_tests::{BrokerKind, Fleet, binaries, process, python, wait};

fn file(name: &str) -> PathBuf {
    binaries::root().join("agent/monitoring").join(name)
}

/// The names of all samples that a page may have, absent ones included.
fn names(page: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in page.lines() {
        let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let suffixes: &[&str] = match kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

/// Words of a text that are names of metrics, and in no page.
fn unknown(text: &str, known: &BTreeSet<String>) -> (usize, Vec<String>) {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let used: BTreeSet<_> = words.filter(|word| word.starts_with("edgeward_")).collect();
    let unknown = used.iter().filter(|word| !known.contains(**word));
    (used.len(), unknown.map(|word| (*word).to_owned()).collect())
}

fn scrape(client: &mut Client, accept: &str) -> String {
    let answer = client.request("GET", "/metrics", &[("accept", accept)], b"");
    let answer = answer.expect("an answer").expect_ok();
    let kind = answer.header("content-type").expect("a content type");
    assert!(kind.starts_with(accept), "{kind} for {accept}");
    answer.text()
}

#[test]
fn prometheus_reads_the_metrics_and_dashboard_and_alerts_name_only_those_that_there_are() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure(
        "[log]\n",
        "[metrics]\nnames_of = [\"triton\", \"tensorflow-serving\"]\n\n[log]\n",
    );
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let mut client = ward.unix();
    let question = known("digits-1.0.0", 0);
    let answer = client.infer("digits", &question.request);
    answer.expect("an answer").expect_ok();

    let page = wait::until("a connection in the metrics", wait::PATIENCE, || {
        let page = scrape(&mut client, "text/plain");
        let connected = page
            .lines()
            .any(|line| line == "edgeward_broker_connected 1");
        if connected { Ok(page) } else { Err(page) }
    });
    for line in [
        "edgeward_model_loads_total{model=\"digits\",outcome=\"succeeded\"} 1",
        "edgeward_requests_total{model=\"digits\",version=\"1.0.0\",outcome=\"succeeded\"} 1",
        "edgeward_broker_connections_total 1",
        "edgeward_metadata_stale 0",
        "nv_inference_request_success{model=\"digits\",version=\"1\"} 1",
        ":tensorflow:serving:request_count{model_name=\"digits\",status=\"OK\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "no {line} in\n{page}");
    }
    let now = jiff::Timestamp::now().as_second() as f64;
    for (name, from, to) in [
        (
            "edgeward_metadata_signed_timestamp_seconds",
            now - 3600.0,
            now + 60.0,
        ),
        (
            "edgeward_certificate_ends_timestamp_seconds{certificate=\"device\"}",
            now,
            now + 5.0 * 366.0 * 86400.0,
        ),
        ("edgeward_device_memory_used_bytes", 1e6, 1e15),
        ("edgeward_disk_free_bytes", 1e6, 1e15),
        ("edgeward_audit_entries{log=\"security\"}", 1.0, 1000.0),
    ] {
        let value = page
            .lines()
            .find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        let value: f64 = value.unwrap_or_else(|| panic!("no {name} in\n{page}"));
        assert!((from..=to).contains(&value), "{name} {value}");
    }

    let known = names(&page);
    for name in ["dashboard.json", "alerts.yaml"] {
        let text = std::fs::read_to_string(file(name)).expect("read");
        let (used, unknown) = unknown(&text, &known);
        assert!(used >= 10, "{name} names only {used} metrics");
        assert!(
            unknown.is_empty(),
            "{name} names what no agent has: {unknown:?}"
        );
    }
    assert_eq!(unknown("edgeward_nonsense_total == 0", &known).1.len(), 1);
    let dashboard = std::fs::read(file("dashboard.json")).expect("read");
    serde_json::from_slice::<serde_json::Value>(&dashboard).expect("JSON");

    // Both forms through Prometheus's own parsers.
    let open = scrape(&mut client, "application/openmetrics-text");
    let directory = fleet.directory();
    let files = [("page.txt", page), ("page.openmetrics", open)].map(|(name, page)| {
        let file = directory.join(name);
        std::fs::write(&file, page).expect("write");
        file
    });
    python::run("metrics_checks.py", files.iter().map(|file| path(file))).expect_success();
}

#[test]
#[allow(clippy::print_stderr)]
fn promtool_takes_the_alert_rules() {
    let Some(promtool) = binaries::promtool() else {
        eprintln!(
            "no promtool here (tests/setup.sh --tests fetches it): the alert rules were not tried"
        );
        return;
    };
    let check = |file: &std::path::Path| {
        process::run(Command::new(&promtool).arg("check").arg("rules").arg(file))
    };
    check(&file("alerts.yaml")).expect_success();
    let directory = tempfile::tempdir().expect("a directory");
    let wrong = directory.path().join("wrong.yaml");
    let text = std::fs::read_to_string(file("alerts.yaml")).expect("read");
    std::fs::write(&wrong, text.replace("rate(", "rat(")).expect("write");
    assert_ne!(check(&wrong).code, Some(0));
}
