//! How often others may make this device work: looks at what the broker shows, and records of what was refused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The broker may ask for one look in this time; a failed one counts as more.
const GAP: Duration = Duration::from_secs(5);
/// So many looks are free after a quiet time: an honest operator is heard at once.
const BURST: u32 = 6;
/// After failures a look counts as up to this many.
const DEAREST: u32 = 12;
/// Refusals of one class are recorded once in this time, with their number.
const RECORD_AGAIN: Duration = Duration::from_secs(3600);

/// What looks have cost so far.
pub struct Pace {
    /// All looks up to now are paid for at this time.
    paid: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    /// How long the next look must wait.
    pub fn wait(&self, now: Instant) -> Duration {
        let owed = self.paid.saturating_duration_since(now);
        owed.saturating_sub(GAP * (BURST - 1))
    }

    /// A look begins, after so many failures in a row.
    pub fn look(&mut self, now: Instant, failures: u32) {
        let price = 2u32.saturating_pow(failures).min(DEAREST);
        self.paid = self.paid.max(now) + GAP * price;
    }
}

/// Refusals by class, so that whoever can make this device refuse cannot fill its disk with records.
#[derive(Default)]
pub struct Refusals(BTreeMap<&'static str, Class>);

struct Class {
    recorded: Instant,
    since: u64,
}

impl Refusals {
    /// Counts one. The number to record now, this one included; `None` when it is too soon for another record.
    pub fn count(&mut self, class: &'static str, now: Instant) -> Option<u64> {
        let Some(known) = self.0.get_mut(class) else {
            let first = Class {
                recorded: now,
                since: 0,
            };
            self.0.insert(class, first);
            return Some(1);
        };
        known.since += 1;
        if now.saturating_duration_since(known.recorded) < RECORD_AGAIN {
            return None;
        }
        known.recorded = now;
        Some(std::mem::take(&mut known.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks that whoever shows a new timestamp each second gets in this time.
    fn looks(seconds: u64, failing: bool) -> u32 {
        let start = Instant::now();
        let (mut pace, mut looks) = (Pace::new(start), 0);
        for second in 0..seconds {
            let now = start + Duration::from_secs(second);
            if pace.wait(now).is_zero() {
                pace.look(now, if failing { looks } else { 0 });
                looks += 1;
            }
        }
        looks
    }

    #[test]
    fn a_few_looks_are_free_and_the_rest_are_spread() {
        assert_eq!(looks(BURST.into(), false), BURST);
        let hour = looks(3600, false);
        assert!((720..=730).contains(&hour), "{hour} looks in an hour");
        let hour = looks(3600, true);
        assert!((50..=70).contains(&hour), "{hour} failing looks in an hour");
    }

    #[test]
    fn refusals_without_end_are_recorded_once_an_hour_with_their_number() {
        let (start, mut refusals) = (Instant::now(), Refusals::default());
        let mut recorded = Vec::new();
        for second in 0..=7200 {
            recorded.extend(refusals.count("timestamp", start + Duration::from_secs(second)));
        }
        assert_eq!(recorded, [1, 3600, 3600]);
        assert_eq!(
            refusals.count("snapshot", start),
            Some(1),
            "a class of its own"
        );
    }
}
