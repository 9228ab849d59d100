//! More interpreters for a version while requests wait for one, fewer when they have nothing to do.
//!
//! Between what a version always has and what it may grow to, and only while the cores are not others': growing asks
//! the one CPU budget, and a version that was loaded meanwhile gets its share back.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use edgeward_models::name::DelegateName;
use tracing::{debug, info};

use super::engine::Shared;
use super::loaded::Loaded;
use crate::worker::Worker;
use crate::worker::cpu::usable_cores;

/// How often a version is looked at while it has requests, and while it has none.
const LOOK_BUSY: Duration = Duration::from_millis(50);
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// Looks in a row that must find requests waiting.
const GROW_AFTER: u32 = 3;
/// How long an interpreter must have been too many.
const SHRINK_AFTER: Duration = Duration::from_secs(5);

/// What was seen of one version lately.
#[derive(Debug, Default)]
struct Demand {
    /// Looks in a row that found more requests than interpreters.
    waiting: u32,
    /// Since when there have been fewer.
    slack_since: Option<Instant>,
}

impl Demand {
    /// How many interpreters there should be, of so many that there are.
    fn wants(&mut self, requests: usize, interpreters: usize, now: Instant) -> usize {
        self.waiting = if requests > interpreters {
            self.waiting + 1
        } else {
            0
        };
        if requests >= interpreters {
            self.slack_since = None;
        }
        if self.waiting >= GROW_AFTER {
            self.waiting = 0;
            return interpreters + 1;
        }
        if requests < interpreters {
            let since = *self.slack_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= SHRINK_AFTER {
                self.slack_since = None;
                return interpreters - 1;
            }
        }
        interpreters
    }
}

/// Keeps a version's interpreters at what its requests need, while its worker runs.
pub(super) async fn scale(shared: &Shared, loaded: &Loaded) -> Infallible {
    let grant = loaded.grant;
    let grows = |worker: &Worker| grant.most > grant.instances && can_grow(shared, loaded, worker);
    if !loaded.worker().is_some_and(|worker| grows(&worker)) {
        return std::future::pending().await;
    }
    let manifest = loaded.manifest();
    let cores = usable_cores(shared.config.tflite.cores);
    let mut demand = Demand::default();
    let mut pause = LOOK_IDLE;
    loop {
        tokio::time::sleep(pause).await;
        // Held no longer than a look takes.
        let Some(worker) = loaded.worker() else {
            continue;
        };
        let (requests, interpreters) = (worker.in_flight(), worker.interpreters());
        pause = if requests > 0 { LOOK_BUSY } else { LOOK_IDLE };
        let wanted = demand.wants(requests, interpreters, Instant::now());
        // Without a pause between the sum and the change: nobody else has grown in between.
        let taken = shared.threads_running();
        let wanted = if taken > cores && interpreters > grant.instances {
            interpreters - 1
        } else if taken + grant.threads > cores {
            wanted.min(interpreters)
        } else {
            wanted
        };
        let wanted = wanted.clamp(grant.instances, grant.most);
        if wanted == interpreters {
            continue;
        }
        match worker.set_interpreters(wanted).await {
            Ok(()) => info!(
                model = %manifest.model, version = %manifest.version, requests,
                interpreters = wanted, "interpreters"
            ),
            // Its death is about to be noticed.
            Err(error) => debug!(%error, "interpreters"),
        }
    }
}

/// A model that keeps state has an interpreter for each sequence; a plugin may need files that a sealed worker cannot
/// open.
fn can_grow(shared: &Shared, loaded: &Loaded, worker: &Worker) -> bool {
    let delegate = loaded.active().delegate;
    let own = [DelegateName::BUILTIN, DelegateName::XNNPACK].contains(&delegate.as_str());
    let profile = shared.config.delegates.get(&delegate);
    let opens = profile.is_some_and(|profile| profile.opens_files_late);
    !worker.facts().keeps_state && (own || opens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_wait_bring_an_interpreter_and_one_that_waits_for_long_goes() {
        let mut demand = Demand::default();
        let start = Instant::now();
        assert_eq!(demand.wants(2, 1, start), 1);
        assert_eq!(demand.wants(1, 1, start), 1, "a short burst");
        for _ in 1..GROW_AFTER {
            assert_eq!(demand.wants(2, 1, start), 1);
        }
        assert_eq!(demand.wants(5, 1, start), 2);
        assert_eq!(demand.wants(1, 2, start), 2);
        assert_eq!(demand.wants(2, 2, start + SHRINK_AFTER), 2, "it has work");
        assert_eq!(demand.wants(1, 2, start + SHRINK_AFTER), 2);
        assert_eq!(demand.wants(0, 2, start + SHRINK_AFTER * 2), 1);
    }
}
