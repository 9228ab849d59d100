//! What one version did: counters and latencies, for telemetry (per interval) and for the metrics page
//! (since the version was loaded).
//!
//! Recording an answer costs a few relaxed additions and one uncontended lock; nothing here allocates after
//! the version was loaded.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use edgeward_models::fleet::telemetry::ModelSample;
use edgeward_models::{ModelName, Version};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::batches::Batches;
use super::error::ServeError;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    /// The caller's mistake: a wrong tensor, too many bytes, an input known to crash.
    Invalid,
    /// No slot within the queue time, or no worker just now.
    Overloaded,
    NotReady,
    Deadline,
    /// The worker died, or TFLite returned an error.
    Failed,
    /// The caller left before the answer.
    Cancelled,
}

impl Outcome {
    /// In the order of their numbers.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Succeeded, "succeeded"),
        (Self::Invalid, "invalid"),
        (Self::Overloaded, "overloaded"),
        (Self::NotReady, "not-ready"),
        (Self::Deadline, "deadline"),
        (Self::Failed, "failed"),
        (Self::Cancelled, "cancelled"),
    ];

    /// One word for logs and metrics.
    pub fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    pub fn of(error: &ServeError) -> Self {
        match error {
            ServeError::UnknownModel(_)
            | ServeError::UnknownVersion { .. }
            | ServeError::UnknownLabel { .. }
            | ServeError::Invalid(_)
            | ServeError::TooLarge { .. }
            | ServeError::SequenceLost { .. }
            | ServeError::Poison { .. } => Self::Invalid,
            ServeError::Overloaded { .. } | ServeError::SequencesFull { .. } => Self::Overloaded,
            ServeError::NotReady { .. } => Self::NotReady,
            ServeError::Deadline(_) => Self::Deadline,
            ServeError::Crashed { .. } | ServeError::Failed { .. } => Self::Failed,
        }
    }
}

/// Where an answered request's time went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Waiting for a slot and for an interpreter.
    pub(super) queue: Duration,
    pub(super) invoke: Duration,
    pub(super) total: Duration,
    pub(super) answered: Instant,
}

/// What a version did since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    pub succeeded: u64,
    /// Refused or failed; not those that their caller left.
    pub failed: u64,
    /// Invokes that answered those that succeeded: fewer, where requests were joined.
    pub invokes: u64,
    /// Sums over the requests that succeeded.
    pub queue: Duration,
    pub invoke: Duration,
    pub total: Duration,
    /// The last one's answer.
    pub latest: Option<SystemTime>,
}

/// What a version did since it was loaded, as far as it is its own doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub succeeded: u64,
    /// TFLite returned an error, or the worker died.
    pub failed: u64,
    /// Deaths of the worker.
    pub crashes: u64,
    /// Of the requests that succeeded.
    pub invoke_p99_us: u64,
}

#[derive(Debug)]
pub(super) struct Stats {
    loaded: Instant,
    /// When the last answer came, in nanoseconds from then.
    latest_nanos: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    crashes: AtomicU64,
    latest_invoke_micros: AtomicU64,
    pub(super) queue: Buckets,
    pub(super) invoke: Buckets,
    pub(super) total: Buckets,
    pub(super) batches: Batches,
    interval: Mutex<Interval>,
}

