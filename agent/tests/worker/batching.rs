//! Requests that run together: each gets what it would get by itself, whatever becomes of the others.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_agent::config::Batching;
use edgeward_agent::worker::{Worker, WorkerError, WorkerSpec};
use edgeward_models::manifest::{Datatype, Signature, TensorSpec};
use futures::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{MINUTE, infer, sample, spawner, until};

fn batching(max_batch_size: u32, max_delay_us: u64) -> Option<Batching> {
    Some(Batching {
        max_batch_size,
        max_delay_us,
        preferred_sizes: Vec::new(),
    })
}

fn tensor(name: &str, datatype: Datatype, shape: &[i64]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
        quantization: None,
    }
}

/// One of the tests' own models on the built-in kernels.
fn spec(model: &str, input: TensorSpec, output: TensorSpec, request_bytes: usize) -> WorkerSpec {
    let mut sample = sample("digits-1.0.0");
    sample.manifest.signatures = vec![Signature {
        name: "serving_default".to_owned(),
        inputs: vec![input],
        outputs: vec![output],
    }];
    sample.manifest.max_request_bytes = request_bytes as u64;
    let mut spec = sample.spec("builtin");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/models");
    spec.model_path = models.join(model);
    spec.manifest = Arc::new(sample.manifest);
    spec.slots = 16;
    spec
}

async fn start(spec: WorkerSpec) -> Worker {
    let worker = Worker::start(&spawner(), spec).await.expect("start");
    worker.allow_batching();
    worker
}

/// Whether an invoke answered more than this request.
fn was_joined(answer: &edgeward_agent::worker::Answer) -> bool {
    i64::from(answer.batch().size) > answer.shape(0)[0]
}

/// Inputs without a pattern: the number of rows of each request, and what fills them.
fn requests() -> impl Strategy<Value = Vec<(usize, u64)>> {
    prop::collection::vec((1..=4usize, any::<u64>()), 1..=12)
}

fn row_bytes(datatype: Datatype, values: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    match datatype {
        Datatype::Int8 => (0..values).map(|_| next() as u8).collect(),
        _ => {
            let value = |_| (next() as f32 / (1u64 << 31) as f32).to_le_bytes();
            (0..values).flat_map(value).collect()
        }
    }
}

/// How an answer in company is like the one alone: some kernels for floats sum up in another order for more rows.
enum Equal {
    ToTheBit,
    Nearly,
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let (chunks, _) = bytes.as_chunks();
    chunks.iter().map(|&chunk| f32::from_le_bytes(chunk))
}

#[test]
fn any_split_into_batches_gives_the_answers_that_each_request_has_by_itself() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let joined = Cell::new(0);
    for (name, delegate, equal) in [
        ("digits-1.0.0", "builtin", Equal::Nearly),
        ("digits-1.0.0", "xnnpack", Equal::ToTheBit),
        ("digits-int8-1.0.0", "builtin", Equal::ToTheBit),
        ("digits-int8-1.0.0", "xnnpack", Equal::ToTheBit),
        ("breast-cancer-1.0.0", "builtin", Equal::Nearly),
        ("breast-cancer-1.0.0", "xnnpack", Equal::ToTheBit),
    ] {
        let sample = sample(name);
        let input = &sample.manifest.default_signature().inputs[0];
        let (apart, together) = runtime.block_on(async {
            let mut spec = sample.spec(delegate);
            spec.slots = 16;
            let apart = Worker::start(&spawner(), spec.clone()).await;
            spec.batching = batching(16, 2000);
            (apart.expect("start"), start(spec).await)
        });
        let mut runner = TestRunner::new(Config {
            cases: 24,
            failure_persistence: None,
            ..Config::default()
        });
        let all_answers = runner.run(&requests(), |requests| {
            runtime.block_on(async {
                let inputs = requests.iter().map(|&(rows, seed)| {
                    let mut shape = input.shape.clone();
                    shape[0] = rows as i64;
                    let values = shape.iter().product::<i64>() as usize;
                    vec![(shape, row_bytes(input.datatype, values, seed))]
                });
                let inputs: Vec<_> = inputs.collect();
                let asked = inputs.iter().map(|input| infer(&together, input, MINUTE));
                let answers = join_all(asked).await;
                for (input, answer) in inputs.iter().zip(answers) {
                    let answer = answer.expect("answer");
                    let alone = infer(&apart, input, MINUTE).await.expect("answer");
                    prop_assert_eq!(answer.shape(0), alone.shape(0));
                    match equal {
                        Equal::ToTheBit => prop_assert_eq!(answer.output(0), alone.output(0)),
                        Equal::Nearly => {
                            let (a, b) = (floats(answer.output(0)), floats(alone.output(0)));
                            let close = |(a, b): (f32, f32)| (a - b).abs() < 1e-5;
                            prop_assert!(a.zip(b).all(close));
                        }
                    }
                    joined.set(joined.get() + usize::from(was_joined(&answer)));
                }
                Ok(())
            })
        });
        all_answers.unwrap_or_else(|error| panic!("{name} on {delegate}: {error}"));
    }
    assert!(
        joined.get() > 100,
        "hardly any requests ran together: {joined:?}"
    );
}

