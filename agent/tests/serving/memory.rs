//! Versions that are unloaded, for their idleness or their memory, and loaded again for a request.

use std::time::Duration;

use edgeward_agent::config::{Config, ModelSettings};
use edgeward_agent::serving::{ServeError, ServedModel};
use futures::future::join_all;

use crate::support::*;

fn settings(config: &mut Config, model: &str, change: impl FnOnce(&mut ModelSettings)) {
    let settings = config.models.entry(model.parse().expect("name"));
    change(settings.or_default());
}

fn model(device: &Device, name: &str) -> ServedModel {
    let mut models = device.engine.models().into_iter();
    let found = models.find(|model| model.model.as_str() == name);
    found.expect("served")
}

/// The value of a counter of one model.
fn count(device: &Device, name: &str, model: &str) -> u64 {
    let text = device.metrics();
    let line = format!("{name}{{model=\"{model}\"");
    let line = text.lines().find(|l| l.starts_with(&line));
    let value = line.and_then(|l| l.rsplit(' ').next());
    value.and_then(|v| v.parse().ok()).expect("a counter")
}

#[tokio::test]
async fn an_idle_version_lets_go_of_its_worker_and_the_next_requests_wait_for_another() {
    let device = Device::with(|config| {
        settings(config, "digits", |digits| {
            digits.idle_unload_after_seconds = Some(1);
        });
    });
    device.serve(&device.sample("digits-1.0.0")).await;
    device.serve(&device.sample("breast-cancer-1.0.0")).await;
    let other = model(&device, "breast-cancer").worker_pid;
    let (input, output) = golden("digits-1.0.0");
    for round in 1..=2 {
        let worker = model(&device, "digits");
        let pid = worker.worker_pid.expect("a worker");
        assert!(worker.worker_memory_bytes > 1 << 20);
        until("it is unloaded", || {
            model(&device, "digits").worker_pid.is_none()
        })
        .await;
        until("its process has ended", || !running(pid)).await;
        let unloaded = model(&device, "digits");
        assert!(unloaded.ready && unloaded.reason.is_none());
        assert!(unloaded.unloaded.is_some() && unloaded.worker_memory_bytes == 0);
        assert_eq!(
            count(&device, "edgeward_worker_unloads_total", "digits"),
            round
        );
        // Nobody asks: nothing is loaded.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(model(&device, "digits").worker_pid.is_none());
        // A caller that cannot wait gets its answer in time, and what it began goes on.
        let images = bytes(&input);
        let late = infer(
            &device.engine,
            "digits",
            &images,
            Duration::from_micros(100),
        )
        .await;
        assert!(
            matches!(late, Err(ServeError::Deadline(0))),
            "{:?}",
            late.err()
        );
        let asked = (0..8).map(|_| ask(&device.engine, "digits", &input));
        for answer in join_all(asked).await {
            assert!(close(&answer.expect("answer"), &output));
        }
        assert_eq!(
            count(&device, "edgeward_worker_reloads_total", "digits"),
            round
        );
    }
    let sample = device.engine.take_samples();
    let digits = sample.iter().find(|s| s.model.as_str() == "digits");
    assert_eq!(digits.expect("digits").crashes, 0);
    assert_eq!(model(&device, "breast-cancer").worker_pid, other);
}

#[tokio::test]
async fn a_version_that_is_used_is_not_idle() {
    let device = Device::with(|config| {
        settings(config, "digits", |digits| {
            digits.idle_unload_after_seconds = Some(1);
        });
    });
    let version = device.package("digits-1.0.0", |manifest, _| with_room(manifest));
    device.serve(&version).await;
    let pid = device.pid();
    let images = slow_batch(0.5);
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(2500) {
        let answer = infer(&device.engine, "digits", &images, PATIENCE).await;
        answer.expect("answer");
    }
    assert_eq!(device.pid(), pid);
}

/// What a version without weights worth speaking of is taken for before it was measured.
const GUESS: u64 = 8 << 20;

#[tokio::test]
async fn room_is_made_by_whoever_was_not_asked_for_longest_and_never_by_a_pinned_one() {
    // What one worker and two take here.
    let device = Device::new();
    device.serve(&device.sample("digits-1.0.0")).await;
    let one = memory(&device);
    device.serve(&device.sample("breast-cancer-1.0.0")).await;
    let two = memory(&device);
    device.engine.shutdown().await;

    // Two have room, and a third has not.
    let budget = two.max(one + GUESS) + GUESS / 4;
    assert!(two + GUESS > budget, "{one} and {two} bytes");
    let device = Device::with(|config| {
        config.tflite.memory_budget_bytes = budget;
        settings(config, "digits", |digits| digits.pinned = true);
    });
    let loaded = |name: &str| model(&device, name).worker_pid.is_some();
    device.serve(&device.sample("digits-1.0.0")).await;
    let pinned = model(&device, "digits").worker_pid;
    device.serve(&device.sample("breast-cancer-1.0.0")).await;
    assert!(loaded("breast-cancer") && memory(&device) <= budget);

    let third = device.package("digits-2.0.0", |manifest, _| {
        manifest.model = "third".parse().expect("name");
    });
    device.serve(&third).await;
    assert!(loaded("third") && !loaded("breast-cancer"));
    assert!(memory(&device) <= budget);
    let (input, output) = golden("breast-cancer-1.0.0");
    let answer = ask(&device.engine, "breast-cancer", &input).await;
    assert!(close(&answer.expect("answer"), &output));
    assert!(loaded("breast-cancer") && !loaded("third"));
    assert!(memory(&device) <= budget);
    assert!(device.engine.models().iter().all(|model| model.ready));
    assert_eq!(model(&device, "digits").worker_pid, pinned);
}

fn memory(device: &Device) -> u64 {
    device.engine.measure();
    let models = device.engine.models();
    models.iter().map(|model| model.worker_memory_bytes).sum()
}

#[tokio::test]
async fn what_finds_no_room_is_not_loaded_and_takes_none_away() {
    let device = Device::with(|config| {
        config.tflite.memory_budget_bytes = GUESS * 3 / 2;
        settings(config, "digits", |digits| digits.pinned = true);
    });
    device.serve(&device.sample("digits-1.0.0")).await;
    let pid = device.pid();
    let second = device.sample("breast-cancer-1.0.0");
    let failed = device.engine.prepare(&second).await;
    let failure = failed.err().expect("it has no room");
    assert!(failure.device_fault, "it is worth trying again");
    assert!(failure.reason.contains("memory_budget_bytes"), "{failure}");
    assert_eq!(device.pid(), pid);
    // A version of the same model finds none either, and the one before serves on.
    assert!(
        device
            .engine
            .prepare(&device.sample("digits-2.0.0"))
            .await
            .is_err()
    );
    let (input, output) = golden("digits-1.0.0");
    let answer = ask(&device.engine, "digits", &input).await;
    assert!(close(&answer.expect("answer"), &output));
}