/// What is set back to nothing by each sample.
#[derive(Debug)]
struct Interval {
    outcomes: [u64; Outcome::ALL.len()],
    crashes: u64,
    /// Microseconds.
    queue: Histogram<u32>,
    invoke: Histogram<u32>,
    /// Invokes of the intervals before, since the version was loaded.
    invoke_before: Histogram<u32>,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self {
            loaded: Instant::now(),
            latest_nanos: AtomicU64::new(0),
            outcomes: Default::default(),
            crashes: AtomicU64::new(0),
            latest_invoke_micros: AtomicU64::new(0),
            queue: Buckets::default(),
            invoke: Buckets::default(),
            total: Buckets::default(),
            batches: Batches::default(),
            interval: Mutex::new(Interval {
                outcomes: Default::default(),
                crashes: 0,
                queue: histogram(),
                invoke: histogram(),
                invoke_before: histogram(),
            }),
        }
    }

    pub(super) fn succeeded(&self, times: Times) {
        self.outcomes[Outcome::Succeeded as usize].fetch_add(1, Ordering::Relaxed);
        self.queue.record(times.queue);
        self.invoke.record(times.invoke);
        self.total.record(times.total);
        let invoke = micros(times.invoke);
        self.latest_invoke_micros.store(invoke, Ordering::Relaxed);
        let latest = times.answered.saturating_duration_since(self.loaded);
        let latest = u64::try_from(latest.as_nanos()).unwrap_or(u64::MAX);
        self.latest_nanos.store(latest, Ordering::Relaxed);
        let mut interval = self.interval();
        interval.outcomes[Outcome::Succeeded as usize] += 1;
        interval.queue.saturating_record(micros(times.queue));
        interval.invoke.saturating_record(invoke);
    }

    /// Any end but success.
    pub(super) fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.interval().outcomes[outcome as usize] += 1;
    }

    pub(super) fn crashed(&self) {
        self.crashes.fetch_add(1, Ordering::Relaxed);
        self.interval().crashes += 1;
    }

    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    pub(super) fn crashes(&self) -> u64 {
        self.crashes.load(Ordering::Relaxed)
    }

    pub(super) fn statistics(&self) -> Statistics {
        let failed = Outcome::ALL
            .iter()
            .filter(|(outcome, _)| !matches!(outcome, Outcome::Succeeded | Outcome::Cancelled));
        let latest = Duration::from_nanos(self.latest_nanos.load(Ordering::Relaxed));
        let ago = self.loaded.elapsed().saturating_sub(latest);
        let succeeded = self.count(Outcome::Succeeded);
        Statistics {
            succeeded,
            invokes: succeeded.saturating_sub(self.batches.joined()),
            failed: failed.map(|(outcome, _)| self.count(*outcome)).sum(),
            queue: self.queue.sum(),
            invoke: self.invoke.sum(),
            total: self.total.sum(),
            latest: (!latest.is_zero())
                .then(|| SystemTime::now().checked_sub(ago))
                .flatten(),
        }
    }

    /// When the last request was answered; when this began, if none was.
    pub(super) fn latest_answer(&self) -> Instant {
        self.loaded + Duration::from_nanos(self.latest_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn latest_invoke_micros(&self) -> u64 {
        self.latest_invoke_micros.load(Ordering::Relaxed)
    }

    /// What is held against the version, or for it, while it is watched.
    pub(super) fn figures(&self) -> Figures {
        let interval = self.interval();
        let mut invoke = interval.invoke_before.clone();
        // Both have the same bounds.
        let _ = invoke.add(&interval.invoke);
        drop(interval);
        Figures {
            succeeded: self.count(Outcome::Succeeded),
            failed: self.count(Outcome::Failed),
            crashes: self.crashes(),
            invoke_p99_us: invoke.value_at_quantile(0.99),
        }
    }

    /// What happened since the last call.
    pub(super) fn take_sample(&self, model: &ModelName, version: &Version) -> ModelSample {
        let mut interval = self.interval();
        let sample = interval.sample(model, version);
        interval.outcomes = Default::default();
        interval.crashes = 0;
        interval.queue.reset();
        let Interval {
            invoke,
            invoke_before,
            ..
        } = &mut *interval;
        // Both have the same bounds.
        let _ = invoke_before.add(&*invoke);
        invoke.reset();
        sample
    }

    /// What [`take_sample`](Self::take_sample) would say now.
    pub(super) fn peek_sample(&self, model: &ModelName, version: &Version) -> ModelSample {
        self.interval().sample(model, version)
    }

    fn interval(&self) -> std::sync::MutexGuard<'_, Interval> {
        self.interval.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Interval {
    /// Callers who left are in no count: nobody refused or failed them.
    fn sample(&self, model: &ModelName, version: &Version) -> ModelSample {
        let count = |outcome: Outcome| self.outcomes[outcome as usize];
        ModelSample {
            model: model.clone(),
            version: version.clone(),
            succeeded: count(Outcome::Succeeded),
            refused: count(Outcome::Invalid)
                + count(Outcome::Overloaded)
                + count(Outcome::NotReady),
            failed: count(Outcome::Deadline) + count(Outcome::Failed),
            crashes: self.crashes,
            queue_p50_us: self.queue.value_at_quantile(0.5),
            queue_p99_us: self.queue.value_at_quantile(0.99),
            invoke_p50_us: self.invoke.value_at_quantile(0.5),
            invoke_p99_us: self.invoke.value_at_quantile(0.99),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One microsecond to an hour with two digits: about 12 kB.
fn histogram() -> Histogram<u32> {
    // The bounds are constants that the crate accepts; its smallest histogram is the fallback.
    Histogram::new_with_bounds(1, 3_600_000_000, 2)
        .or_else(|_| Histogram::new(2))
        .unwrap_or_else(|_| unreachable!("two significant digits are always accepted"))
}

/// A histogram as the metrics page shows it.
pub(super) struct Shown {
    pub(super) bounds: Vec<f64>,
    /// How many were at most as large as each bound, then how many there were in all.
    pub(super) cumulative: Vec<u64>,
    pub(super) sum: f64,
}

/// A histogram with fixed bounds, as Prometheus counts them.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    counts: [AtomicU64; Self::BOUNDS_MICROS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Buckets {
    /// Upper bounds in microseconds.
    const BOUNDS_MICROS: [u64; 18] = [
        10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
        500_000, 1_000_000, 5_000_000, 30_000_000,
    ];

    fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let place = Self::BOUNDS_MICROS.partition_point(|&bound| bound * 1000 < nanos);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many were at most as long as each bound, then how many there were in all.
    fn cumulative(&self) -> [u64; Self::BOUNDS_MICROS.len() + 1] {
        let mut total = 0;
        std::array::from_fn(|i| {
            total += self.counts[i].load(Ordering::Relaxed);
            total
        })
    }

    fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn shown(&self) -> Shown {
        let bounds = Self::BOUNDS_MICROS
            .iter()
            .map(|&micros| micros as f64 / 1e6);
        Shown {
            bounds: bounds.collect(),
            cumulative: self.cumulative().to_vec(),
            sum: self.sum().as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(queue: u64, invoke: u64) -> Times {
        Times {
            queue: Duration::from_micros(queue),
            invoke: Duration::from_micros(invoke),
            total: Duration::from_micros(queue + invoke),
            answered: Instant::now(),
        }
    }

    #[test]
    fn a_sample_covers_its_interval_and_the_counters_go_on() {
        let stats = Stats::new();
        let (model, version) = ("m".parse().expect("name"), Version::new(1, 0, 0));
        for i in 1..=100 {
            stats.succeeded(times(i, i * 10));
        }
        stats.ended(Outcome::Overloaded);
        stats.ended(Outcome::Deadline);
        stats.ended(Outcome::Cancelled);
        stats.crashed();
        let sample = stats.take_sample(&model, &version);
        assert_eq!((sample.succeeded, sample.refused), (100, 1));
        assert_eq!((sample.failed, sample.crashes), (1, 1));
        assert!((49..=51).contains(&sample.queue_p50_us));
        assert!((985..=1000).contains(&sample.invoke_p99_us));
        let figures = stats.figures();
        assert_eq!((figures.succeeded, figures.crashes), (100, 1));
        assert_eq!(figures.failed, 0, "a deadline is a caller's");
        assert!((985..=1000).contains(&figures.invoke_p99_us));
        let empty = stats.take_sample(&model, &version);
        assert_eq!((empty.succeeded, empty.invoke_p99_us), (0, 0));
        assert_eq!(stats.count(Outcome::Succeeded), 100);
        assert_eq!(stats.crashes(), 1);
        let statistics = stats.statistics();
        assert_eq!((statistics.succeeded, statistics.failed), (100, 2));
        assert_eq!(statistics.invoke, Duration::from_micros(50_500));
        let ago = statistics.latest.expect("an answer").elapsed();
        assert!(ago.expect("past") < Duration::from_secs(60));
        assert_eq!(Stats::new().statistics().latest, None);
    }

    #[test]
    fn buckets_count_up_to_and_including_their_bound() {
        let buckets = Buckets::default();
        for micros in [10, 11, 25, 60_000_000] {
            buckets.record(Duration::from_micros(micros));
        }
        let counts = buckets.cumulative();
        assert_eq!(counts[..3], [1, 3, 3]);
        assert_eq!(counts[counts.len() - 2..], [3, 4]);
        assert!((buckets.shown().sum - 60.000046).abs() < 1e-9);
    }
}
