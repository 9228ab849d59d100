//! Runs and what is said of them: the median of several, and the worst beside it.
//!
//! On two shared cores a single run is good or bad by luck of the scheduler; a figure counts only if the
//! median of five has it.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::client::Door;

/// What one run of a case measured.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub requests: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub per_second: f64,
}

impl Run {
    pub fn new(mut latencies: Vec<Duration>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            let found = latencies.get(index.min(latencies.len().saturating_sub(1)));
            found.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
        };
        Self {
            requests: latencies.len() as u64,
            p50_us: at(0.50),
            p99_us: at(0.99),
            per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        }
    }
}

/// A figure of several runs.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub median: f64,
    pub worst: f64,
}

impl Figure {
    /// Of latencies or sizes: the worst is the largest.
    pub fn low_is_good(values: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(values);
        Self {
            median: sorted[sorted.len() / 2],
            worst: sorted[sorted.len() - 1],
        }
    }

    /// Of rates: the worst is the smallest.
    pub fn high_is_good(values: impl IntoIterator<Item = f64>) -> Self {
        let sorted = sorted(values);
        Self {
            median: sorted[sorted.len() / 2],
            worst: sorted[0],
        }
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// `clients` connections that ask the same question over and over, each waiting for its answer.
pub fn load(door: &Door, request: &[u8], clients: usize, time: Duration) -> Run {
    load_after(door, request, clients, time, time / 5)
}

/// The same after asking for as long as `warm_up` says.
pub fn load_after(
    door: &Door,
    request: &[u8],
    clients: usize,
    time: Duration,
    warm_up: Duration,
) -> Run {
    let barrier = Barrier::new(clients);
    let warm_until = Instant::now() + warm_up;
    let ends = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = door.connect().expect("connect to the agent");
                    while Instant::now() < warm_until {
                        connection.ask(request).expect("an answer");
                    }
                    let mut latencies = Vec::with_capacity(1 << 17);
                    barrier.wait();
                    let start = Instant::now();
                    let mut before = start;
                    while before - start < time || latencies.is_empty() {
                        connection.ask(request).expect("an answer");
                        let now = Instant::now();
                        latencies.push(now - before);
                        before = now;
                    }
                    (latencies, before - start)
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("a client");
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    let elapsed = ends.iter().map(|(_, elapsed)| *elapsed).max();
    let latencies = ends.into_iter().flat_map(|(latencies, _)| latencies);
    Run::new(latencies.collect(), elapsed.unwrap_or_default())
}
