//! Several versions of a model as clients meet them: named, labelled, split by weight, sticky.

use std::collections::BTreeSet;

use edgeward_models::fleet::routing::{Routing, parse_label, parse_weight};
use serde_json::{Value, json};

use crate::client::Reply;
use crate::device::{Device, INFER, assert_close, golden};
use crate::infer::{image, json_values};
use crate::sequences::{END, START, add};

fn routing(labels: &[&str], split: &[&str]) -> Routing {
    Routing {
        labels: labels
            .iter()
            .map(|l| parse_label(l).expect("label"))
            .collect(),
        split: split
            .iter()
            .map(|w| parse_weight(w).expect("weight"))
            .collect(),
        ..Routing::default()
    }
}

/// Digits 1.0.0 (release 1) active, 2.0.0 (release 2) beside it.
async fn two_versions(split: &[&str]) -> Device {
    let device = Device::start(|_| {}).await;
    device
        .serve("digits-1.0.0", |manifest| manifest["release"] = json!(1))
        .await;
    let routing = routing(&["stable=1.0.0", "canary=2.0.0"], split);
    device
        .engine
        .route(&"digits".parse().expect("name"), routing);
    device
        .serve_beside("digits-2.0.0", |manifest| manifest["release"] = json!(2))
        .await;
    device
}

fn question() -> Value {
    image(json!(golden("digits-1.0.0").0))
}

/// The version that answered, in the protocol's words.
fn version(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["model_version"]
        .as_str()
        .expect("a version")
        .to_owned()
}

#[tokio::test]
async fn a_version_that_a_request_names_answers_and_no_other() {
    let device = two_versions(&[]).await;
    let mut client = device.client().await;
    for (name, meant) in [
        ("1.0.0", "1.0.0"),
        ("1", "1.0.0"),
        ("stable", "1.0.0"),
        ("2.0.0", "2.0.0"),
        ("2", "2.0.0"),
        ("canary", "2.0.0"),
    ] {
        let path = format!("/v2/models/digits/versions/{name}/infer");
        let reply = client.post(&path, question().to_string()).await;
        assert_eq!(version(&reply), meant, "{name}");
        assert_close(&json_values(&reply), &golden(&format!("digits-{meant}")).1);
    }
    let reply = client.post(INFER, question().to_string()).await;
    assert_eq!(version(&reply), "1.0.0", "the active one");
    for unknown in ["3", "3.0.0", "beta"] {
        let path = format!("/v2/models/digits/versions/{unknown}/infer");
        let reply = client.post(&path, question().to_string()).await;
        assert_eq!(reply.status, 404, "{reply:?}");
        let error = reply.error();
        assert!(
            error.contains(unknown) && error.contains("2.0.0 (release 2)"),
            "{error}"
        );
    }
    let described = client.get("/v2/models/digits").await.json();
    assert_eq!(described["versions"], json!(["1.0.0", "2.0.0"]));
    let ready = client.get("/v2/models/digits/versions/canary/ready").await;
    assert_eq!(ready.status, 200);
    device.close().await;
}

