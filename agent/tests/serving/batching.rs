//! Joined requests in the engine: only where the model was seen to allow it.

use std::path::Path;

use edgeward_agent::config::{Batching, ModelSettings};
use edgeward_models::manifest::{GoldenTensor, GoldenVector, GoldenVectors};
use edgeward_models::package::InstalledVersion;
use futures::future::join_all;

use crate::support::*;

/// A device that is to join requests of these models.
fn joining(models: &[&str]) -> Device {
    Device::with(|config| {
        for model in models {
            let batching = Batching {
                max_batch_size: 8,
                max_delay_us: 5000,
                preferred_sizes: Vec::new(),
            };
            let settings = ModelSettings {
                batching: Some(batching),
                ..ModelSettings::default()
            };
            config.models.insert(model.parse().expect("name"), settings);
        }
    })
}

#[tokio::test]
async fn joined_requests_get_their_own_answers_and_the_sizes_are_counted() {
    let device = joining(&["digits"]);
    device.serve(&device.sample("digits-1.0.0")).await;
    let (input, output) = golden("digits-1.0.0");
    let other = vec![0.5; input.len()];
    let alone = ask(&device.engine, "digits", &other).await.expect("answer");
    for _ in 0..20 {
        let questions = [&input, &other, &other, &input, &input, &other];
        let asked = questions.map(|question| ask(&device.engine, "digits", question));
        for (question, answer) in questions.iter().zip(join_all(asked).await) {
            let expected = if *question == &input { &output } else { &alone };
            assert!(close(&answer.expect("answer"), expected));
        }
    }
    let served = device.engine.resolve("digits", None).expect("served");
    let statistics = served.statistics();
    assert_eq!(statistics.succeeded, 121);
    assert!(statistics.invokes < 121, "{statistics:?}");
    let text = device.metrics();
    let labels = "{model=\"digits\",version=\"1.0.0\"}";
    assert!(
        text.contains(&format!("edgeward_batch_size_sum{labels} 121\n")),
        "{text}"
    );
    let count = format!("edgeward_batch_size_count{labels} {}\n", statistics.invokes);
    assert!(text.contains(&count), "{text}");
}

/// The model that turns the order of its rows round, with two golden vectors.
fn reverse(device: &Device) -> InstalledVersion {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/models/reverse.tflite");
    device.package_of("digits-1.0.0", &model, |manifest, golden| {
        manifest.model = "reverse".parse().expect("name");
        manifest.max_request_bytes = 1024;
        let signature = &mut manifest.signatures[0];
        signature.inputs[0].name = "x".to_owned();
        signature.outputs[0].name = "y".to_owned();
        signature.inputs[0].shape = vec![-1, 2];
        signature.outputs[0].shape = vec![-1, 2];
        let tensor = |data: [f64; 2]| GoldenTensor {
            shape: vec![1, 2],
            data: data.to_vec(),
            strings: Vec::new(),
        };
        let vector = |data| GoldenVector {
            signature: None,
            inputs: [("x".to_owned(), tensor(data))].into(),
            outputs: [("y".to_owned(), tensor(data))].into(),
        };
        *golden = GoldenVectors {
            vectors: vec![vector([1.0, 2.0]), vector([3.0, 4.0])],
        };
    })
}

#[tokio::test]
async fn a_model_whose_rows_are_not_its_own_or_that_keeps_state_is_served_one_by_one() {
    let device = joining(&["reverse", "accumulator"]);
    device.serve(&reverse(&device)).await;
    device.serve(&device.sample("accumulator-1.0.0")).await;
    let questions = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]];
    let asked = questions
        .each_ref()
        .map(|q| ask(&device.engine, "reverse", q));
    for (question, answer) in questions.iter().zip(join_all(asked).await) {
        assert_eq!(answer.expect("answer"), question);
    }
    assert!(device.engine.models().iter().all(|model| model.ready));
    let text = device.metrics();
    assert!(!text.contains("edgeward_batch_size_count{"), "{text}");
}
