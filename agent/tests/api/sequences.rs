//! A model that keeps state, served by sequence. The sample answers the sum of all it was ever given.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::client::{PATIENCE, Reply};
use crate::device::Device;

const ADD: &str = "/v2/models/accumulator/infer";
const SAMPLE: &str = "accumulator-1.0.0";

/// Adds `value` in a sequence: `START`, `END`, both or neither.
pub fn add(id: impl Into<Value>, flags: &[&str], value: f64) -> String {
    let mut parameters = json!({"sequence_id": id.into()});
    for flag in flags {
        parameters[*flag] = json!(true);
    }
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": vec![value; 4]});
    json!({"parameters": parameters, "inputs": [input]}).to_string()
}

pub const START: &str = "sequence_start";
pub const END: &str = "sequence_end";

fn sum(reply: Reply) -> f64 {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["outputs"][0]["data"][3].as_f64().expect("sum")
}

fn assert_refused(reply: &Reply, status: u16, words: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert!(reply.error().contains(words), "{}", reply.error());
}

#[tokio::test]
async fn each_sequence_has_state_of_its_own_from_its_start_to_its_end() {
    for delegate in ["builtin", "xnnpack"] {
        let device = Device::serving_changed(
            SAMPLE,
            |_| {},
            |manifest| manifest["delegates"] = json!([{"delegate": delegate}]),
        )
        .await;
        let mut client = device.client().await;
        // Fresh, though the golden vectors were asked before.
        assert_eq!(sum(client.post(ADD, add(7, &[START], 1.0)).await), 1.0);
        assert_eq!(sum(client.post(ADD, add("7", &[START], 10.0)).await), 10.0);
        assert_eq!(sum(client.post(ADD, add(7, &[], 2.0)).await), 3.0);
        assert_eq!(sum(client.post(ADD, add("7", &[], 20.0)).await), 30.0);
        // A wrong request is no part of it.
        let wrong = add(7, &[], 1.0).replace("[1,4]", "[1,5]");
        assert_refused(&client.post(ADD, wrong).await, 400, "input \"x\"");
        assert_eq!(sum(client.post(ADD, add(7, &[END], 3.0)).await), 6.0);
        assert_refused(&client.post(ADD, add(7, &[], 1.0)).await, 409, "sequence 7");
        // Started again, and again while it runs.
        for _ in 0..2 {
            assert_eq!(sum(client.post(ADD, add("7", &[START], 5.0)).await), 5.0);
        }
        assert_eq!(sum(client.post(ADD, add(8, &[START, END], 4.0)).await), 4.0);
        device.close().await;
    }
}

#[tokio::test]
async fn a_request_that_does_not_say_its_sequence_is_told_how_and_one_too_many_likewise() {
    let device = Device::serving(SAMPLE).await;
    device.serve("digits-1.0.0", |_| {}).await;
    let mut client = device.client().await;
    for id in [json!(0), json!("")] {
        let reply = client.post(ADD, add(id, &[], 1.0)).await;
        assert_refused(&reply, 400, "sequence_id");
    }
    let headers = [("Inference-Header-Content-Length", "0")];
    let reply = client.ask("POST", ADD, &headers, &[0; 16]).await;
    assert_refused(&reply, 400, "sequence_start");
    let reply = client.post(ADD, add("new", &[], 1.0)).await;
    assert_refused(&reply, 409, "no request has started it");
    let mut image = crate::infer::image(json!(vec![0.0; 64]));
    image["parameters"] = json!({"sequence_id": 1, "sequence_start": true});
    let reply = client.post(crate::device::INFER, image.to_string()).await;
    assert_refused(&reply, 400, "keeps no state");
    device.close().await;
}

#[tokio::test]
async fn a_worker_takes_its_sequences_with_it_and_they_are_not_continued_on_fresh_state() {
    let device = Device::serving(SAMPLE).await;
    let mut client = device.client().await;
    assert_eq!(sum(client.post(ADD, add(1, &[START], 1.0)).await), 1.0);
    let worker = device.worker();
    kill_process(worker, Signal::KILL).expect("kill");
    let deadline = Instant::now() + PATIENCE;
    let reply = loop {
        let reply = client.post(ADD, add(1, &[], 1.0)).await;
        // While there is no worker.
        if reply.status != 503 {
            break reply;
        }
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Its worker was replaced, or was already dead when the request came to it.
    assert_refused(&reply, 409, "sequence 1 cannot go on");
    assert_eq!(sum(client.post(ADD, add(1, &[START], 2.0)).await), 2.0);
    device.close().await;
}

#[tokio::test]
async fn a_request_that_was_not_answered_in_time_loses_its_sequence_and_no_other() {
    let device = Device::serving(SAMPLE).await;
    let mut client = device.client().await;
    for id in [1, 2] {
        assert_eq!(sum(client.post(ADD, add(id, &[START], 1.0)).await), 1.0);
    }
    let stopped = crate::overload::Stopped::worker_of(&device);
    let headers = [("Edgeward-Timeout-Ms", "100")];
    let reply = client
        .ask("POST", ADD, &headers, add(1, &[], 1.0).as_bytes())
        .await;
    assert_eq!(reply.status, 504, "{reply:?}");
    drop(stopped);
    let reply = client.post(ADD, add(1, &[], 1.0)).await;
    assert_refused(&reply, 409, "its last request was not answered");
    assert_eq!(sum(client.post(ADD, add(2, &[], 1.0)).await), 2.0);
    device.close().await;
}

#[tokio::test]
async fn sequences_have_a_number_and_the_idle_ones_make_room() {
    let device = Device::serving_changed(
        SAMPLE,
        |_| {},
        |manifest| manifest["sequences"] = json!({"most": 2, "idle_seconds": 2}),
    )
    .await;
    let mut client = device.client().await;
    for id in [1, 2] {
        assert_eq!(sum(client.post(ADD, add(id, &[START], 1.0)).await), 1.0);
    }
    let begun = Instant::now();
    let reply = client.post(ADD, add(3, &[START], 1.0)).await;
    // Unless this machine was busy for so long that one was idle.
    if begun.elapsed() < Duration::from_secs(1) {
        assert_refused(&reply, 429, "all 2 sequences");
        assert!(reply.header("retry-after").is_some());
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(sum(client.post(ADD, add(3, &[START], 1.0)).await), 1.0);
    assert_eq!(sum(client.post(ADD, add(4, &[START], 1.0)).await), 1.0);
    for id in [1, 2] {
        assert_refused(
            &client.post(ADD, add(id, &[], 1.0)).await,
            409,
            "idle for longer",
        );
    }
    device.close().await;
}
