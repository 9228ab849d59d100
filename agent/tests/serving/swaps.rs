//! One version follows another without a failed request.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use edgeward_agent::serving::ServeError;

use crate::support::*;

#[tokio::test]
async fn ten_swaps_under_a_tight_loop_fail_no_request() {
    let device = Device::new();
    let versions = ["digits-1.0.0", "digits-2.0.0"].map(|s| device.sample(s));
    let (input, first) = golden("digits-1.0.0");
    let (other_input, second) = golden("digits-2.0.0");
    assert_eq!(input, other_input);
    assert!(!close(&first, &second), "the samples must differ");
    device.serve(&versions[0]).await;

    let stop = Rc::new(Cell::new(false));
    let counts = Rc::new([Cell::new(0), Cell::new(0)]);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let askers: Vec<_> = (0..4)
                .map(|_| {
                    let (engine, input) = (device.engine.clone(), input.clone());
                    let (stop, counts) = (stop.clone(), counts.clone());
                    let (first, second) = (first.clone(), second.clone());
                    tokio::task::spawn_local(async move {
                        while !stop.get() {
                            let answer = ask(&engine, "digits", &input).await.expect("no failure");
                            let which = usize::from(close(&answer, &second));
                            assert!(which == 1 || close(&answer, &first), "neither version");
                            counts[which].set(counts[which].get() + 1);
                        }
                    })
                })
                .collect();
            for swap in 1..=10 {
                let before = device.pid();
                let asked = counts[0].get() + counts[1].get();
                let prepared = device.engine.prepare(&versions[swap % 2]).await;
                let prepared = prepared.expect("it loads");
                let during = counts[0].get() + counts[1].get() - asked;
                assert!(during > 0, "loading must not hold up requests");
                device.engine.activate(prepared);
                let answer = ask(&device.engine, "digits", &input).await.expect("answer");
                let wanted = [&first, &second][swap % 2];
                assert!(close(&answer, wanted), "new requests go to the new version");
                until("the old worker ends", || !running(before)).await;
            }
            stop.set(true);
            for asker in askers {
                asker.await.expect("no failure");
            }
        })
        .await;
    assert!(counts.iter().all(|count| count.get() > 10));
    let samples = device.engine.take_samples();
    let failed: u64 = samples
        .iter()
        .map(|s| s.failed + s.refused + s.crashes)
        .sum();
    let succeeded: u64 = samples.iter().map(|s| s.succeeded).sum();
    assert_eq!(failed, 0);
    // The ten requests between the swaps were counted by nobody but the engine, ended versions included.
    assert_eq!(succeeded, counts[0].get() + counts[1].get() + 10);
    device.engine.shutdown().await;
}

#[tokio::test]
async fn a_request_that_found_the_old_version_is_answered_by_it_after_the_swap() {
    let device = Device::new();
    device.serve(&device.sample("digits-1.0.0")).await;
    let old = device.pid();
    let served = device.engine.resolve("digits", None).expect("found");
    device.serve(&device.sample("digits-2.0.0")).await;

    let (input, output) = golden("digits-1.0.0");
    let bytes = bytes(&input);
    let deadline = Instant::now() + PATIENCE;
    let mut request = served
        .begin(0, bytes.len(), deadline)
        .await
        .expect("a slot");
    drop(served);
    let memory = request.input(&[1, 8, 8, 1], 256).expect("memory");
    memory.copy_from_slice(&bytes);
    let answer = request.infer().await.expect("an answer");
    assert!(close(&floats(answer.output(0)), &output));
    until("the old worker ends", || !running(old)).await;
    // An answer outlives its worker.
    assert!(close(&floats(answer.output(0)), &output));
}

#[tokio::test]
async fn a_version_is_found_by_semantic_version_and_by_release_and_no_other_is() {
    let device = Device::new();
    device
        .serve(&device.package("digits-1.0.0", |manifest, _| manifest.release = 7))
        .await;
    let resolve = |version| device.engine.resolve("digits", version);
    for version in [None, Some("1.0.0"), Some("7")] {
        assert!(resolve(version).is_ok(), "{version:?}");
    }
    for version in ["2.0.0", "1", "8", "latest", ""] {
        match resolve(Some(version)) {
            Err(ServeError::UnknownVersion { loaded, .. }) => {
                assert_eq!(loaded, "1.0.0 (release 7)");
            }
            _ => panic!("{version:?} was found"),
        }
    }
    let unknown = device.engine.resolve("no-such-model", None);
    assert!(matches!(unknown, Err(ServeError::UnknownModel(name)) if name == "no-such-model"));
}

#[tokio::test]
async fn a_prepared_version_that_is_dropped_changes_nothing() {
    let device = Device::new();
    device.serve(&device.sample("digits-1.0.0")).await;
    let serving = device.pid();
    let prepared = device.engine.prepare(&device.sample("digits-2.0.0")).await;
    drop(prepared.expect("it loads"));
    assert_eq!(device.pid(), serving);
    let (input, output) = golden("digits-1.0.0");
    let answer = ask(&device.engine, "digits", &input).await.expect("answer");
    assert!(close(&answer, &output));
}

/// Has a device run a slow request. Returns the process that runs it, and the request.
async fn busy(device: &Device) -> (u32, tokio::task::JoinHandle<Result<(), ServeError>>) {
    device
        .serve(&device.package("digits-1.0.0", |manifest, _| with_room(manifest)))
        .await;
    let pid = device.pid();
    let request = device.slow_request(0.5);
    until("the request runs", || device.busy()).await;
    (pid, request)
}

#[tokio::test]
async fn a_retired_model_finishes_what_it_has_and_is_unknown_afterwards() {
    let device = Device::new();
    let (pid, request) = busy(&device).await;
    device.engine.retire(&"digits".parse().expect("name")).await;
    assert!(request.is_finished(), "retire waits for requests");
    request.await.expect("join").expect("an answer");
    until("the worker ends", || !running(pid)).await;
    assert!(matches!(
        device.engine.resolve("digits", None),
        Err(ServeError::UnknownModel(_))
    ));
    assert!(device.engine.models().is_empty());
}

#[tokio::test]
async fn a_request_that_takes_longer_than_a_shutdown_would_wait_is_answered_across_a_swap() {
    let device = Device::with(|config| config.limits.drain_timeout_ms = 0);
    let (pid, request) = busy(&device).await;
    device.serve(&device.sample("digits-2.0.0")).await;
    request
        .await
        .expect("join")
        .expect("an answer of the old version");
    until("the old worker ends", || !running(pid)).await;
}

#[tokio::test]
async fn a_shutdown_answers_what_runs_refuses_what_comes_and_ends_the_workers() {
    let device = Device::new();
    let (pid, request) = busy(&device).await;
    let engine = device.engine.clone();
    let closing = tokio::spawn(async move { engine.shutdown().await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let late = device.engine.resolve("digits", None);
    assert!(matches!(late, Err(ServeError::NotReady { .. })));
    request.await.expect("join").expect("an answer");
    closing.await.expect("join");
    until("the worker ends", || !running(pid)).await;
}