/// The model that looks up rows by their numbers, 0 to 3, and fails with others.
fn lookup() -> WorkerSpec {
    let mut spec = spec(
        "lookup.tflite",
        tensor("ids", Datatype::Int32, &[-1]),
        tensor("y", Datatype::Fp32, &[-1, 3]),
        64,
    );
    spec.batching = batching(16, 20_000);
    spec
}

#[tokio::test]
async fn a_request_that_fails_fails_alone() {
    let worker = start(lookup()).await;
    let look_up = async |ids: &[i32]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        infer(&worker, &[(vec![ids.len() as i64], bytes)], MINUTE).await
    };
    let expected = |ids: &[i32]| -> Vec<u8> {
        let row = |id: i32| (0..3).map(move |place| (id * 3 + place) as f32);
        ids.iter()
            .copied()
            .flat_map(row)
            .flat_map(f32::to_le_bytes)
            .collect()
    };
    // Those behind the first are held back until all have come.
    let good = [&[0][..], &[1, 2], &[3], &[2, 2, 2]];
    let mut joined = 0;
    for answer in join_all(good.map(look_up)).await {
        joined += usize::from(was_joined(&answer.expect("answer")));
    }
    assert!(joined >= 2, "they did not run together: {joined}");
    let mixed = [&[0][..], &[1, 2], &[3, 7], &[2, 2, 2], &[-1], &[3]];
    for (ids, answer) in mixed.iter().zip(join_all(mixed.map(look_up)).await) {
        match answer {
            Ok(answer) => assert_eq!(answer.output(0), expected(ids), "{ids:?}"),
            Err(WorkerError::Invoke(reason)) => {
                assert!(
                    ids.iter().any(|id| !(0..4).contains(id)),
                    "{ids:?}: {reason}"
                );
                assert!(reason.contains("out of bounds"), "{reason}");
            }
            Err(other) => panic!("{ids:?}: {other}"),
        }
    }
    assert!(look_up(&[4]).await.is_err() && look_up(&[3]).await.is_ok());
}

/// Rows of the model of many nodes: enough that an invoke takes a while.
const WIDTH: i64 = 1024;

fn rows(count: i64) -> Vec<(Vec<i64>, Vec<u8>)> {
    let bytes = 0.5f32.to_le_bytes().repeat((count * WIDTH) as usize);
    vec![(vec![count, WIDTH], bytes)]
}

#[tokio::test]
async fn who_leaves_takes_nobody_along_and_with_the_last_one_the_invoke_ends() {
    let row = |name| tensor(name, Datatype::Fp32, &[-1, WIDTH]);
    let mut spec = spec("many-nodes.tflite", row("x"), row("y"), 8 << 20);
    spec.batching = batching(4096, 0);
    let worker = start(spec).await;
    // Made before: in between, the interpreter would become free.
    let rows = [2, 500, 1000, 1001, 1002, 1500].map(|count| (count, rows(count)));
    let rows = BTreeMap::from(rows);
    let ask = async |count: i64, time: Duration| infer(&worker, &rows[&count], time).await;
    ask(1000, MINUTE).await.expect("warm");
    let mut whole = MINUTE;
    for _ in 0..3 {
        let begun = Instant::now();
        ask(1000, MINUTE).await.expect("whole");
        whole = whole.min(begun.elapsed());
    }

    // While the first runs, the others gather behind it; on a busy machine not every time.
    let gather = async |questions: [(i64, Duration); 3]| {
        tokio::time::sleep(whole / 16).await;
        join_all(questions.map(|(count, time)| ask(count, time))).await
    };
    let mut joined = false;
    for _ in 0..5 {
        let questions = [(1000, MINUTE), (1500, whole), (1001, MINUTE)];
        let (first, others) = futures::join!(ask(500, MINUTE), gather(questions));
        assert!(first.is_ok());
        assert!(matches!(others[1], Err(WorkerError::Deadline)));
        for (answer, count) in [(&others[0], 1000), (&others[2], 1001)] {
            let answer = answer.as_ref().expect("answer");
            assert_eq!(answer.shape(0), [count, WIDTH]);
            let value = answer.output(0)[..4].try_into().map(f32::from_le_bytes);
            assert!((value.expect("a value") - 0.659).abs() < 0.001);
            joined |= answer.batch().size == 3501;
        }
        if joined {
            break;
        }
    }
    assert!(joined, "they never ran together");

    // All of a batch leave while it runs: it stops between two nodes, and is not run again.
    until("the worker is free", || worker.in_flight() == 0).await;
    let leaving = [1000, 1001, 1002].map(|count| (count, whole));
    let (first, left) = futures::join!(ask(500, MINUTE), gather(leaving));
    assert!(first.is_ok());
    drop(first);
    assert!(left.iter().all(|l| matches!(l, Err(WorkerError::Deadline))));
    let begun = Instant::now();
    until("the interpreter has stopped", || worker.in_flight() == 0).await;
    let stopped = begun.elapsed();
    assert!(
        stopped < whole * 2,
        "{stopped:?} for what takes {:?}",
        whole * 3
    );
    ask(2, MINUTE).await.expect("the next");
}

#[tokio::test]
async fn without_permission_nothing_is_joined() {
    let worker = Worker::start(&spawner(), lookup()).await.expect("start");
    let ask = async |id: i32| infer(&worker, &[(vec![1], id.to_le_bytes().to_vec())], MINUTE).await;
    for answer in join_all([1, 2, 3, 0].map(ask)).await {
        assert_eq!(answer.expect("answer").batch().size, 0);
    }
}
