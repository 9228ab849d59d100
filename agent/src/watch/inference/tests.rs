//! What is recorded, when, and what happens when it cannot be.

use std::path::Path;

use edgeward_models::Manifest;

use super::*;
use crate::config;
use crate::watch::audit::verify::{Report, read, verify};
use crate::watch::audit::{Entry, INFERENCES, SECURITY};
use crate::watch::usage::{self, Month};

fn manifest() -> Arc<Manifest> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../models/samples/digits-1.0.0/manifest.json"
    );
    Arc::new(Manifest::parse(&std::fs::read(path).expect("sample")).expect("manifest"))
}

fn recorder(directory: &Path, inference: InferenceRecords) -> Recorder {
    let config = Config {
        state_directory: directory.to_owned(),
        audit: config::Audit {
            inference,
            ..config::Audit::default()
        },
        ..Config::default()
    };
    let audit = Audit::open(directory).expect("audit log");
    Recorder::start(&config, audit).expect("recorder")
}

fn ask(recorder: &Recorder, token: &str, id: Option<&str>, outcome: Outcome) {
    let mut inference = recorder.begin(recorder.caller("token", token));
    inference.about(&manifest());
    inference.read(id, 100);
    if outcome == Outcome::Succeeded {
        inference.answered(Duration::from_millis(2), 40);
    }
    inference.ended(outcome);
}

