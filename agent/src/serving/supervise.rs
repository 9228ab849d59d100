//! What happens after a worker's death: blame, a pause, a fresh worker that must prove itself again. One that was
//! unloaded on purpose is followed by another when somebody asks, and by nothing before.
//!
//! One task per loaded version, started by `activate`, ended by `Loaded::end`. It alone replaces the worker.
//! Crashes on several different inputs first cost the delegate its place; when no delegate is left, the fleet
//! side is told once ([`EngineEvent::Failing`]) and this version goes on trying, with growing pauses: it may be
//! the only one on the device.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use edgeward_models::Digest;
use edgeward_models::fleet::status::RefusedDelegate;
use tracing::{error, info, warn};

use super::aside::aside;
use super::doubt::ask_when_in_doubt;
use super::engine::{EngineEvent, Shared};
use super::error::LoadFailure;
use super::loaded::{Loaded, Outage};
use super::memory::Room;
use super::proof::{Proven, Prover, last_words};
use super::scale::scale;
use crate::worker::WorkerDeath;

/// The first pause before a restart; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A worker that lived this long ends the episode: pauses start small again.
const QUIET: Duration = Duration::from_secs(60);
/// Crashes count together within this time.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// Different inputs that must have crashed before the delegate, not an input, is to blame.
const DIFFERENT_INPUTS: usize = 3;

/// Delegates that are passed over, by index into the manifest's list.
pub(super) type Skipped = Vec<(usize, RefusedDelegate)>;

/// Watches a version until it ends. `choice` and `skipped` are what proving it found.
pub(super) async fn supervise(
    shared: Arc<Shared>,
    loaded: Arc<Loaded>,
    choice: usize,
    skipped: Skipped,
) {
    tokio::select! {
        () = loaded.ended() => {}
        () = restart_forever(&shared, &loaded, choice, skipped) => {}
    }
}

async fn restart_forever(
    shared: &Arc<Shared>,
    loaded: &Arc<Loaded>,
    choice: usize,
    skipped: Skipped,
) {
    let mut restarts = Restarts {
        choice,
        skipped,
        episode: Episode::default(),
    };
    loop {
        // What waits for the death does not keep the worker alive.
        let died = loaded.worker().map(|worker| worker.died());
        let started = Instant::now();
        let death = match died {
            Some(died) => tokio::select! {
                death = died => Some(death),
                never = ask_when_in_doubt(shared, loaded) => match never {},
                never = shared.look_after(loaded) => match never {},
                never = scale(shared, loaded) => match never {},
            },
            None => None,
        };
        let recovers = if loaded.unloaded().is_some() {
            loaded.wanted().await;
            let found = "it is being loaded again".to_owned();
            let at_once = restarts.serve_again(shared, loaded, Duration::ZERO, found);
            let at_once = at_once.await;
            loaded.unloads.reloads.fetch_add(1, Ordering::Relaxed);
            !at_once
        } else if let Some(death) = death {
            let (pause, reason) = restarts.died(shared, loaded, &death, started);
            restarts.serve_again(shared, loaded, pause, reason).await;
            true
        } else {
            return;
        };
        let manifest = loaded.manifest();
        info!(model = %manifest.model, version = %manifest.version, "serving again");
        if recovers {
            shared.tell(EngineEvent::Recovered {
                model: manifest.model.clone(),
                version: manifest.version.clone(),
            });
        }
    }
}

/// What restarting a version remembers from one worker to the next.
struct Restarts {
    /// Which of the manifest's delegates it runs on.
    choice: usize,
    skipped: Skipped,
    episode: Episode,
}

impl Restarts {
    /// Takes note of a death: who is to blame, and how long to wait, with the reason.
    fn died(
        &mut self,
        shared: &Shared,
        loaded: &Loaded,
        death: &WorkerDeath,
        started: Instant,
    ) -> (Duration, String) {
        let manifest = loaded.manifest();
        let now = Instant::now();
        if now.duration_since(started) >= QUIET {
            self.episode.pauses = 0;
        }
        let pause = self.episode.next_pause();
        let mut reason = format!("{}{}", death.reason, last_words(&death.stderr));
        loaded.set_down(Outage {
            reason: format!("the worker died ({}) and is being restarted", death.reason),
            retry_at: now + pause,
        });
        loaded.stats.crashed();
        loaded.poison.blame(&death.suspects, now);
        warn!(
            model = %manifest.model, version = %manifest.version, reason,
            suspects = death.suspects.len(), pause_ms = pause.as_millis() as u64, "worker died"
        );
        shared.tell(EngineEvent::Crashed {
            model: manifest.model.clone(),
            version: manifest.version.clone(),
            reason: reason.clone(),
        });
        if self.episode.crashed(death, now) {
            let delegate = manifest.delegates[self.choice].delegate.clone();
            let how = if death.suspects.is_empty() {
                "failed again and again".to_owned()
            } else {
                format!("crashed on {DIFFERENT_INPUTS} different inputs")
            };
            reason = format!("{how}, the last time: {reason}");
            warn!(
                model = %manifest.model, version = %manifest.version, %delegate, reason,
                "delegate put aside"
            );
            let reason = reason.clone();
            let refused = RefusedDelegate { delegate, reason };
            self.skipped.push((self.choice, refused));
        }
        (pause, reason)
    }

