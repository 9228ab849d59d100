//! A worker that dies: who is told, who is refused, and when it is back.

use std::time::{Duration, Instant};

use edgeward_agent::serving::{EngineEvent, ServeError};
use tokio::sync::broadcast::Receiver;

use crate::support::*;

async fn next(events: &mut Receiver<EngineEvent>) -> EngineEvent {
    let event = tokio::time::timeout(PATIENCE, events.recv()).await;
    event.expect("an event in time").expect("an event")
}

async fn recovered(events: &mut Receiver<EngineEvent>) {
    while !matches!(next(events).await, EngineEvent::Recovered { .. }) {}
}

/// A device whose digits take slow batches, on these delegates.
async fn device(delegates: &[&str]) -> Device {
    let device = Device::new();
    let version = device.package("digits-1.0.0", |manifest, _| {
        with_room(manifest);
        manifest.delegates = delegates.iter().map(|d| choice(d)).collect();
    });
    device.serve(&version).await;
    device
}

/// Kills the worker while it runs a slow batch of this value; returns the request's fate.
async fn crash_on(device: &Device, value: f32) -> ServeError {
    let request = device.slow_request(value);
    until("the batch runs", || request.is_finished() || device.busy()).await;
    if !request.is_finished() {
        // Holding a slot is not yet running: let the batch reach an interpreter.
        tokio::time::sleep(Duration::from_millis(60)).await;
        kill(device.pid());
    }
    let killed = Instant::now();
    let error = request.await.expect("join").expect_err("it cannot succeed");
    assert!(killed.elapsed() < Duration::from_secs(5), "fails at once");
    error
}

#[tokio::test]
async fn a_dead_worker_shows_and_is_replaced_by_one_that_proved_itself_again() {
    let device = device(&["builtin"]).await;
    let mut events = device.engine.subscribe();
    let (input, output) = golden("digits-1.0.0");
    let before = device.pid();
    kill(before);
    match next(&mut events).await {
        EngineEvent::Crashed { reason, .. } => assert!(reason.contains("SIGKILL"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let model = &device.engine.models()[0];
    assert!(!model.ready);
    assert!(model.reason.is_some() && model.worker_pid.is_none());
    let served = device.engine.resolve("digits", None).expect("known");
    assert!(!served.ready());
    match ask(&device.engine, "digits", &input).await {
        Err(ServeError::NotReady {
            retry_after_seconds,
            ..
        }) => assert!(retry_after_seconds >= 1),
        other => panic!("{other:?}"),
    }
    recovered(&mut events).await;
    assert!(served.ready());
    assert_ne!(device.pid(), before);
    let answer = ask(&device.engine, "digits", &input).await.expect("answer");
    assert!(close(&answer, &output));
    let sample = &device.engine.take_samples()[0];
    assert_eq!((sample.crashes, sample.refused), (1, 1));
}

#[tokio::test]
async fn an_input_that_crashed_twice_is_refused_and_others_are_answered() {
    let device = device(&["builtin"]).await;
    let mut events = device.engine.subscribe();
    for _ in 0..2 {
        let error = crash_on(&device, 0.25).await;
        assert!(matches!(error, ServeError::Crashed { .. }), "{error}");
        recovered(&mut events).await;
    }
    let error = crash_on(&device, 0.25).await;
    assert!(matches!(error, ServeError::Poison { .. }), "{error}");
    let (input, output) = golden("digits-1.0.0");
    let answer = ask(&device.engine, "digits", &input).await.expect("answer");
    assert!(close(&answer, &output));
    let images = slow_batch(0.75);
    let other = infer(&device.engine, "digits", &images, PATIENCE).await;
    assert!(other.is_ok(), "another batch of the same size");
    assert!(device.engine.models()[0].ready);
}

#[tokio::test]
async fn crashes_on_different_inputs_cost_the_delegate_its_place_and_then_the_fleet_is_told_once() {
    let device = device(&["xnnpack", "builtin"]).await;
    let mut events = device.engine.subscribe();
    let delegate = || device.engine.models()[0].active.delegate.to_string();
    assert_eq!(delegate(), "xnnpack");
    for value in [0.1, 0.2, 0.3] {
        crash_on(&device, value).await;
        recovered(&mut events).await;
    }
    assert_eq!(delegate(), "builtin");
    let refused = &device.engine.models()[0].active.refused_delegates;
    assert_eq!(refused[0].delegate.as_str(), "xnnpack");
    assert!(
        refused[0].reason.contains("3 different inputs"),
        "{refused:?}"
    );
    assert!(events.try_recv().is_err(), "not failing yet");

    for value in [0.4, 0.5, 0.6] {
        crash_on(&device, value).await;
        loop {
            match next(&mut events).await {
                EngineEvent::Recovered { .. } => break,
                EngineEvent::Failing { reason, .. } => {
                    assert_eq!(value, 0.6);
                    assert!(reason.contains("3 different inputs"), "{reason}");
                }
                EngineEvent::Crashed { .. } => {}
            }
        }
    }
    // It is the only version here: it serves on, on whatever delegate works.
    let (input, _) = golden("digits-1.0.0");
    ask(&device.engine, "digits", &input).await.expect("answer");
}

#[tokio::test]
async fn a_driver_that_proves_itself_and_then_crashes_on_every_request_is_replaced_by_a_delegate_that_works()
 {
    let golden_vectors = 3;
    let from_call = (golden_vectors + 1).to_string();
    let crashing = [("do_invoke", "crash"), ("from_call", from_call.as_str())];
    let device = Device::with(|config| idle_npu(config, &crashing));
    let version = device.package("digits-1.0.0", |manifest, golden| {
        golden.vectors.truncate(golden_vectors);
        manifest.delegates = vec![choice("npu"), choice("builtin")];
        // No probability is further than 1 from the nothing that this driver computes.
        manifest.delegates[0].tolerance.float = 1.0;
    });
    device.serve(&version).await;
    let mut events = device.engine.subscribe();
    let (input, output) = golden("digits-1.0.0");
    let mut changed = input.clone();
    for value in [0.1, 0.2, 0.3] {
        changed[0] = value;
        match ask(&device.engine, "digits", &changed).await {
            Err(ServeError::Crashed { reason, .. }) => {
                assert!(reason.contains("SIGSEGV"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        recovered(&mut events).await;
    }
    let answer = ask(&device.engine, "digits", &input).await.expect("answer");
    assert!(close(&answer, &output));
    let active = &device.engine.models()[0].active;
    assert_eq!(active.delegate.as_str(), "builtin");
    let reason = &active.refused_delegates[0].reason;
    assert!(reason.contains("about to crash in invoke"), "{reason}");
}

#[tokio::test]
async fn a_version_that_keeps_failing_gives_way_to_another_at_once() {
    let device = device(&["builtin"]).await;
    let mut events = device.engine.subscribe();
    kill(device.pid());
    next(&mut events).await;
    // Not waiting for the restart: the fleet side puts another version in its place.
    device.serve(&device.sample("digits-2.0.0")).await;
    let (input, output) = golden("digits-2.0.0");
    let answer = ask(&device.engine, "digits", &input).await.expect("answer");
    assert!(close(&answer, &output));
    assert_eq!(
        device.engine.models()[0].active.version.to_string(),
        "2.0.0"
    );
}
