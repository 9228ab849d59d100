//! Whether a new version keeps its promise: what it did during its soak, against what the version before did.
//!
//! Only what is the version's own doing counts: deaths of its worker, requests that failed while they ran, and the
//! time that invokes take. What a caller got wrong, or did not want to wait for, is held against no version, so no
//! caller can take one away.

use edgeward_models::fleet::health::{HealthLimits, Soak};
use edgeward_models::fleet::rollout::Wish;
use serde::{Deserialize, Serialize};

use crate::serving::Figures;

/// Fewer failures than this may be anybody's.
const LEAST_FAILURES: u64 = 5;
/// With fewer answers than this nothing can be said of the slowest hundredth, during the soak and at its end.
const LEAST_ANSWERS: u64 = 1000;
const LEAST_ANSWERS_AT_THE_END: u64 = 100;
/// A busy device is late by this much now and then, whatever the version, in microseconds.
const P99_SLACK_US: u64 = 1000;

/// A version that is being watched, as it stands in the state directory: a restart goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoakRecord {
    /// How long in all.
    pub seconds: u32,
    /// How long by now; only while it served.
    pub watched_seconds: u32,
    pub limits: HealthLimits,
    /// What the version before did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Figures>,
    /// What this version did by now.
    #[serde(default)]
    pub seen: Figures,
    /// Why it is not good. The version before takes over; without one it goes on and is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl SoakRecord {
    /// `None`: it is not to be watched.
    pub fn begin(wish: &Wish, before: Option<Figures>) -> Option<Self> {
        (wish.soak_seconds > 0).then(|| Self {
            seconds: wish.soak_seconds,
            watched_seconds: 0,
            limits: wish.health,
            before,
            seen: Figures::default(),
            failed: None,
        })
    }

    pub fn state(&self) -> Soak {
        match self.failed {
            Some(_) => Soak::Failed,
            None => Soak::Watching,
        }
    }

    /// Why the version is not good, by what it has done. `timed`: of how many requests the time of invokes is known.
    /// `ends`: the time of its soak is over.
    pub fn complaint(
        &self,
        seen: &Figures,
        timed: u64,
        last_crash: Option<&str>,
        ends: bool,
    ) -> Option<String> {
        self.crashes(seen, last_crash)
            .or_else(|| self.failures(seen))
            .or_else(|| self.slowness(seen, timed, ends))
    }

    fn crashes(&self, seen: &Figures, last: Option<&str>) -> Option<String> {
        let (crashes, most) = (seen.crashes, self.limits.max_crashes);
        (crashes > u64::from(most)).then(|| {
            let last = last.map_or(String::new(), |last| format!(", the last time: {last}"));
            format!("it crashed {crashes} times while it was watched (at most {most}){last}")
        })
    }

    fn failures(&self, seen: &Figures) -> Option<String> {
        let (failed, run) = (seen.failed, seen.succeeded + seen.failed);
        let before = self.before.as_ref().map_or(0.0, Figures::failed_percent);
        let percent = percent(failed, run);
        let most = before + f64::from(self.limits.max_error_percent);
        (failed >= LEAST_FAILURES && percent > most).then(|| {
            format!(
                "{failed} of {run} requests failed while it was watched ({percent:.1} %; {before:.1} % of those of \
                 the version before, and at most {most:.1} % may)"
            )
        })
    }

    fn slowness(&self, seen: &Figures, timed: u64, ends: bool) -> Option<String> {
        let before = self.before.as_ref()?;
        let least = if ends {
            LEAST_ANSWERS_AT_THE_END
        } else {
            LEAST_ANSWERS
        };
        if timed < least || before.succeeded < LEAST_ANSWERS_AT_THE_END {
            return None;
        }
        let percent = u64::from(self.limits.max_p99_percent);
        let most = before.invoke_p99_us.saturating_mul(percent) / 100 + P99_SLACK_US;
        (seen.invoke_p99_us > most).then(|| {
            format!(
                "it is slow: one invoke in a hundred takes {} or more, {} with the version before (at most {})",
                milliseconds(seen.invoke_p99_us),
                milliseconds(before.invoke_p99_us),
                milliseconds(most)
            )
        })
    }
}

impl Figures {
    fn failed_percent(&self) -> f64 {
        percent(self.failed, self.succeeded + self.failed)
    }

    /// Counts of both; the time of invokes is this one's.
    pub fn and(self, earlier: &Self) -> Self {
        Self {
            succeeded: self.succeeded + earlier.succeeded,
            failed: self.failed + earlier.failed,
            crashes: self.crashes + earlier.crashes,
            ..self
        }
    }
}

fn percent(part: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / all as f64
}

fn milliseconds(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(succeeded: u64, failed: u64, crashes: u64, invoke_p99_us: u64) -> Figures {
        Figures {
            succeeded,
            failed,
            crashes,
            invoke_p99_us,
        }
    }

    /// Watched against a version that answered 1000 requests with a p99 of 2 ms.
    fn watched(failed_before: u64) -> SoakRecord {
        let wish = Wish::new(
            "2.0.0".parse().expect("version"),
            2,
            "r2".parse().expect("name"),
        );
        let before = figures(1000 - failed_before, failed_before, 0, 2000);
        SoakRecord::begin(&wish, Some(before)).expect("a soak")
    }

    fn complaint(soak: &SoakRecord, now: Figures) -> String {
        let complaint = soak.complaint(&now, now.succeeded, None, false);
        complaint.unwrap_or_default()
    }

    #[test]
    fn one_crash_is_too_many_unless_more_are_allowed() {
        let mut soak = watched(0);
        let crashed = figures(10, 1, 1, 100);
        let words = soak.complaint(&crashed, 10, Some("SIGSEGV"), false);
        let words = words.expect("a complaint");
        assert!(words.contains("crashed 1 times") && words.contains("SIGSEGV"));
        soak.limits.max_crashes = 1;
        assert_eq!(complaint(&soak, crashed), "");
        let twice = crashed.and(&crashed);
        assert!(complaint(&soak, twice).contains("crashed 2 times"));
    }

    #[test]
    fn failures_count_beyond_what_the_version_before_failed() {
        let soak = watched(20);
        // 2 % failed before, 1 % more may.
        assert_eq!(complaint(&soak, figures(970, 30, 0, 100)), "");
        let words = complaint(&soak, figures(969, 31, 0, 100));
        assert!(words.contains("31 of 1000 requests failed"), "{words}");
        // A few are nobody's fault yet.
        assert_eq!(complaint(&soak, figures(0, LEAST_FAILURES - 1, 0, 0)), "");
        assert_ne!(complaint(&soak, figures(0, LEAST_FAILURES, 0, 0)), "");
    }

    #[test]
    fn slowness_is_told_from_enough_answers_and_against_the_version_before() {
        let mut soak = watched(0);
        let slow = |answers| figures(answers, 0, 0, 5_001);
        assert!(complaint(&soak, slow(1000)).contains("5.0 ms or more, 2.0 ms"));
        assert_eq!(complaint(&soak, figures(1000, 0, 0, 5_000)), "");
        assert_eq!(complaint(&soak, slow(999)), "");
        assert!(soak.complaint(&slow(100), 100, None, true).is_some());
        assert!(soak.complaint(&slow(99), 99, None, true).is_none());
        soak.before = None;
        assert_eq!(complaint(&soak, slow(1000)), "", "nothing to compare with");
    }

    #[test]
    fn a_version_that_nobody_asks_is_good() {
        assert!(
            watched(0)
                .complaint(&Figures::default(), 0, None, true)
                .is_none()
        );
    }
}
