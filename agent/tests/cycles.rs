//! A hundred versions loaded and unloaded again: what the agent holds afterwards is what it held before.

#[path = "serving/support.rs"]
#[allow(dead_code)]
mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::{Device, PATIENCE, ask, close, golden};

/// What is filled once and kept is filled by then.
const WARM_UP: usize = 20;
const CYCLES: usize = 100;
/// A worker's slots, a manifest with its golden vectors, a mapping: none of them may stay behind once per cycle.
const MOST_GROWTH: u64 = 3 << 20;

/// What this process, which is the agent here, holds.
#[derive(Debug)]
struct Held {
    memory: u64,
    descriptors: usize,
    threads: usize,
    workers: usize,
}

impl Held {
    fn now() -> Self {
        let count = |path: &str| fs::read_dir(path).expect(path).count();
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("smaps_rollup");
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kibibytes = pss.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        let tasks = fs::read_dir("/proc/self/task").expect("tasks").flatten();
        let children = tasks.map(|task| {
            let children = fs::read_to_string(task.path().join("children"));
            children.unwrap_or_default().split_whitespace().count()
        });
        Self {
            memory: kibibytes.expect("a number") << 10,
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            workers: children.sum(),
        }
    }

    /// What the last version's end still holds is given back first.
    async fn once_settled() -> Self {
        let begun = Instant::now();
        loop {
            let held = Self::now();
            if held.workers <= 1 || begun.elapsed() > PATIENCE {
                // Its threads end with it.
                tokio::time::sleep(Duration::from_millis(200)).await;
                return Self::now();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_hundred_loads_and_unloads_leave_memory_descriptors_threads_and_processes_as_they_were() {
    let device = Device::new();
    let samples = ["digits-1.0.0", "digits-2.0.0"];
    let versions = samples.map(|sample| device.sample(sample));
    let questions = samples.map(golden);
    let mut before = None;
    for cycle in 0..WARM_UP + CYCLES {
        if cycle == WARM_UP {
            before = Some(Held::once_settled().await);
        }
        device.serve(&versions[cycle % 2]).await;
        let (input, output) = &questions[cycle % 2];
        let answer = ask(&device.engine, "digits", input).await.expect("answer");
        assert!(close(&answer, output), "cycle {cycle}");
    }
    let (before, after) = (before.expect("a warm-up"), Held::once_settled().await);
    let both = format!("{before:?} became {after:?}");
    assert_eq!(after.workers, 1, "{both}");
    assert_eq!(after.descriptors, before.descriptors, "{both}");
    assert_eq!(after.threads, before.threads, "{both}");
    assert!(after.memory < before.memory + MOST_GROWTH, "{both}");
}
