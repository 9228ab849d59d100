//! Inputs that crashed a worker: each may do so twice.
//!
//! The supervisor puts the digests of what was running when a worker died into this table; a request whose
//! input has crashed twice is refused. The table is nearly always empty, and then a request pays one relaxed
//! load: digests are computed only while there is something to compare with.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use edgeward_models::Digest;

/// Crashes after which an input is refused.
const CRASHES_ALLOWED: u32 = 2;

/// An input gets another chance after this time: a driver may have been mended, a device repaired.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// Inputs remembered at once; the oldest makes room. 1024 distinct crashes an hour is a broken version, and
/// then the version itself is the matter.
const MOST_INPUTS: usize = 1024;

/// What one input is blamed for.
#[derive(Debug, Clone, Copy)]
struct Blame {
    /// Crashes while it alone was running.
    alone: u32,
    /// Crashes while others ran too: forgotten when the input is answered after all.
    among_others: u32,
    latest: Instant,
}

/// The table of one version.
#[derive(Debug, Default)]
pub(super) struct Poison {
    /// Length of the table, readable without its lock.
    length: AtomicUsize,
    inputs: Mutex<HashMap<Digest, Blame>>,
}

impl Poison {
    /// True almost always; while it is, no digest needs to be computed.
    pub(super) fn is_empty(&self) -> bool {
        self.length.load(Ordering::Relaxed) == 0
    }

    /// Blames what was running when the worker died.
    pub(super) fn blame(&self, suspects: &[Digest], now: Instant) {
        let mut inputs = lock(&self.inputs);
        inputs.retain(|_, blame| now.duration_since(blame.latest) < REMEMBERED);
        for suspect in suspects {
            if inputs.len() >= MOST_INPUTS
                && !inputs.contains_key(suspect)
                && let Some(oldest) = inputs.iter().min_by_key(|(_, b)| b.latest).map(|(d, _)| *d)
            {
                inputs.remove(&oldest);
            }
            let blame = inputs.entry(*suspect).or_insert(Blame {
                alone: 0,
                among_others: 0,
                latest: now,
            });
            blame.latest = now;
            if suspects.len() == 1 {
                blame.alone += 1;
            } else {
                blame.among_others += 1;
            }
        }
        self.length.store(inputs.len(), Ordering::Relaxed);
    }

    /// Whether this input is refused.
    pub(super) fn refuses(&self, input: &Digest, now: Instant) -> bool {
        let mut inputs = lock(&self.inputs);
        let Some(blame) = inputs.get(input) else {
            return false;
        };
        if now.duration_since(blame.latest) >= REMEMBERED {
            inputs.remove(input);
            self.length.store(inputs.len(), Ordering::Relaxed);
            return false;
        }
        blame.alone + blame.among_others >= CRASHES_ALLOWED
    }

    /// Whether this input was running when a worker died.
    pub(super) fn blames(&self, input: &Digest) -> bool {
        lock(&self.inputs).contains_key(input)
    }

    /// The input was answered: what it was blamed for in company was another's doing.
    pub(super) fn answered(&self, input: &Digest) {
        let mut inputs = lock(&self.inputs);
        if let Some(blame) = inputs.get_mut(input) {
            blame.among_others = 0;
            if blame.alone == 0 {
                inputs.remove(input);
                self.length.store(inputs.len(), Ordering::Relaxed);
            }
        }
    }
}

/// A panic while the lock was held cannot have left the map half-changed: go on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_refused_after_its_second_crash_and_no_other_is() {
        let poison = Poison::default();
        let (bad, good, now) = (Digest::of(b"bad"), Digest::of(b"good"), Instant::now());
        assert!(poison.is_empty());
        poison.blame(&[bad], now);
        assert!(!poison.is_empty());
        assert!(!poison.refuses(&bad, now));
        assert!(poison.blames(&bad) && !poison.blames(&good));
        poison.blame(&[bad], now);
        assert!(poison.refuses(&bad, now));
        assert!(!poison.refuses(&good, now));
    }

    #[test]
    fn a_bystander_is_cleared_by_being_answered_and_the_culprit_is_not() {
        let poison = Poison::default();
        let (bad, bystander, now) = (Digest::of(b"bad"), Digest::of(b"other"), Instant::now());
        poison.blame(&[bad, bystander], now);
        poison.answered(&bystander);
        poison.blame(&[bad, bystander], now);
        assert!(poison.refuses(&bad, now));
        assert!(!poison.refuses(&bystander, now));
        let poison = Poison::default();
        poison.blame(&[bad], now);
        poison.answered(&bad);
        poison.blame(&[bad], now);
        assert!(poison.refuses(&bad, now));
    }

    #[test]
    fn a_refused_input_gets_another_chance_after_an_hour() {
        let poison = Poison::default();
        let (bad, now) = (Digest::of(b"bad"), Instant::now());
        poison.blame(&[bad], now);
        poison.blame(&[bad], now);
        assert!(poison.refuses(&bad, now));
        assert!(!poison.refuses(&bad, now + REMEMBERED));
        assert!(poison.is_empty());
    }

    #[test]
    fn the_table_has_an_end_and_forgets_the_oldest_first() {
        let poison = Poison::default();
        let start = Instant::now();
        let input = |i: usize| Digest::of(&i.to_le_bytes());
        for i in 0..MOST_INPUTS + 1 {
            let at = start + Duration::from_millis(i as u64);
            poison.blame(&[input(i)], at);
            poison.blame(&[input(i)], at);
        }
        assert_eq!(poison.length.load(Ordering::Relaxed), MOST_INPUTS);
        assert!(!poison.refuses(&input(0), start));
        assert!(poison.refuses(&input(MOST_INPUTS), start + Duration::from_secs(2)));
    }
}