    /// Tries until a worker serves again; true: the first one did.
    async fn serve_again(
        &mut self,
        shared: &Arc<Shared>,
        loaded: &Arc<Loaded>,
        mut pause: Duration,
        mut reason: String,
    ) -> bool {
        let mut at_once = true;
        loop {
            if all_skipped(loaded, &self.skipped) {
                self.episode.failing(shared, loaded, &reason);
                // Nothing is left to lose: every delegate gets another chance.
                self.skipped.clear();
            }
            tokio::time::sleep(pause).await;
            let proving = prove(shared.clone(), loaded.clone(), self.skipped.clone());
            // Callers wait for this one: it has the priority of their requests.
            match aside(loaded.manifest(), 0, proving).await {
                Ok((proven, _room)) => {
                    self.choice = proven.choice;
                    self.skipped.clone_from(&proven.refused);
                    loaded.set_up(proven);
                    return at_once;
                }
                Err(failure) => {
                    at_once = false;
                    pause = self.episode.next_pause();
                    reason.clone_from(&failure.reason);
                    loaded.set_down(Outage {
                        reason: format!("no worker could be started: {reason}"),
                        retry_at: Instant::now() + pause,
                    });
                    if !failure.device_fault {
                        self.episode.failing(shared, loaded, &reason);
                    }
                    self.skipped.clear();
                }
            }
        }
    }
}

/// A worker that passed everything, in memory that was set aside for it.
async fn prove(
    shared: Arc<Shared>,
    loaded: Arc<Loaded>,
    skipped: Skipped,
) -> Result<(Proven, Room), LoadFailure> {
    let manifest = loaded.manifest();
    let room = shared.room_for(&manifest.model, loaded.expected_bytes());
    let room = room.await;
    let mut room = room.map_err(|reason| LoadFailure::new(manifest, reason, true))?;
    let prover = Prover::new(&shared.config, &shared.spawner, loaded.grant);
    let proven = prover.prove(&loaded.subject, &skipped).await?;
    room.becomes(proven.worker.memory_bytes());
    Ok((proven, room))
}

fn all_skipped(loaded: &Loaded, skipped: &Skipped) -> bool {
    let all = 0..loaded.manifest().delegates.len();
    all.into_iter()
        .all(|index| skipped.iter().any(|(skipped, _)| *skipped == index))
}

/// A run of crashes that belong together.
#[derive(Debug, Default)]
struct Episode {
    /// Restarts since the last quiet time.
    pauses: u32,
    /// When the worker died, and on what; `None`: while nothing ran.
    crashes: VecDeque<(Instant, Option<Digest>)>,
    /// When the fleet side was told that this version is failing.
    told: Option<Instant>,
}

impl Episode {
    fn next_pause(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.pauses).unwrap_or(u32::MAX);
        self.pauses = (self.pauses + 1).min(31);
        FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
    }

    /// Counts a death. True when the delegate is to blame; the count then starts anew, for the next one.
    fn crashed(&mut self, death: &WorkerDeath, now: Instant) -> bool {
        while self
            .crashes
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        {
            self.crashes.pop_front();
        }
        self.crashes
            .push_back((now, death.suspects.first().copied()));
        let inputs: HashSet<_> = self.crashes.iter().filter_map(|(_, d)| *d).collect();
        // A death while nothing ran can be no input's fault: each counts.
        let idle = self.crashes.iter().filter(|(_, d)| d.is_none()).count();
        let blamed = inputs.len() + idle >= DIFFERENT_INPUTS;
        if blamed {
            self.crashes.clear();
        }
        blamed
    }

    /// Tells the fleet side, once per episode.
    fn failing(&mut self, shared: &Shared, loaded: &Loaded, reason: &str) {
        let now = Instant::now();
        if self.told.is_some_and(|at| now.duration_since(at) < WINDOW) {
            return;
        }
        self.told = Some(now);
        let manifest = loaded.manifest();
        error!(model = %manifest.model, version = %manifest.version, reason, "version is failing");
        shared.tell(EngineEvent::Failing {
            model: manifest.model.clone(),
            version: manifest.version.clone(),
            reason: reason.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(input: Option<&[u8]>) -> WorkerDeath {
        WorkerDeath {
            reason: "killed by signal 11 (SIGSEGV)".to_owned(),
            stderr: String::new(),
            suspects: input.map(Digest::of).into_iter().collect(),
        }
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut episode = Episode::default();
        let pauses: Vec<_> = (0..40).map(|_| episode.next_pause().as_millis()).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[39], 30_000);
        assert!(pauses.is_sorted());
    }

    #[test]
    fn one_input_alone_never_costs_the_delegate_its_place() {
        let mut episode = Episode::default();
        let now = Instant::now();
        for _ in 0..10 {
            assert!(!episode.crashed(&death(Some(b"a")), now));
        }
        assert!(!episode.crashed(&death(Some(b"b")), now));
        assert!(episode.crashed(&death(Some(b"c")), now));
        // The next delegate starts with a clean count.
        assert!(!episode.crashed(&death(Some(b"a")), now));
    }

    #[test]
    fn crashes_far_apart_do_not_add_up() {
        let mut episode = Episode::default();
        let start = Instant::now();
        assert!(!episode.crashed(&death(Some(b"a")), start));
        assert!(!episode.crashed(&death(None), start));
        assert!(!episode.crashed(&death(None), start + WINDOW));
        assert!(!episode.crashed(&death(Some(b"b")), start + WINDOW));
        assert!(episode.crashed(&death(None), start + WINDOW));
    }
}
