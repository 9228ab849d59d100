//! Crashes, hangs, late calls and leaving callers: who pays for what.

use std::time::{Duration, Instant};

use edgeward_agent::worker::{Worker, WorkerError};
use edgeward_models::Digest;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{MINUTE, infer, refusal, sample, spawner, start_plugin, until};

#[tokio::test]
async fn a_killed_worker_fails_what_is_in_it_at_once_and_says_why() {
    let worker = start_plugin(&[("do_invoke", "hang")]).await.expect("start");
    let inputs = sample("digits-1.0.0").inputs(0, 1);
    let asked = {
        let (worker, inputs) = (worker.clone(), inputs.clone());
        tokio::spawn(async move { infer(&worker, &inputs, MINUTE).await.map(drop) })
    };
    until("the request is in the worker", || worker.in_flight() == 1).await;
    // It must be running, not waiting, to be a suspect.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let killed = Instant::now();
    let process = Pid::from_raw(worker.facts().pid as i32).expect("a process");
    kill_process(process, Signal::KILL).expect("kill");
    let failed = asked.await.expect("task");
    assert!(killed.elapsed() < Duration::from_secs(5));
    let reason = "killed by signal 9 (SIGKILL)";
    assert!(matches!(failed, Err(WorkerError::Died(r)) if r == reason));
    let death = worker.died().await;
    assert_eq!(death.reason, reason);
    assert_eq!(death.suspects, [Digest::of(&inputs[0].1)]);
    let after = infer(&worker, &inputs, MINUTE).await;
    assert!(matches!(after, Err(WorkerError::Died(r)) if r == reason));
}

#[tokio::test]
async fn a_crash_names_its_input_and_keeps_the_last_words() {
    let worker = start_plugin(&[("do_invoke", "crash"), ("from_call", "3")])
        .await
        .expect("start");
    let sample = sample("digits-1.0.0");
    for _ in 0..2 {
        infer(&worker, &sample.inputs(0, 1), MINUTE)
            .await
            .expect("answer");
    }
    let inputs = sample.inputs(1, 1);
    let mut slot = worker.lease(256, MINUTE).await.expect("slot");
    slot.input(&inputs[0].0, 256)
        .expect("input")
        .copy_from_slice(&inputs[0].1);
    let digest = slot.input_digest();
    let crashed = slot.invoke(0, Instant::now() + MINUTE).await;
    assert!(matches!(crashed, Err(WorkerError::Died(_))));
    let death = worker.died().await;
    assert_eq!(death.suspects, [digest]);
    assert!(
        death.stderr.contains("about to crash in invoke"),
        "{}",
        death.stderr
    );
}

