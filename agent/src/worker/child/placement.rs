//! On which core an interpreter thread runs.
//!
//! Waking a thread on another, idle core takes about 60 µs there and back, on the same one 3 µs. So a model
//! that is through in much less stays on the core of the agent's I/O thread, which sleeps meanwhile; any other
//! goes where the scheduler puts it, beside the I/O thread. The agent says with each job which core it is on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Below this an invoke is not worth a wake-up elsewhere.
const SMALL_NANOSECONDS: u64 = 20_000;
/// Above this it is. Between the two things stay as they are.
const LARGE_NANOSECONDS: u64 = 50_000;
/// Invokes before the first decision: the first ones of an interpreter are slow.
const LEARNING: u32 = 8;
/// Invokes between decisions, which cost a system call.
const PATIENCE: u32 = 64;

/// One thread's place.
pub struct Placement {
    /// Where it may run at all; `None`: it is never moved.
    allowed: Option<CpuSet>,
    /// Where it is held.
    core: Option<u32>,
    /// Typical duration of an invoke.
    typical: u64,
    invokes: u32,
    decided: u32,
}

impl Placement {
    /// For the calling thread.
    pub fn new(movable: bool) -> Self {
        Self {
            allowed: sched_getaffinity(None).ok().filter(|_| movable),
            core: None,
            typical: 0,
            invokes: 0,
            decided: 0,
        }
    }

    /// Takes note of an invoke for an agent on `core`, and moves the thread if that pays.
    pub fn learn(&mut self, core: u32, nanoseconds: u64) {
        let Some(allowed) = &self.allowed else {
            return;
        };
        self.invokes = self.invokes.saturating_add(1);
        // Outliers (interrupts, other processes) pull up slowly, a fast invoke is believed at once.
        self.typical = if self.invokes <= LEARNING {
            nanoseconds
        } else {
            nanoseconds.min(self.typical + self.typical / 8 + 1)
        };
        if self.invokes < LEARNING
            || self.invokes.wrapping_sub(self.decided) < PATIENCE && self.decided > 0
        {
            return;
        }
        let wanted = match self.typical {
            ..SMALL_NANOSECONDS => Some(core),
            LARGE_NANOSECONDS.. => None,
            _ => self.core,
        };
        if wanted == self.core {
            return;
        }
        self.decided = self.invokes;
        let mut set = *allowed;
        if let Some(core) = wanted.map(|c| c as usize).filter(|&c| c < CpuSet::MAX_CPU) {
            set.clear();
            set.set(core);
        }
        // Refused where the agent's core is none of ours: then the scheduler decides, as before.
        if sched_setaffinity(None, &set).is_ok() {
            self.core = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_after(durations: impl IntoIterator<Item = u64>) -> Option<u32> {
        // On a thread of its own: it is really moved.
        let durations: Vec<u64> = durations.into_iter().collect();
        let thread = std::thread::spawn(move || {
            let core = rustix::thread::sched_getcpu() as u32;
            let mut placement = Placement::new(true);
            for nanoseconds in durations {
                placement.learn(core, nanoseconds);
            }
            placement.core
        });
        thread.join().expect("thread")
    }

    #[test]
    fn small_models_stay_and_large_ones_go_their_way() {
        assert!(held_after([3_000; 10]).is_some());
        assert!(held_after([900_000; 10]).is_none());
        assert!(held_after([3_000; 3]).is_none(), "too early to know");
    }

    #[test]
    fn one_slow_invoke_changes_nothing_and_a_slow_model_does() {
        let small = [3_000; 100].into_iter();
        assert!(held_after(small.clone().chain([5_000_000]).chain([3_000; 100])).is_some());
        assert!(held_after(small.chain([5_000_000; 200])).is_none());
    }
}
