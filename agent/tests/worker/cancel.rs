//! A deadline that passes while a model runs: the interpreter stops at its next node, and the worker lives on.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_agent::worker::{Worker, WorkerError};
use edgeward_models::manifest::{Datatype, Signature, TensorSpec};

use crate::support::{MINUTE, infer, sample, spawner, until};

const WIDTH: i64 = 1024;
/// Each of the model's 500 nodes has something to do with so many rows.
const ROWS: i64 = 2048;

fn tensor(name: &str) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        datatype: Datatype::Fp32,
        shape: vec![-1, WIDTH],
        quantization: None,
    }
}

fn rows(count: i64) -> Vec<(Vec<i64>, Vec<u8>)> {
    let bytes = 0.5f32.to_le_bytes().repeat((count * WIDTH) as usize);
    vec![(vec![count, WIDTH], bytes)]
}

#[tokio::test]
async fn a_deadline_stops_a_running_model_at_its_next_node_and_the_same_worker_answers_on() {
    let mut sample = sample("digits-1.0.0");
    sample.manifest.signatures = vec![Signature {
        name: "serving_default".to_owned(),
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
    }];
    sample.manifest.max_request_bytes = 16 << 20;
    let mut spec = sample.spec("builtin");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/models");
    spec.model_path = models.join("many-nodes.tflite");
    spec.manifest = Arc::new(sample.manifest);
    let worker = Worker::start(&spawner(), spec).await.expect("start");
    // New shapes are planned once.
    infer(&worker, &rows(ROWS), MINUTE).await.expect("warm");

    let begun = Instant::now();
    infer(&worker, &rows(ROWS), MINUTE).await.expect("whole");
    let whole = begun.elapsed();
    assert!(whole > Duration::from_millis(100), "too fast: {whole:?}");

    for _ in 0..3 {
        let begun = Instant::now();
        let late = infer(&worker, &rows(ROWS), whole / 10).await;
        assert!(matches!(late, Err(WorkerError::Deadline)));
        until("the interpreter has stopped", || worker.in_flight() == 0).await;
        // A stop at the end of the graph would be one after the whole time.
        let stopped = begun.elapsed();
        assert!(stopped < whole * 3 / 4, "{stopped:?} of {whole:?}");
    }

    let answer = infer(&worker, &rows(2), MINUTE).await.expect("the next");
    assert_eq!(answer.shape(0), [2, WIDTH]);
    // What the function comes to, whatever it begins with.
    let value = answer.output(0)[..4].try_into().map(f32::from_le_bytes);
    assert!((value.expect("a value") - 0.659).abs() < 0.001, "{value:?}");
    let process = format!("/proc/{}", worker.facts().pid);
    assert!(Path::new(&process).exists());
}
