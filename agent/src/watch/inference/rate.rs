//! How fast one caller may ask: so many inferences a second, and so many at once after it was quiet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Rate;

/// A caller asks faster than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "caller {caller} asks more often than its {per_second} times a second (after a pause {burst} at once); try again \
     later"
)]
pub struct TooFast {
    pub(super) caller: String,
    pub(super) per_second: u32,
    pub(super) burst: u32,
    pub retry_after: Duration,
}

/// One caller's bucket of tokens, as the time when it will be full again. No lock, no task that fills it.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    start: Instant,
    /// Nanoseconds from `start`.
    full_at: AtomicU64,
    refused: AtomicU64,
}

impl Bucket {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            start: now,
            full_at: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes a token. Without one: how long until there is.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.start).as_nanos() as u64;
        let token = 1_000_000_000 / u64::from(self.rate.requests_per_second.max(1));
        let whole = token * u64::from(self.rate.burst.max(1));
        let taken = |full_at: u64| {
            let full_at = full_at.max(now) + token;
            (full_at - now <= whole).then_some(full_at)
        };
        let order = Ordering::Relaxed;
        match self.full_at.fetch_update(order, order, taken) {
            Ok(_) => Ok(()),
            Err(full_at) => {
                self.refused.fetch_add(1, order);
                Err(Duration::from_nanos(full_at + token - whole - now))
            }
        }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(requests_per_second: u32, burst: u32) -> (Bucket, Instant) {
        let start = Instant::now();
        let rate = Rate {
            requests_per_second,
            burst,
        };
        (Bucket::new(rate, start), start)
    }

    #[test]
    fn a_burst_is_let_through_then_one_at_a_time_and_after_a_pause_a_burst_again() {
        let (bucket, start) = bucket(10, 3);
        let at = |millis| bucket.take(start + Duration::from_millis(millis));
        assert!(at(0).is_ok() && at(0).is_ok() && at(0).is_ok());
        assert_eq!(at(0), Err(Duration::from_millis(100)));
        assert_eq!(at(60), Err(Duration::from_millis(40)));
        assert!(at(100).is_ok());
        assert!(at(100).is_err());
        assert!(at(1000).is_ok() && at(1000).is_ok() && at(1000).is_ok());
        assert!(at(1000).is_err());
        assert_eq!(bucket.refused(), 4);
    }

    proptest! {
        #[test]
        fn no_time_sees_more_than_its_share_and_who_waits_as_told_is_let_in(
            per_second in 1..2000u32,
            burst in 1..50u32,
            pauses in prop::collection::vec(0..5_000_000u64, 1..200),
        ) {
            let (bucket, start) = bucket(per_second, burst);
            let mut now = start;
            let mut let_in = Vec::new();
            for pause in pauses {
                now += Duration::from_nanos(pause);
                match bucket.take(now) {
                    Ok(()) => let_in.push(now),
                    Err(wait) => {
                        now += wait;
                        prop_assert!(bucket.take(now).is_ok());
                        let_in.push(now);
                    }
                }
            }
            for (index, first) in let_in.iter().enumerate() {
                let (count, last) = (let_in.len() - index, let_in[let_in.len() - 1]);
                let time = last.duration_since(*first).as_secs_f64();
                // A token's time is whole nanoseconds, which is a little less than its share of a second.
                let most = f64::from(burst) + time * f64::from(per_second) * 1.00001 + 1e-6;
                prop_assert!(count as f64 <= most, "{} in {} s", count, time);
            }
        }
    }
}
