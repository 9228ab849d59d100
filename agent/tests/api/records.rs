//! Who asked for what: the inference records of requests that came through the doors.

use edgeward_agent::config::{Config, InferenceRecords, TlsDoor};
use edgeward_agent::watch::audit::verify::read;
use edgeward_agent::watch::audit::{Entry, INFERENCES};
use serde_json::{Value, json};

use crate::client::Client;
use crate::device::{Device, INFER, floats, golden};
use crate::tls::{self, SECRET, Site};

const PATTERN: &str = "PLANTED";

pub fn every(config: &mut Config) {
    config.audit.inference = InferenceRecords::Every;
}

/// What was recorded until now; the device records nothing any more.
pub fn recorded(device: &Device) -> Vec<Value> {
    let recorder = device.recorder.clone();
    recorder.close();
    let mut found = Vec::new();
    let report = read(
        &device.config.state_directory,
        INFERENCES,
        |entry: &Entry, line| {
            assert!(!String::from_utf8_lossy(line).contains(PATTERN));
            found.push(entry.fields.clone());
            Ok(())
        },
    );
    assert!(report.expect("readable").findings.is_empty());
    found
}

fn question(id: &str) -> Value {
    let values = golden("digits-1.0.0").0;
    json!({"id": id, "inputs": [
        {"name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": values}]})
}

fn record(caller: &str, outcome: &str, id: Option<&str>) -> Value {
    let mut record =
        json!({"caller": caller, "outcome": outcome, "model": "digits", "version": "1.0.0"});
    if let Some(id) = id {
        record["id"] = id.into();
    }
    record
}

#[tokio::test]
async fn each_request_is_recorded_with_who_asked_and_what_came_of_it() {
    let device = Device::serving_changed("digits-1.0.0", every, |_| {}).await;
    let mut client = device.client().await;
    let predict = json!({"instances": [{"image": question("")["inputs"][0]["data"]}]});
    let mut wrong = question("id-2");
    wrong["inputs"][0]["name"] = PATTERN.into();
    for (path, body, status) in [
        (INFER, question("id-1"), 200),
        (INFER, wrong, 400),
        (INFER, question(&format!("{PATTERN} is no id")), 200),
        (
            &*format!("/v2/models/{PATTERN}/infer"),
            question("id-3"),
            404,
        ),
        ("/v1/models/digits:predict", predict, 400),
    ] {
        let reply = client.post(path, body.to_string()).await;
        assert_eq!(
            reply.status,
            status,
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
    }
    // No inferences.
    for path in ["/v2/models/digits", "/v2/health/ready", "/metrics"] {
        assert_eq!(client.get(path).await.status, 200);
    }
    let uid = format!("uid:{}", rustix::process::getuid().as_raw());
    assert_eq!(
        recorded(&device),
        [
            record(&uid, "succeeded", Some("id-1")),
            record(&uid, "invalid", None),
            record(&uid, "succeeded", None),
            json!({"caller": uid, "outcome": "invalid"}),
            record(&uid, "invalid", None),
        ]
    );
    device.close().await;
}

#[tokio::test]
async fn tokens_and_certificates_are_recorded_by_their_names() {
    let site = Site::new();
    let door = TlsDoor {
        client_ca: Some(site.path("clients.pem")),
        tokens: vec![tls::token()],
        ..site.door()
    };
    let change = |config: &mut Config| {
        every(config);
        config.tls = Some(door);
    };
    let device = Device::serving_changed("digits-1.0.0", change, |_| {}).await;
    let certificate = site.client_certificate();
    let bearer = format!("Bearer {SECRET}");
    for (certificate, headers) in [
        (Some(&certificate), &[][..]),
        (None, &[("Authorization", bearer.as_str())][..]),
    ] {
        let stream = tls::connect(&device, &site, certificate, rustls::ALL_VERSIONS).await;
        let mut client = Client::over(stream.expect("connect"));
        let headers = [headers, &[("Inference-Header-Content-Length", "0")]].concat();
        let body = floats(&golden("digits-1.0.0").0);
        let reply = client.ask("POST", INFER, &headers, &body).await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(
        recorded(&device),
        [
            record("certificate:pacs", "succeeded", None),
            record("token:pacs", "succeeded", None),
        ]
    );
    device.close().await;
}
