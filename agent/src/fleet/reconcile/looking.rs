//! Looking at repositories: when, at which, and what is said of what was found there.
//!
//! One look at a time; of the broker's timestamps only the newest one matters, and however many it shows, they
//! are looked at no faster than [`Pace`](super::pace::Pace) allows. A look that failed is repeated after a growing
//! pause. A person who holds a directory out goes first: a look at the broker gives way and begins anew later.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use edgeward_models::Digest;
use edgeward_models::chunk::{ChunkError, Source};
use edgeward_models::verify::VerifyError;
use serde_json::json;
use tracing::{error, info, warn};

use super::import::{ImportEvent, ImportOutcome, answer};
use super::{LookRequest, Membership, Reconciler};
use crate::fleet::board::chain;
use crate::fleet::goal::{self, Goal, Looked};
use crate::fleet::pause;

impl Reconciler {
    pub(super) fn heard(&mut self, remote: Option<&Arc<dyn Source>>, payload: Option<Bytes>) {
        let (Some(source), Some(payload)) = (remote, payload) else {
            return;
        };
        let digest = Digest::of(&payload);
        self.heard = Some(digest);
        if self.seen == Some(digest) {
            return;
        }
        let now = Instant::now();
        let wait = self.pace.wait(now);
        if !wait.is_zero() {
            let due = now + wait;
            self.look_at = Some(self.look_at.map_or(due, |at| at.min(due)));
            return;
        }
        self.pace.look(now, self.look_failures);
        // Only the newest of what waits matters.
        self.waiting_looks.retain(|look| look.import.is_some());
        self.look_at_broker(source);
    }

    fn look_at_broker(&mut self, source: &Arc<dyn Source>) {
        self.waiting_looks.push_back(LookRequest {
            source: source.clone(),
            timestamp: self.heard,
            import: None,
        });
        self.next_look();
    }

    /// A look that a person waits for goes before those that nobody asked for.
    pub(super) fn look_first(&mut self, request: LookRequest) {
        let imports = self.waiting_looks.iter().filter(|l| l.import.is_some());
        self.waiting_looks.insert(imports.count(), request);
        if let Some((task, under_way)) = &self.looking
            && under_way.import.is_none()
        {
            // `looked` takes it up again.
            task.abort();
        }
        self.next_look();
    }

    pub(super) fn look_again(&mut self, remote: Option<&Arc<dyn Source>>) {
        self.look_at = None;
        self.refresh_age();
        let waiting = self.looking.is_some() || !self.waiting_looks.is_empty();
        let connected = self.workshop.board.facts().connected;
        if let (Some(source), true, false) = (remote, connected, waiting) {
            self.look_at_broker(source);
        }
    }

    /// Metadata grows old without anybody saying so.
    pub(super) fn refresh_age(&self) {
        self.tell_certificate();
        let Some(membership) = self.membership.clone() else {
            return;
        };
        let Ok(trust) = membership.trust.try_lock() else {
            return;
        };
        self.workshop.board.trusts(trust.trusted_time());
        let now = jiff::Timestamp::now();
        if let Ok(Some(repository)) = trust.current(now, membership.policy) {
            let (stale, version) = (repository.stale(), repository.timestamp_version());
            self.workshop
                .board
                .warn("trust", repository.ends().to_vec());
            self.workshop.board.change(|facts| {
                facts.stale = stale;
                facts.timestamp_version = version;
            });
        }
    }

    pub(super) fn next_look(&mut self) {
        if self.looking.is_some() {
            return;
        }
        let (Some(membership), Some(request)) =
            (self.membership.clone(), self.waiting_looks.pop_front())
        else {
            return;
        };
        let (source, applied) = (request.source.clone(), self.applied.clone());
        let local = request.import.is_some();
        let task = tokio::spawn(async move {
            let Membership {
                device,
                trust,
                policy,
                ..
            } = &*membership;
            goal::look(trust, source, device, *policy, &applied, local).await
        });
        self.looking = Some((task, request));
    }

