//! Right answers, whatever the batch, the number of callers and the size of the request.

use std::time::{Duration, Instant};

use edgeward_agent::worker::{Answer, Stream, Worker, WorkerError};
use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{MINUTE, infer, sample, spawner};

#[tokio::test]
async fn every_sample_reproduces_its_golden_vectors_on_both_kinds_of_kernels() {
    let spawner = spawner();
    for name in [
        "digits-1.0.0",
        "digits-2.0.0",
        "digits-int8-1.0.0",
        "digits-int8-2.0.0",
        "breast-cancer-1.0.0",
        "accumulator-1.0.0",
    ] {
        let sample = sample(name);
        for delegate in ["builtin", "xnnpack"] {
            let worker = Worker::start(&spawner, sample.spec(delegate)).await;
            let worker = worker.unwrap_or_else(|e| panic!("{name} on {delegate}: {e}"));
            assert_eq!(worker.facts().sandbox, "enforced");
            worker.seal().await.expect("seal");
            for vector in 0..sample.golden.vectors.len() {
                let answer = infer(&worker, &sample.inputs(vector, 1), MINUTE).await;
                let answer = answer.unwrap_or_else(|e| panic!("{name} on {delegate}: {e}"));
                sample.assert_golden(&answer, vector, 1);
                assert!(answer.invoke_time() > Duration::ZERO);
            }
        }
    }
}

#[tokio::test]
async fn the_spy_counts_what_xnnpack_took() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    let xnnpack = Worker::start(&spawner, sample.spec("xnnpack"))
        .await
        .expect("start");
    let builtin = Worker::start(&spawner, sample.spec("builtin"))
        .await
        .expect("start");
    assert!(xnnpack.facts().total_nodes >= 3);
    assert_eq!(xnnpack.facts().delegated_nodes, xnnpack.facts().total_nodes);
    assert_eq!(builtin.facts().delegated_nodes, 0);
    assert_eq!(builtin.facts().total_nodes, xnnpack.facts().total_nodes);
    assert!(xnnpack.resident_bytes() > 1 << 20);
    assert_ne!(xnnpack.facts().pid, std::process::id());
}

#[tokio::test]
async fn a_free_dimension_may_change_with_every_request() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    for delegate in ["builtin", "xnnpack"] {
        let mut spec = sample.spec(delegate);
        spec.request_bytes *= 8;
        let worker = Worker::start(&spawner, spec).await.expect("start");
        for batch in [1, 8, 1, 3, 3, 8] {
            let answer = infer(&worker, &sample.inputs(0, batch), MINUTE)
                .await
                .expect("answer");
            assert_eq!(answer.shape(0), [batch as i64, 10]);
            sample.assert_golden(&answer, 0, batch);
        }
    }
}

#[tokio::test]
async fn a_shape_the_model_cannot_take_fails_alone() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    let worker = Worker::start(&spawner, sample.spec("xnnpack"))
        .await
        .expect("start");
    let inputs = [(vec![1, 4, 8, 2], vec![0; 256])];
    let Err(WorkerError::Invoke(reason)) = infer(&worker, &inputs, MINUTE).await else {
        panic!("a wrong shape was taken");
    };
    assert!(!reason.is_empty());
    let answer = infer(&worker, &sample.inputs(0, 1), MINUTE)
        .await
        .expect("answer");
    sample.assert_golden(&answer, 0, 1);
}

#[tokio::test]
async fn concurrent_requests_get_their_own_answers() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    let mut spec = sample.spec("xnnpack");
    (spec.instances, spec.slots) = (2, 4);
    let worker = Worker::start(&spawner, spec).await.expect("start");
    let vectors = sample.golden.vectors.len();
    let one = async |number: usize| {
        let vector = number % vectors;
        let answer = infer(&worker, &sample.inputs(vector, 1), MINUTE)
            .await
            .expect("answer");
        sample.assert_golden(&answer, vector, 1);
    };
    join_all((0..200).map(one)).await;
    assert_eq!(worker.in_flight(), 0);
}

#[tokio::test]
async fn more_than_a_slot_holds_travels_in_memory_of_its_own() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    let mut spec = sample.spec("xnnpack");
    let mut manifest = sample.manifest.clone();
    manifest.max_request_bytes = 1 << 20;
    spec.manifest = manifest.into();
    let worker = Worker::start(&spawner, spec).await.expect("start");
    // The slots are as large as one image; 2000 of them are permitted all the same, and so is their answer.
    for batch in [1, 2000, 1, 2000] {
        let answer = infer(&worker, &sample.inputs(1, batch), MINUTE)
            .await
            .expect("answer");
        sample.assert_golden(&answer, 1, batch);
    }
    let too_much = worker.lease((1 << 20) + 1, Duration::ZERO).await;
    assert!(matches!(
        too_much,
        Err(WorkerError::TooLarge { needed, limit }) if needed == limit + 1
    ));
}

