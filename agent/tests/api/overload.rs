//! A device that does not keep up: refusals, deadlines and callers that leave. Its worker is stopped by a
//! signal, which is what a hanging driver looks like.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::client::{PATIENCE, request};
use crate::device::Device;

const ADD: &str = "/v2/models/accumulator/infer";

/// In a sequence of its own.
fn add(value: f64) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    json!({"parameters": {"sequence_id": id, "sequence_start": true, "sequence_end": true}, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": vec![value; 4]}]})
        .to_string()
}

/// Serves the model that sums up its inputs, with few slots.
async fn accumulator(slots: usize) -> Device {
    Device::serving_changed(
        "accumulator-1.0.0",
        |config| {
            config.limits.slots_per_instance = slots;
            config.limits.queue_timeout_ms = 50;
        },
        |manifest| manifest["invoke_limit_ms"] = json!(60_000),
    )
    .await
}

/// Stops the worker while the test looks at what the agent does meanwhile.
pub struct Stopped(rustix::process::Pid);

impl Stopped {
    pub fn worker_of(device: &Device) -> Self {
        let worker = device.worker();
        kill_process(worker, Signal::STOP).expect("stop");
        let deadline = Instant::now() + PATIENCE;
        while !all_stopped(worker.as_raw_nonzero().get()) {
            assert!(Instant::now() < deadline, "the worker does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(worker)
    }
}

/// Whether the signal has reached every thread: one that runs goes on for a moment.
fn all_stopped(process: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    })
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

async fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn in_worker(device: &Device) -> usize {
    let metrics = device.metrics();
    let line = metrics
        .lines()
        .find(|l| l.starts_with("edgeward_worker_requests{"));
    let value = line.and_then(|l| l.rsplit(' ').next()).expect("gauge");
    value.parse::<f64>().expect("number") as usize
}

#[tokio::test]
async fn a_deadline_is_answered_504_on_time_whatever_the_device_is_doing() {
    let device = accumulator(4).await;
    let mut client = device.client().await;
    let stopped = Stopped::worker_of(&device);
    let with_parameter = {
        let mut body: serde_json::Value = serde_json::from_str(&add(1.0)).expect("JSON");
        body["parameters"]["timeout"] = json!(200_000);
        body.to_string()
    };
    for (header, body) in [("200", add(1.0)), ("10000", with_parameter)] {
        let begun = Instant::now();
        let headers = [("Edgeward-Timeout-Ms", header)];
        let reply = client.ask("POST", ADD, &headers, body.as_bytes()).await;
        let spent = begun.elapsed();
        assert_eq!(reply.status, 504, "{}", reply.error());
        assert!(spent >= Duration::from_millis(190), "{spent:?}");
        assert!(spent < Duration::from_millis(1500), "{spent:?}");
    }
    drop(stopped);
    for (header, status) in [("0", 400), ("300001", 400), ("x", 400), ("300000", 200)] {
        let headers = [("Edgeward-Timeout-Ms", header)];
        let reply = client.ask("POST", ADD, &headers, add(1.0).as_bytes()).await;
        assert_eq!(reply.status, status, "{header}");
    }
    device.close().await;
}

#[tokio::test]
async fn overload_is_429_with_retry_after_and_passes() {
    let device = accumulator(1).await;
    let stopped = Stopped::worker_of(&device);
    let mut first = device.client().await;
    first
        .send(request("POST", ADD, &[], add(1.0).as_bytes()))
        .await;
    until(|| in_worker(&device) == 1).await;
    let begun = Instant::now();
    let mut second = device.client().await;
    let reply = second.post(ADD, add(1.0)).await;
    assert_eq!(reply.status, 429, "{}", reply.error());
    let seconds: u64 = reply
        .header("retry-after")
        .expect("header")
        .parse()
        .expect("seconds");
    assert!(seconds >= 1);
    assert!(
        begun.elapsed() >= Duration::from_millis(45),
        "the queue time was not waited for"
    );
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(stopped);
    assert_eq!(first.reply().await.expect("answer").status, 200);
    assert_eq!(second.post(ADD, add(1.0)).await.status, 200);
    device.close().await;
}

#[tokio::test]
async fn a_caller_that_has_gone_gives_its_slot_back() {
    let device = accumulator(4).await;
    let mut client = device.client().await;
    let stopped = Stopped::worker_of(&device);
    let mut leaving = device.client().await;
    leaving
        .send(request("POST", ADD, &[], add(1000.0).as_bytes()))
        .await;
    until(|| in_worker(&device) == 1).await;
    drop(leaving);
    // The agent has noticed: the request counts as left by its caller.
    until(|| {
        let metrics = device.metrics();
        metrics.lines().any(|l| {
            l.starts_with("edgeward_requests_total{")
                && l.contains("cancelled")
                && !l.ends_with(" 0")
        })
    })
    .await;
    drop(stopped);
    assert_eq!(client.post(ADD, add(1.0)).await.status, 200);
    until(|| in_worker(&device) == 0).await;
    device.close().await;
}

#[tokio::test]
async fn closing_waits_for_requests_in_flight() {
    let mut device = accumulator(4).await;
    let stopped = Stopped::worker_of(&device);
    let mut client = device.client().await;
    client
        .send(request("POST", ADD, &[], add(1.0).as_bytes()))
        .await;
    until(|| in_worker(&device) == 1).await;
    let closing = tokio::spawn(device.close_doors());
    until(|| !device.config.unix.path.exists()).await;
    assert!(!closing.is_finished());
    drop(stopped);
    assert_eq!(client.reply().await.expect("answer").status, 200);
    tokio::time::timeout(PATIENCE, closing)
        .await
        .expect("closed")
        .expect("joined");
    device.close().await;
}