#[tokio::test]
async fn tensorflow_servings_versions_and_labels_are_answered_by_exactly_that_version() {
    let device = two_versions(&[]).await;
    let mut client = device.client().await;
    let (input, _) = golden("digits-1.0.0");
    let pixels: Vec<Vec<[f64; 1]>> = input
        .chunks(8)
        .map(|r| r.iter().map(|v| [*v]).collect())
        .collect();
    let body = json!({"instances": [pixels]}).to_string();
    for (pick, meant) in [
        ("", "1.0.0"),
        ("/versions/0", "1.0.0"),
        ("/versions/1", "1.0.0"),
        ("/versions/2", "2.0.0"),
        ("/labels/stable", "1.0.0"),
        ("/labels/canary", "2.0.0"),
    ] {
        let reply = client
            .post(&format!("/v1/models/digits{pick}:predict"), &body)
            .await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(
            reply.header("edgeward-model-version"),
            Some(meant),
            "{pick}"
        );
        let json = reply.json();
        let row = json["predictions"][0].as_array().expect("a row");
        let row: Vec<f64> = row.iter().map(|v| v.as_f64().expect("number")).collect();
        assert_close(&row, &golden(&format!("digits-{meant}")).1);
    }
    for pick in ["/versions/3", "/labels/beta", "/labels/2.0.0"] {
        let reply = client
            .post(&format!("/v1/models/digits{pick}:predict"), &body)
            .await;
        assert_eq!(reply.status, 404, "{pick}: {reply:?}");
    }
    let numbers = |reply: Reply| -> Vec<String> {
        let json = reply.json();
        let states = json["model_version_status"]
            .as_array()
            .expect("states")
            .clone();
        let number = |state: &Value| state["version"].as_str().expect("a number").to_owned();
        states.iter().map(number).collect()
    };
    assert_eq!(numbers(client.get("/v1/models/digits").await), ["1", "2"]);
    assert_eq!(
        numbers(client.get("/v1/models/digits/labels/canary").await),
        ["2"]
    );
    let metadata = client
        .get("/v1/models/digits/labels/canary/metadata")
        .await
        .json();
    assert_eq!(metadata["model_spec"]["version"], "2");
    device.close().await;
}

#[tokio::test]
async fn a_sticky_key_goes_to_one_version_whether_it_comes_as_header_or_parameter() {
    let device = two_versions(&["1.0.0=50", "2.0.0=50"]).await;
    let mut client = device.client().await;
    let mut seen = BTreeSet::new();
    for key in 0..20 {
        let key = format!("patient-{key}");
        let headers = [("Edgeward-Sticky-Key", key.as_str())];
        let body = question().to_string();
        let first = version(&client.ask("POST", INFER, &headers, body.as_bytes()).await);
        for _ in 0..3 {
            let again = client.ask("POST", INFER, &headers, body.as_bytes()).await;
            assert_eq!(version(&again), first, "{key}");
            let mut asked = question();
            asked["parameters"] = json!({"sticky_key": key});
            let again = client.post(INFER, asked.to_string()).await;
            assert_eq!(version(&again), first, "{key} as a parameter");
            assert_close(&json_values(&again), &golden(&format!("digits-{first}")).1);
        }
        seen.insert(first);
        // A version that is named is no matter of chance.
        let path = "/v2/models/digits/versions/canary/infer";
        let named = client.ask("POST", path, &headers, body.as_bytes()).await;
        assert_eq!(version(&named), "2.0.0");
    }
    assert_eq!(
        seen.len(),
        2,
        "twenty keys all on one side: one in half a million"
    );
    let long = "k".repeat(1025);
    let body = question().to_string();
    let reply = client
        .ask(
            "POST",
            INFER,
            &[("Edgeward-Sticky-Key", &long)],
            body.as_bytes(),
        )
        .await;
    assert_eq!(reply.status, 400);
    device.close().await;
}

#[tokio::test]
async fn a_sequence_stays_with_the_version_that_has_its_state() {
    let device = Device::start(|_| {}).await;
    device.serve("accumulator-1.0.0", |_| {}).await;
    let model = "accumulator".parse().expect("name");
    device
        .engine
        .route(&model, routing(&[], &["1.0.0=50", "2.0.0=50"]));
    let newer = |manifest: &mut Value| manifest["version"] = json!("2.0.0");
    device.serve_beside("accumulator-1.0.0", newer).await;
    let mut client = device.client().await;
    let mut seen = BTreeSet::new();
    for sequence in 1..=16 {
        let mut versions = BTreeSet::new();
        for step in 0..3 {
            let flags = [&[START][..], &[], &[END]][step];
            let body = add(sequence, flags, 1.0);
            let reply = client.post("/v2/models/accumulator/infer", body).await;
            versions.insert(version(&reply));
        }
        assert_eq!(versions.len(), 1, "sequence {sequence} is torn");
        seen.extend(versions);
    }
    assert_eq!(seen.len(), 2);
    device.close().await;
}