    pub(super) async fn looked(
        &mut self,
        looked: Result<Result<Looked, VerifyError>, tokio::task::JoinError>,
    ) {
        let Some((_, request)) = self.looking.take() else {
            return;
        };
        if let Some(membership) = &self.membership {
            membership
                .clock
                .prove(membership.trust.lock().await.trusted_time());
        }
        match looked {
            Ok(Ok(Looked::Goal(goal))) => self.accept(goal, request),
            Ok(Ok(Looked::Older { offered, known })) => {
                self.seen = request.timestamp.or(self.seen);
                info!(
                    offered,
                    known, "an older repository was offered; nothing to do"
                );
                let line = format!(
                    "the repository is older (timestamp {offered}) than what this device already has ({known}); \
                     nothing to do"
                );
                if request.import.is_none() {
                    self.workshop.board.error(format!(
                        "the broker offers an older repository (timestamp {offered}, known {known}); \
                         `fleetctl sync` from the newest repository mends that"
                    ));
                }
                answer(request.import, ImportOutcome::Older, vec![line]);
            }
            Ok(Err(error)) => self.look_failed(error, request),
            Err(gave_way) if gave_way.is_cancelled() => self.waiting_looks.push_back(request),
            Err(join_error) => {
                error!(%join_error, "a look at the repository ended early");
                let line = "an internal error ended the import; see the agent's log".to_owned();
                answer(request.import, ImportOutcome::Failed, vec![line]);
            }
        }
        self.refresh_age();
        self.next_look();
    }

    fn look_failed(&mut self, error: VerifyError, request: LookRequest) {
        if request.import.is_none() {
            self.look_failures += 1;
            self.look_at = Some(Instant::now() + pause::after(self.look_failures));
        }
        let text = chain(&error);
        // A broker that lost everything, or somebody who hides it, is no reason to cry wolf.
        // A disk that is full is this device's own trouble.
        let trouble = matches!(
            error,
            VerifyError::Missing { .. }
                | VerifyError::Durable(_)
                | VerifyError::Chunk(ChunkError::Source(_) | ChunkError::Missing(_))
        );
        if trouble {
            warn!(problem = %text, "repository could not be read");
        } else {
            warn!(problem = %text, "repository refused; what is installed serves on");
            let class = error.class();
            // Whatever a person brings is recorded; what the broker can repeat without end is counted.
            let times = match request.import {
                Some(_) => Some(1),
                None => self.refusals.count(class, Instant::now()),
            };
            if let Some(times) = times {
                let fields = json!({"class": class, "times": times, "reason": text});
                self.workshop.note("metadata-refused", fields);
            }
        }
        self.workshop.board.error(text.clone());
        let outcome = if trouble {
            ImportOutcome::Failed
        } else {
            ImportOutcome::Refused
        };
        answer(request.import, outcome, vec![text]);
    }

    fn accept(&mut self, goal: Goal, request: LookRequest) {
        self.seen = request.timestamp.or(self.seen);
        self.look_failures = 0;
        let mut applied = self.applied.clone();
        for group in &goal.groups {
            applied.groups.insert(group.group.clone(), group.sequence);
        }
        if applied != self.applied {
            let recorded = self
                .workshop
                .audit
                .record(
                    "desired-state-accepted",
                    json!({"groups": applied.groups, "timestamp": goal.repository.timestamp_version()}),
                )
                .map_err(|e| chain(&e))
                .and_then(|()| {
                    self.workshop
                        .state
                        .write_applied(&applied)
                        .map_err(|e| chain(&e))
                });
            if let Err(problem) = recorded {
                // Without the record the sequence could go back later: do not act on it.
                error!(%problem, "desired state could not be recorded and is not applied");
                self.seen = None;
                self.workshop.board.error(problem.clone());
                answer(request.import, ImportOutcome::Failed, vec![problem]);
                return;
            }
            self.applied = applied;
        }
        for note in &goal.notes {
            warn!(note, "desired state");
        }
        self.workshop.board.change(|facts| {
            facts.groups.clone_from(&goal.groups);
            facts.timestamp_version = goal.repository.timestamp_version();
            facts.stale = goal.repository.stale();
            facts.last_error = goal.notes.first().cloned();
        });
        if let Some(certificate) = &goal.certificate {
            self.renew(certificate);
        }
        self.tell_removal(goal.removed);
        if let Some(import) = request.import {
            let groups = goal.groups.iter().map(|g| g.group.to_string());
            let text = format!(
                "verified; groups: {}",
                groups.collect::<Vec<_>>().join(", ")
            );
            let _ = import.try_send(ImportEvent::Progress(text));
            self.import = Some(import);
            // Somebody stands there and waits: earlier failures are no reason to.
            for attempt in self.attempts.values_mut() {
                attempt.again = Instant::now();
            }
            self.beside.hurry(|_| true);
        }
        // What this repository holds may mend what is damaged here.
        for attempt in self.reloads.values_mut() {
            attempt.again = Instant::now();
        }
        let goal = Arc::new(goal);
        self.accept_routings(&goal);
        self.retire_unwished(&goal);
        self.goal = Some(goal);
        self.steer();
    }
}