fn entries(directory: &Path, book: crate::watch::audit::Book) -> Vec<Entry> {
    let mut entries = Vec::new();
    let report = read(directory, book, |entry, _| {
        entries.push(entry.clone());
        Ok(())
    });
    assert!(report.expect("readable").findings.is_empty());
    entries
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_request_is_recorded_soon_by_name_outcome_and_id_and_nothing_a_caller_writes() {
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    let recorder = recorder(directory, InferenceRecords::Every);
    ask(&recorder, "pacs", Some("a1-b2"), Outcome::Succeeded);
    ask(&recorder, "pacs", Some("Jane Doe, 1970"), Outcome::Deadline);
    until("nobody asks the log to be written", || {
        entries(directory, INFERENCES).len() == 2
    });
    // A full batch does not wait for its second to pass; nothing is lost of one that comes at once.
    for _ in 0..COMMIT_RECORDS + 7 {
        ask(&recorder, "lis", None, Outcome::Invalid);
    }
    recorder.close();
    let entries = entries(directory, INFERENCES);
    assert_eq!(entries.len(), 2 + COMMIT_RECORDS + 7);
    let text = serde_json::to_string(&entries[..3].iter().map(|e| &e.fields).collect::<Vec<_>>());
    assert_eq!(
        text.expect("JSON"),
        r#"[{"caller":"token:pacs","id":"a1-b2","model":"digits","outcome":"succeeded","version":"1.0.0"},{"caller":"token:pacs","model":"digits","outcome":"deadline","version":"1.0.0"},{"caller":"token:lis","model":"digits","outcome":"invalid","version":"1.0.0"}]"#
    );
}

#[test]
fn counts_are_settled_by_caller_and_used_is_counted_whatever_is_recorded() {
    for (mode, records) in [
        (InferenceRecords::PerCallerMinute, 2),
        (InferenceRecords::Off, 0),
    ] {
        let directory = tempfile::tempdir().expect("tempdir");
        let directory = directory.path();
        let recorder = recorder(directory, mode);
        for _ in 0..3 {
            ask(&recorder, "pacs", Some("7"), Outcome::Succeeded);
        }
        ask(&recorder, "pacs", None, Outcome::Overloaded);
        // A future that is dropped: its caller left.
        drop(recorder.begin(recorder.caller("uid", "1000")));
        let mut page = Page::new(crate::watch::page::Form::Prometheus);
        recorder.write_metrics(&mut page);
        let text = page.finish();
        for line in [
            "edgeward_caller_requests_total{caller=\"token:pacs\"} 4",
            "edgeward_caller_compute_seconds_total{caller=\"token:pacs\"} 0.006",
            "edgeward_caller_bytes_total{caller=\"token:pacs\",direction=\"sent\"} 120",
            "edgeward_caller_requests_total{caller=\"others\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        recorder.close();
        let entries = entries(directory, INFERENCES);
        assert_eq!(entries.len(), records, "{mode:?}");
        if let Some(first) = entries.first() {
            let fields = &first.fields;
            assert_eq!(fields["caller"], "token:pacs");
            assert_eq!(
                fields["outcomes"],
                serde_json::json!({"succeeded": 3, "overloaded": 1})
            );
            assert_eq!(fields["compute_ms"], 6.0);
            assert_eq!(entries[1].fields["outcomes"]["cancelled"], 1);
        }
        let rows = usage::read(directory, Month::now()).expect("usage");
        let found: Vec<_> = rows
            .iter()
            .map(|r| (r.caller.as_str(), r.requests, r.succeeded, r.received_bytes))
            .collect();
        assert_eq!(found, [("token:pacs", 4, 3, 400), ("uid:1000", 1, 0, 0)]);
    }
}

#[test]
fn the_security_log_holds_the_head_so_that_a_shortened_log_is_found() {
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    for _ in 0..2 {
        let recorder = recorder(directory, InferenceRecords::Every);
        ask(&recorder, "pacs", None, Outcome::Succeeded);
        ask(&recorder, "pacs", None, Outcome::Succeeded);
        recorder.close();
    }
    let reports = || verify(directory, None).expect("readable");
    let findings = |reports: Vec<Report>| -> Vec<String> {
        let findings = reports.into_iter().flat_map(|r| r.findings);
        findings
            .map(|f| format!("{}: {}", f.file, f.problem))
            .collect()
    };
    assert_eq!(findings(reports()), Vec::<String>::new());
    assert_eq!(entries(directory, SECURITY).len(), 2, "two checkpoints");
    let log = directory.join(INFERENCES.file);
    let text = std::fs::read_to_string(&log).expect("read");
    let shorter: String = text.lines().take(3).flat_map(|l| [l, "\n"]).collect();
    std::fs::write(&log, shorter).expect("cut");
    let found = findings(reports());
    assert!(
        found[0].contains("inferences.log: entry 4 was there once"),
        "{found:?}"
    );
    // The agent goes on, and what was cut off stays known.
    let recorder = recorder(directory, InferenceRecords::Every);
    ask(&recorder, "lis", None, Outcome::Succeeded);
    recorder.close();
    let found = findings(reports());
    assert!(
        found[0].contains("cut short or changed in between"),
        "{found:?}"
    );
    std::fs::remove_file(&log).expect("remove");
    assert!(findings(reports()).len() > 1);
}

#[test]
fn records_that_cannot_be_written_are_counted_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    let in_the_way = directory.join(INFERENCES.archive);
    std::fs::write(&in_the_way, b"").expect("a file where a directory belongs");
    let recorder = recorder(directory, InferenceRecords::Every);
    for _ in 0..COMMIT_RECORDS {
        ask(&recorder, "pacs", None, Outcome::Succeeded);
    }
    // Taken by the writer, to no avail.
    until("the writer takes what is there", || {
        recorder.shared.inbox().records.is_empty()
    });
    std::fs::remove_file(&in_the_way).expect("remove");
    ask(&recorder, "pacs", None, Outcome::Succeeded);
    recorder.close();
    let entries = entries(directory, INFERENCES);
    let recorded = entries.iter().filter(|e| e.event == "inference").count();
    let lost: u64 = entries
        .iter()
        .filter(|e| e.event == writer::LOST_EVENT)
        .filter_map(|e| e.fields["records"].as_u64())
        .sum();
    assert_eq!(recorded as u64 + lost, COMMIT_RECORDS as u64 + 1);
    assert!(recorded >= 1, "what came last is there");
}

#[test]
fn callers_without_number_are_counted_together() {
    let directory = tempfile::tempdir().expect("tempdir");
    let recorder = recorder(directory.path(), InferenceRecords::Off);
    for uid in 0..MAX_CALLERS + 50 {
        let caller = recorder.caller("uid", &uid.to_string());
        recorder.begin(caller).ended(Outcome::Succeeded);
    }
    let callers = recorder.shared.callers();
    assert_eq!(callers.len(), MAX_CALLERS + 1);
    let others = callers.last().expect("others");
    assert_eq!(
        (others.who.to_string(), others.total().requests),
        ("others".to_owned(), 50)
    );
    recorder.close();
}
