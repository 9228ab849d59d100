//! Anything as a body: an answer always comes, the worker never notices.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;

use crate::device::{Device, INFER, assert_close, floats, golden, read_floats};

/// Bodies from nonsense to almost right.
fn bodies() -> impl Strategy<Value = (Option<String>, Vec<u8>)> {
    let request = json!({"inputs": [{
        "name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1], "parameters": {"binary_data_size": 256},
    }], "outputs": [{"name": "probabilities", "parameters": {"binary_data": true}}]})
    .to_string()
    .into_bytes();
    let json_length = request.len();
    let mut whole = request;
    whole.extend([0; 256]);
    let mutated = proptest::collection::vec((0..whole.len(), proptest::num::u8::ANY), 0..4)
        .prop_map(move |changes| {
            let mut body = whole.clone();
            for (at, byte) in changes {
                body[at] = byte;
            }
            body
        });
    let nonsense = proptest::collection::vec(proptest::num::u8::ANY, 0..600);
    let header = proptest::prop_oneof![
        3 => proptest::strategy::Just(Some(json_length.to_string())),
        1 => "[0-9]{1,20}".prop_map(Some),
        1 => "[ -~]{0,10}".prop_map(Some),
        1 => proptest::strategy::Just(None),
    ];
    (header, proptest::prop_oneof![4 => mutated, 1 => nonsense])
}

#[tokio::test]
async fn any_body_is_answered_and_the_worker_lives_on() {
    let device = Device::serving("digits-1.0.0").await;
    let worker = device.worker();
    let mut runner = TestRunner::default();
    let strategy = bodies();
    let mut client = device.client().await;
    let mut right = 0;
    for _ in 0..1500 {
        let (header, body) = strategy.new_tree(&mut runner).expect("value").current();
        let header = header.map(|h| h.trim().to_owned());
        let headers: Vec<_> = header
            .iter()
            .map(|h| ("Inference-Header-Content-Length", h.as_str()))
            .collect();
        let reply = client.ask("POST", INFER, &headers, &body).await;
        match reply.status {
            200 => right += 1,
            400 | 413 => assert!(!reply.error().is_empty()),
            other => panic!("{other}: {:?}", String::from_utf8_lossy(&reply.body)),
        }
        if reply.header("connection") == Some("close") {
            client = device.client().await;
        }
    }
    assert!(
        right > 0,
        "not one of the bodies was right: the test does not reach the model"
    );
    assert_eq!(device.worker(), worker, "the worker died");
    let (input, expected) = golden("digits-1.0.0");
    let headers = [("Inference-Header-Content-Length", "0")];
    let reply = client.ask("POST", INFER, &headers, &floats(&input)).await;
    assert_close(&read_floats(reply.split().1), &expected);
    device.close().await;
}
