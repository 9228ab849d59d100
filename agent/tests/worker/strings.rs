//! Tensors of strings. The model picks words out of words (`picked`) and gives all of them in a column (`listed`).

use std::path::Path;
use std::sync::Arc;

use edgeward_agent::strings;
use edgeward_agent::worker::{Worker, WorkerError, WorkerSpec};
use edgeward_models::manifest::{Datatype, Signature, TensorSpec};
use futures::future::join_all;

use crate::support::{MINUTE, infer, sample, spawner};

fn spec(delegate: &str) -> WorkerSpec {
    let tensor = |name: &str, datatype, shape: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
        quantization: None,
    };
    let mut sample = sample("digits-1.0.0");
    sample.manifest.max_request_bytes = 4 << 20;
    sample.manifest.signatures = vec![Signature {
        name: "serving_default".to_owned(),
        inputs: vec![
            tensor("words", Datatype::Bytes, &[-1]),
            tensor("picks", Datatype::Int32, &[-1]),
        ],
        outputs: vec![
            tensor("picked", Datatype::Bytes, &[-1]),
            tensor("listed", Datatype::Bytes, &[-1, 1]),
        ],
    }];
    let mut spec = sample.spec(delegate);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/models");
    spec.model_path = models.join("words.tflite");
    spec.manifest = Arc::new(sample.manifest);
    // Slots far smaller than what a request may bring.
    spec.request_bytes = 1024;
    spec
}

fn elements(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, word) in words.iter().enumerate() {
        strings::push(&mut bytes, number, word).expect("short");
    }
    bytes
}

fn question(words: &[Vec<u8>], pick: usize) -> Vec<(Vec<i64>, Vec<u8>)> {
    let pick = (pick as i32).to_le_bytes().to_vec();
    vec![(vec![words.len() as i64], elements(words)), (vec![1], pick)]
}

async fn assert_answers(worker: &Worker, words: &[Vec<u8>], pick: usize) {
    let answer = infer(worker, &question(words, pick), MINUTE).await;
    let answer = answer.expect("answer");
    assert_eq!(answer.shape(0), [1]);
    assert_eq!(answer.output(0), elements(&words[pick..=pick]));
    assert_eq!(answer.shape(1), [words.len() as i64, 1]);
    assert_eq!(answer.output(1), elements(words));
}

#[tokio::test]
async fn words_of_any_length_come_back_whether_they_fit_into_a_slot_or_not() {
    let spawner = spawner();
    for delegate in ["builtin", "xnnpack"] {
        let worker = Worker::start(&spawner, spec(delegate))
            .await
            .expect("start");
        worker.seal().await.expect("seal");
        for (count, length) in [(1, 0), (3, 5), (2, 1 << 20), (5000, 3), (1, 1), (3, 5)] {
            let word = |number: usize| vec![number as u8 ^ 0x80; length];
            let words: Vec<_> = (0..count).map(word).collect();
            assert_answers(&worker, &words, count - 1).await;
        }
    }
}

#[tokio::test]
async fn callers_at_once_get_their_own_words() {
    let mut spec = spec("xnnpack");
    (spec.instances, spec.slots) = (2, 4);
    let worker = Worker::start(&spawner(), spec).await.expect("start");
    let one = async |number: usize| {
        let words: Vec<_> = (0..number % 7 + 1)
            .map(|i| format!("caller {number}, word {i}").into_bytes())
            .collect();
        assert_answers(&worker, &words, number % words.len()).await;
    };
    join_all((0..200).map(one)).await;
}

#[tokio::test]
async fn bytes_that_are_no_strings_fail_alone() {
    let worker = Worker::start(&spawner(), spec("builtin"))
        .await
        .expect("start");
    let words = [b"one".to_vec(), b"two".to_vec()];
    let mut wrong = question(&words, 0);
    wrong[0].1[0] = 200;
    let Err(WorkerError::Invoke(reason)) = infer(&worker, &wrong, MINUTE).await else {
        panic!("it was answered");
    };
    assert!(reason.contains("input 0: element 0"), "{reason}");
    assert_answers(&worker, &words, 1).await;
}
