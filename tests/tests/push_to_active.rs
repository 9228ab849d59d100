//! From `fleetctl push` to an answer, on both doors of a device, through a real mosquitto.

use edgeward_tests::fleet::path;
use edgeward_tests::{BrokerKind, Fleet, binaries, device, http::Client, package::known};

#[test]
fn a_pushed_version_becomes_active_answers_right_on_both_doors_and_is_reported() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    // As an operator does it: push returns when every device of the group has said that it serves.
    let sample = binaries::sample("digits-1.0.0");
    fleet
        .fleetctl(&["push", path(&sample), "--group", "radiology"])
        .expect_success();
    ward.wait_active("digits", "1.0.0");

    let question = known("digits-1.0.0", 0);
    let request = &question.request;
    for mut client in [ward.unix(), ward.tls()] {
        let answer = client.infer("digits", request).expect("answer").expect_ok();
        question.check(&answer.json()).expect("the known answer");
        for path in [
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/digits/ready",
        ] {
            client.get(path).expect(path).expect_ok();
        }
    }

    // The operator sees it too, in the table and in JSON.
    let table = fleet.fleetctl(&["status"]).expect_success();
    for word in ["ward-1", "digits", "1.0.0", "watched"] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    let json = fleet.status().to_string();
    assert!(json.contains("ward-1") && json.contains("1.0.0"), "{json}");
}

#[test]
fn the_tls_door_answers_nobody_without_a_token() {
    let fleet = Fleet::without_broker();
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    let anonymous = Client::tls(ward.tls_port(), &ward.ca_path());
    let wrong = anonymous
        .another()
        .with_token(&format!("{}x", device::TOKEN));
    for mut client in [anonymous, wrong] {
        let response = client.get("/v2").expect("answer");
        assert_eq!(response.status, 401, "{}", response.text());
        assert!(response.json()["error"].is_string());
        assert!(response.header("www-authenticate").is_some());
    }
    ward.tls().get("/v2").expect("answer").expect_ok();
}

#[test]
fn a_device_of_another_group_takes_nothing() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let mut lab = fleet.device("lab-1", "laboratory");
    ward.start();
    lab.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    assert_eq!(lab.active("digits").expect("status"), None);
    let request = known("digits-1.0.0", 0).request;
    let response = lab.unix().infer("digits", &request).expect("answer");
    assert_eq!(response.status, 404, "{}", response.text());
}
