//! What one model's callers feel while versions of another one are loaded.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edgeward_tests::Device;
use edgeward_tests::fleet::path;

use crate::client::Door;
use crate::measure::{Figure, Run, load};

/// 99th percentiles in microseconds, with nothing else going on and while versions are installed and loaded.
pub struct Loading {
    pub quiet_p99_us: Figure,
    pub loading_p99_us: Figure,
    pub versions: usize,
}

/// How many imports share one figure: a single one lasts for too few requests to have a 99th percentile.
pub const IMPORTS_PER_RUN: usize = 4;

/// Imports `repositories`, each with a further version of another model, while one client asks. The client stops
/// whenever a version is active, so that no quiet moment is counted.
pub fn measure(
    device: &Device,
    door: &Door,
    request: &[u8],
    repositories: &[PathBuf],
    time: Duration,
) -> Loading {
    let mut quiet = Vec::new();
    let mut loading = Vec::new();
    for run in repositories.chunks(IMPORTS_PER_RUN) {
        quiet.push(load(door, request, 1, time).p99_us);
        let begun = Instant::now();
        let asked_meanwhile = |repository: &PathBuf| {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let client = scope.spawn(|| ask_until(door, request, &over));
                device
                    .edgeward(&["import", path(repository)])
                    .expect_success();
                over.store(true, Ordering::Relaxed);
                client.join().expect("the client")
            })
        };
        let latencies = run.iter().flat_map(asked_meanwhile).collect();
        loading.push(Run::new(latencies, begun.elapsed()).p99_us);
    }
    Loading {
        quiet_p99_us: Figure::low_is_good(quiet),
        loading_p99_us: Figure::low_is_good(loading),
        versions: repositories.len(),
    }
}

fn ask_until(door: &Door, request: &[u8], over: &AtomicBool) -> Vec<Duration> {
    let mut connection = door.connect().expect("connect to the agent");
    let mut latencies = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let before = Instant::now();
        connection.ask(request).expect("an answer");
        latencies.push(before.elapsed());
    }
    latencies
}