#[tokio::test]
async fn a_slot_refuses_what_it_was_not_leased_for() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    let worker = Worker::start(&spawner, sample.spec("builtin"))
        .await
        .expect("start");
    let mut slot = worker.lease(256, Duration::ZERO).await.expect("slot");
    assert!(matches!(
        slot.input(&[1, 4096], 16384),
        Err(WorkerError::TooLarge { .. })
    ));
    assert!(matches!(
        slot.input(&[-1, 8, 8, 1], 256),
        Err(WorkerError::Invoke(_))
    ));
}

#[tokio::test]
async fn without_a_free_slot_the_answer_is_busy_in_time() {
    let (spawner, sample) = (spawner(), sample("digits-1.0.0"));
    let worker = Worker::start(&spawner, sample.spec("builtin"))
        .await
        .expect("start");
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(worker.lease(256, Duration::ZERO).await.expect("slot"));
    }
    assert_eq!(worker.in_flight(), 4);
    let asked = Instant::now();
    let wait = Duration::from_millis(50);
    assert!(matches!(worker.lease(256, wait).await, Err(WorkerError::Busy(w)) if w == wait));
    assert!(asked.elapsed() >= wait);
    held.pop();
    worker
        .lease(256, Duration::ZERO)
        .await
        .expect("the slot that was given back");
}

/// What the accumulator answers next: the sum of all that one interpreter was asked.
fn first(answer: &Answer) -> f32 {
    f32::from_le_bytes(answer.output(0)[..4].try_into().expect("4 bytes"))
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_is_not_begun() {
    let (spawner, sample) = (spawner(), sample("accumulator-1.0.0"));
    let worker = Worker::start(&spawner, sample.spec("builtin")).await;
    let worker = worker.expect("start");
    let inputs = sample.inputs(0, 1);
    let answer = infer(&worker, &inputs, MINUTE).await.expect("answer");
    assert_eq!(first(&answer), 1.0);
    let process = Pid::from_raw(worker.facts().pid as i32).expect("a process");
    kill_process(process, Signal::STOP).expect("stop");
    let begun = Instant::now();
    while !stopped(process) {
        assert!(begun.elapsed() < MINUTE, "the worker does not stop");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let late = infer(&worker, &inputs, Duration::from_millis(50)).await;
    assert!(matches!(late, Err(WorkerError::Deadline)));
    kill_process(process, Signal::CONT).expect("go on");
    let answer = infer(&worker, &inputs, MINUTE).await.expect("answer");
    assert_eq!(first(&answer), 2.0, "the one without a caller was computed");
}

/// Whether a signal has reached every thread.
fn stopped(process: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()));
    threads.expect("threads").flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next();
        state.is_some_and(|state| state.starts_with('T'))
    })
}

#[tokio::test]
async fn each_stream_has_an_interpreter_of_its_own_until_it_ends() {
    let (spawner, sample) = (spawner(), sample("accumulator-1.0.0"));
    let worker = Worker::start(&spawner, sample.spec("builtin")).await;
    let worker = worker.expect("start");
    assert!(worker.facts().keeps_state);
    worker.seal().await.expect("sealed");
    let ask = async |number, begin, end| {
        let mut slot = worker.lease(16, MINUTE).await.expect("a slot");
        for (shape, bytes) in sample.inputs(0, 1) {
            let place = slot.input(&shape, bytes.len()).expect("an input");
            place.copy_from_slice(&bytes);
        }
        slot.in_stream(Stream { number, begin, end });
        slot.invoke(0, Instant::now() + MINUTE)
            .await
            .map(|a| first(&a))
    };
    assert!(ask(1, false, false).await.is_err(), "it has not begun");
    for sum in [1.0, 2.0, 3.0] {
        assert_eq!(ask(1, sum == 1.0, false).await.expect("one"), sum);
        assert_eq!(ask(2, sum == 1.0, sum == 3.0).await.expect("two"), sum);
    }
    assert!(ask(2, false, false).await.is_err(), "it has ended");
    assert_eq!(ask(1, true, false).await.expect("anew"), 1.0);
}

#[tokio::test]
async fn state_lives_in_the_interpreter_and_ends_with_it() {
    let (spawner, sample) = (spawner(), sample("accumulator-1.0.0"));
    for _ in 0..2 {
        let worker = Worker::start(&spawner, sample.spec("builtin"))
            .await
            .expect("start");
        for sum in 1..=3 {
            let answer = infer(&worker, &sample.inputs(0, 1), MINUTE)
                .await
                .expect("answer");
            assert_eq!(first(&answer), sum as f32);
        }
    }
}