#[tokio::test]
async fn a_deadline_is_kept_though_the_device_hangs_and_costs_no_one_else() {
    let worker = start_plugin(&[("sleep_ms", "400")]).await.expect("start");
    let inputs = sample("digits-1.0.0").inputs(0, 1);
    let asked = Instant::now();
    let late = infer(&worker, &inputs, Duration::from_millis(50)).await;
    assert!(matches!(late, Err(WorkerError::Deadline)));
    assert!(asked.elapsed() >= Duration::from_millis(50));
    assert!(
        asked.elapsed() < Duration::from_millis(300),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(
        worker.in_flight(),
        1,
        "the slot is the worker's until it is done"
    );
    infer(&worker, &inputs, MINUTE)
        .await
        .expect("the next request");
    until("the slot is given back", || worker.in_flight() == 0).await;
}

#[tokio::test]
async fn a_deadline_that_has_passed_already_costs_the_worker_nothing() {
    let sample = sample("digits-1.0.0");
    let worker = Worker::start(&spawner(), sample.spec("builtin"))
        .await
        .expect("start");
    let late = infer(&worker, &sample.inputs(0, 1), Duration::ZERO).await;
    assert!(matches!(late, Err(WorkerError::Deadline)));
    assert_eq!(worker.in_flight(), 0);
}

#[tokio::test]
async fn only_the_models_own_limit_ends_a_hanging_worker() {
    let sample = sample("digits-1.0.0");
    let mut spec = sample.spec("test-npu");
    spec.profile = Some(crate::support::plugin(&[("do_invoke", "hang")]));
    let mut manifest = sample.manifest.clone();
    manifest.invoke_limit_ms = 300;
    spec.manifest = manifest.into();
    let worker = Worker::start(&spawner(), spec).await.expect("start");
    let asked = Instant::now();
    let hung = infer(&worker, &sample.inputs(0, 1), MINUTE).await;
    let reason = "an invoke exceeded its limit of 300ms";
    assert!(matches!(hung, Err(WorkerError::Died(r)) if r == reason));
    assert!(asked.elapsed() >= Duration::from_millis(300));
    let death = worker.died().await;
    assert_eq!((death.reason.as_str(), death.suspects.len()), (reason, 1));
}

#[tokio::test]
async fn a_caller_that_leaves_before_its_turn_is_not_computed_for() {
    let worker = start_plugin(&[("sleep_ms", "200")]).await.expect("start");
    let inputs = sample("digits-1.0.0").inputs(0, 1);
    let running = {
        let (worker, inputs) = (worker.clone(), inputs.clone());
        tokio::spawn(async move { infer(&worker, &inputs, MINUTE).await.map(drop) })
    };
    until("the first is in the worker", || worker.in_flight() == 1).await;
    let began = Instant::now();
    for _ in 0..3 {
        // Handed over, waiting behind the first, and abandoned.
        let left = tokio::time::timeout(Duration::from_millis(20), infer(&worker, &inputs, MINUTE));
        assert!(left.await.is_err());
    }
    running.await.expect("task").expect("answer");
    until("all slots are given back", || worker.in_flight() == 0).await;
    // Four computed ones would take 800 ms.
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_process() {
    let sample = sample("digits-1.0.0");
    let worker = Worker::start(&spawner(), sample.spec("builtin"))
        .await
        .expect("start");
    let process = format!("/proc/{}", worker.facts().pid);
    let death = worker.died();
    assert!(std::path::Path::new(&process).exists());
    drop(worker);
    death.await;
    assert!(!std::path::Path::new(&process).exists());
}

#[tokio::test]
async fn killing_it_says_the_given_reason() {
    let sample = sample("digits-1.0.0");
    let worker = Worker::start(&spawner(), sample.spec("builtin"))
        .await
        .expect("start");
    worker.kill("the version was rolled back");
    assert_eq!(worker.died().await.reason, "the version was rolled back");
}

#[tokio::test]
async fn wrong_model_files_are_refused_in_tflites_words() {
    let sample = sample("digits-1.0.0");
    let directory = tempfile::tempdir().expect("directory");
    let right = std::fs::read(sample.directory.join("model.tflite")).expect("model");
    let mut spec = sample.spec("builtin");
    spec.model_path = directory.path().join("model.tflite");
    for (bytes, words) in [
        (&right[..right.len() / 2], "not a valid Flatbuffer"),
        (&b"not a model at all"[..], "not a valid Flatbuffer"),
        (&b""[..], "the file is empty"),
    ] {
        std::fs::write(&spec.model_path, bytes).expect("write");
        let reason = refusal(spec.clone()).await;
        assert!(reason.contains(words), "{reason}");
    }
}

#[tokio::test]
async fn a_model_that_is_not_the_manifests_is_refused_by_name() {
    let digits = sample("digits-1.0.0");
    let cancer = sample("breast-cancer-1.0.0");
    let mut spec = digits.spec("xnnpack");
    spec.model_path = cancer.directory.join("model.tflite");
    let reason = refusal(spec.clone()).await;
    assert!(
        reason.contains("input \"image\": the model has the shape [1, 30]"),
        "{reason}"
    );
    spec.model_path = sample("digits-int8-1.0.0").directory.join("model.tflite");
    let reason = refusal(spec).await;
    assert!(
        reason.contains("input \"image\": the model has INT8; the manifest says FP32"),
        "{reason}"
    );
}

#[tokio::test]
async fn what_the_device_lacks_is_the_devices_fault() {
    let sample = sample("digits-1.0.0");
    let mut spec = sample.spec("builtin");
    spec.library = "/nowhere/libtensorflowlite_c.so".into();
    let failed = Worker::start(&spawner(), spec).await;
    assert!(matches!(&failed, Err(WorkerError::Start(r)) if r.contains("/nowhere/")));
    let failed = Worker::start(&spawner(), sample.spec("unknown-npu")).await;
    assert!(matches!(&failed, Err(WorkerError::Start(r)) if r.contains("[delegates.unknown-npu]")));
}

#[tokio::test]
async fn a_memory_limit_stops_the_model_and_not_the_device() {
    let sample = sample("digits-1.0.0");
    let mut spec = sample.spec("builtin");
    let mut manifest = sample.manifest.clone();
    manifest.max_request_bytes = 64 << 20;
    spec.manifest = manifest.into();
    spec.memory_limit_bytes = 32 << 20;
    let worker = Worker::start(&spawner(), spec).await.expect("start");
    infer(&worker, &sample.inputs(0, 1), MINUTE)
        .await
        .expect("a small request");
    // Its activations need many times the 64 MiB of this input.
    let large = infer(&worker, &sample.inputs(0, 260_000), MINUTE).await;
    assert!(
        matches!(large, Err(WorkerError::Invoke(_) | WorkerError::Died(_))),
        "the limit did not hold"
    );
}
