//! Log lines that strangers cause, and can cause without end: a few in each time, and how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many lines in each [`PERIOD`].
const LINES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

/// Says which lines to write.
#[derive(Debug)]
pub struct Sparing {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    begun: Instant,
    lines: u32,
    left_out: u64,
}

impl Sparing {
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                begun: Instant::now(),
                lines: 0,
                left_out: 0,
            }),
        }
    }

    /// Whether to write a line now; if so, how many were left out since the last one.
    pub fn line(&self) -> Option<u64> {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.begun) >= PERIOD {
            state.begun = now;
            state.lines = 0;
        }
        if state.lines == LINES {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_a_few_and_a_number() {
        let sparing = Sparing::new();
        let start = Instant::now();
        let written = (0..1000)
            .filter(|_| sparing.line_at(start).is_some())
            .count();
        assert_eq!(written, LINES as usize);
        assert_eq!(sparing.line_at(start + 2 * PERIOD), Some(995));
        assert_eq!(sparing.line_at(start + 2 * PERIOD), Some(0));
    }
}
