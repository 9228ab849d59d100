//! What follows from the outcomes of a wave: wait, widen, stop.

use jiff::Timestamp;

use super::Waves;

/// The outcomes of all devices that may move now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// They serve the version, and have watched it for as long as they should.
    pub healthy: usize,
    pub failed: usize,
    /// They said nothing until the deadline: as good as failed.
    pub silent: usize,
    pub pending: usize,
}

/// What is to be done about a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Outcomes are missing, and there is time.
    Wait,
    /// The next wave may move.
    Widen,
    /// The next wave may move as soon as an operator says so.
    AwaitApproval,
    /// It is paused, and would go on otherwise.
    Paused,
    /// Every device has moved.
    Complete,
    /// The devices that moved must go back, and why.
    Halt(String),
    /// It was stopped before, with nothing to go back to.
    Halted,
}

impl Waves {
    pub fn decide(&self, tally: &Tally, now: Timestamp) -> Decision {
        if self.halted.is_some() {
            return Decision::Halted;
        }
        if self.halt.is_broken(tally) {
            return Decision::Halt(self.broken(tally));
        }
        if tally.pending == 0 && self.reaches_everybody() {
            return Decision::Complete;
        }
        if self.paused {
            return Decision::Paused;
        }
        if now > self.ends {
            let (open, count) = (self.open, self.count());
            return Decision::Halt(format!("its deadline passed in wave {open} of {count}"));
        }
        match (tally.pending, self.approve) {
            (1.., _) => Decision::Wait,
            (0, true) => Decision::AwaitApproval,
            (0, false) => Decision::Widen,
        }
    }

    fn broken(&self, tally: &Tally) -> String {
        let outcomes = tally.healthy + tally.failed + tally.silent;
        let silent = match tally.silent {
            0 => String::new(),
            silent => format!(" ({silent} of them silent until the deadline)"),
        };
        format!(
            "{} of {outcomes} devices failed{silent}; at most {} % may",
            tally.failed + tally.silent,
            self.halt.max_failed_percent
        )
    }
}
