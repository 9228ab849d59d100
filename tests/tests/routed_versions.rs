//! Two versions of a model at once, as an operator asks for them: under labels, and split by weight.

use edgeward_tests::load::Load;
use edgeward_tests::package::known;
use edgeward_tests::{BrokerKind, Device, Fleet, binaries, fleet::path, wait};
use serde_json::Value;

use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks for digits, or a version of it, with a sticky key; returns the answer.
fn ask(device: &Device, version: Option<&str>, key: &str) -> Result<Value, String> {
    let version = version.map_or(String::new(), |v| format!("/versions/{v}"));
    let path = format!("/v2/models/digits{version}/infer");
    let body = known("digits-1.0.0", 0).request.to_string();
    let headers = [("edgeward-sticky-key", key)];
    let response = device
        .unix()
        .request("POST", &path, &headers, body.as_bytes())
        .map_err(|e| e.to_string())?;
    match response.status {
        200 => Ok(response.json()),
        status => Err(format!("{status} {}", response.text())),
    }
}

/// The version that a key means.
fn chosen(device: &Device, key: &str) -> String {
    let answer = ask(device, None, key).expect("an answer");
    answer["model_version"]
        .as_str()
        .expect("a version")
        .to_owned()
}

/// Whether the version that a name means answers, with its own values.
fn answers(device: &Device, name: &str, version: &str) -> Result<(), String> {
    let answer = ask(device, Some(name), "someone")?;
    if answer["model_version"] != version {
        return Err(format!("{name} is {}", answer["model_version"]));
    }
    known(&format!("digits-{version}"), 0).check(&answer)
}

#[test]
fn a_second_version_is_labelled_split_to_and_taken_back_while_requests_go_on() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");

    // Signed, fetched and served under a label in one step, which ends when the device says so.
    let sample = binaries::sample("digits-2.0.0");
    let push = [
        "push",
        path(&sample),
        "--group",
        "radiology",
        "--label",
        "canary",
    ];
    let said = fleet.fleetctl(&push).expect_success();
    assert!(
        said.contains("routed") && said.contains("2.0.0 on"),
        "{said}"
    );
    answers(&ward, "canary", "2.0.0").expect("the labelled version");
    ward.answers_as("digits", "digits-1.0.0")
        .expect("the active version");

    // Requests that name no version are split, and none fails while that begins and ends.
    let check = |answer: &Value| match answer["model_version"].as_str() {
        Some(version) => known(&format!("digits-{version}"), 0).check(answer),
        None => Err("no version".to_owned()),
    };
    let load = Load::start(
        ward.unix(),
        "digits",
        known("digits-1.0.0", 0).request,
        check,
    );
    let route = [
        "route",
        "digits",
        "--group",
        "radiology",
        "--label",
        "canary=2.0.0",
    ];
    let split = ["--split", "1.0.0=50,2.0.0=50", "--json"];
    let said = fleet
        .fleetctl(&[&route[..], &split].concat())
        .expect_success();
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["devices"][0]["outcome"], "routed", "{said}");
    let keys: Vec<String> = (0..20).map(|key| format!("patient-{key}")).collect();
    let versions: Vec<String> = keys.iter().map(|key| chosen(&ward, key)).collect();
    for version in ["1.0.0", "2.0.0"] {
        assert!(versions.iter().any(|v| v == version), "{versions:?}");
    }
    let again: Vec<String> = keys.iter().map(|key| chosen(&ward, key)).collect();
    assert_eq!(versions, again, "keys stay");
    let status = fleet.status();
    let routing = &status["devices"][0]["status"]["models"][0]["routing"];
    assert_eq!(routing["versions"][0]["version"], "2.0.0", "{status}");
    assert_eq!(routing["overridden"], false);

    // Without a broker, after a restart: the same.
    fleet.broker().stop();
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
    assert_eq!(tally.by_version.len(), 2, "{tally:?}");
    ward.stop();
    ward.start();
    wait::until("the label to be there again", PATIENCE, || {
        answers(&ward, "canary", "2.0.0")
    });
    let again: Vec<String> = keys.iter().map(|key| chosen(&ward, key)).collect();
    assert_eq!(versions, again, "keys stay");

    fleet.broker().restart();
    fleet.fleetctl(&["sync"]).expect_success();

    // As a shadow it answers nobody, and what it would have answered is compared.
    let shadow = [
        "route",
        "digits",
        "--group",
        "radiology",
        "--shadow",
        "2.0.0",
    ];
    fleet.fleetctl(&shadow).expect_success();
    wait::until("a difference to be counted", PATIENCE, || {
        assert_eq!(chosen(&ward, "someone"), "1.0.0");
        let status = ward.model_status("digits")?;
        let shadow = &status["routing"]["shadow"];
        match shadow["different"].as_u64() {
            Some(1..) => Ok(()),
            _ => Err(shadow.to_string()),
        }
    });
    let report = ward.edgeward(&["status"]).expect_success();
    assert!(
        report.contains("difference of digits 2.0.0 from 1.0.0"),
        "{report}"
    );

    // The device's own administrator may route otherwise for a while, and everybody is told.
    let trial = ["route", "digits", "--label", "trial=2.0.0"];
    ward.edgeward(&trial).expect_success();
    answers(&ward, "trial", "2.0.0").expect("the override's label");
    wait::until("the fleet to hear of the override", PATIENCE, || {
        let status = fleet.status();
        let routing = &status["devices"][0]["status"]["models"][0]["routing"];
        match routing["overridden"].as_bool() {
            Some(true) => Ok(()),
            _ => Err(routing.to_string()),
        }
    });
    ward.edgeward(&["route", "digits", "--end"])
        .expect_success();
    let ended = answers(&ward, "trial", "2.0.0").expect_err("no such label");
    assert!(ended.starts_with("404"), "{ended}");

    let clear = ["route", "digits", "--group", "radiology", "--clear"];
    fleet.fleetctl(&clear).expect_success();
    let refused = answers(&ward, "canary", "2.0.0").expect_err("no label any more");
    assert!(refused.starts_with("404"), "{refused}");
    assert!(
        keys.iter().all(|key| chosen(&ward, key) == "1.0.0"),
        "the active one alone"
    );
}
