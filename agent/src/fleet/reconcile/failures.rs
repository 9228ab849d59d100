//! What becomes of a version that failed: tried again after a pause, quarantined, or replaced by the one before.

use std::sync::atomic::Ordering;

use edgeward_models::fleet::status::Phase;
use edgeward_models::name::RolloutId;
use edgeward_models::{ModelName, Version};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

use super::{Attempt, Kind, Reconciler, Running};
use crate::fleet::job::{FaultKind, JobError, Role, clock};
use crate::fleet::state::Quarantined;
use crate::serving::EngineEvent;

impl Reconciler {
    pub(super) fn job_failed(&mut self, model: &ModelName, running: Running, error: JobError) {
        let Running {
            kind,
            version,
            rollout,
            ..
        } = running;
        if kind == Kind::Reload {
            return self.reload_failed(model, version, rollout, error);
        }
        warn!(%model, %version, problem = %error.reason, "version not taken; what serves goes on");
        if kind == Kind::Wish && error.kind == FaultKind::Version {
            self.quarantine(model, &version, rollout.clone(), &error.reason);
        }
        if error.kind == FaultKind::Content {
            let fields = json!({"model": model, "version": version, "reason": error.reason});
            let first = self
                .attempts
                .get(model)
                .is_none_or(|a| a.error.reason != error.reason);
            if first {
                self.workshop.note("version-refused", fields);
            }
        }
        self.workshop.board.model(model, |line| {
            line.reason = Some(error.reason.clone());
            line.phase = match (kind, error.kind) {
                // Not refused: it goes on when the carrier is back.
                (Kind::Wish, FaultKind::Carrier) => match line.phase {
                    Phase::Fetching { have, of } => Phase::Fetching { have, of },
                    _ => Phase::Fetching { have: 0, of: 0 },
                },
                (Kind::Wish, _) => Phase::Refused,
                _ => Phase::BackingOff,
            };
        });
        self.workshop
            .board
            .error(format!("{model} {version}: {}", error.reason));
        let attempt = Attempt::after(self.attempts.get(model), version, rollout, error);
        self.attempts.insert(model.clone(), attempt);
    }

    fn reload_failed(
        &mut self,
        model: &ModelName,
        version: Version,
        rollout: Option<RolloutId>,
        error: JobError,
    ) {
        warn!(%model, %version, problem = %error.reason, "the active version still does not run");
        self.workshop.engine.lacks(model, &error.reason);
        // What became of a wish says more.
        if !self.attempts.contains_key(model) && !self.running.contains_key(model) {
            self.workshop.board.model(model, |line| {
                line.reason = Some(error.reason.clone());
                line.phase = Phase::BackingOff;
            });
        }
        self.workshop
            .board
            .error(format!("{model} {version}: {}", error.reason));
        let attempt = Attempt::after(self.reloads.get(model), version, rollout, error);
        self.reloads.insert(model.clone(), attempt);
    }

    pub(super) fn quarantine(
        &mut self,
        model: &ModelName,
        version: &Version,
        rollout: Option<RolloutId>,
        reason: &str,
    ) {
        let record = self.records.get(model).cloned().unwrap_or_default();
        let next = record.quarantine(Quarantined {
            version: version.clone(),
            rollout: rollout.clone(),
            reason: reason.to_owned(),
            at: clock(),
        });
        let fields =
            json!({"model": model, "version": version, "rollout": rollout, "reason": reason});
        let figure = &self.workshop.board.figures.quarantines;
        figure.fetch_add(1, Ordering::Relaxed);
        // If this cannot be written the attempt's own pause still keeps it from being tried in a loop.
        let _ = self.commit(model, "version-quarantined", fields, next);
    }

    pub(super) fn engine_event(&mut self, event: Result<EngineEvent, RecvError>) {
        if let Ok(EngineEvent::Failing {
            model,
            version,
            reason,
        }) = &event
            && !self.beside_failing(model, version, reason)
        {
            self.failing(model, version, reason);
        }
        if let Ok(EngineEvent::Crashed {
            model,
            version,
            reason,
        }) = &event
        {
            self.workshop
                .board
                .error(format!("{model} {version}: {reason}"));
            self.crashed(model, version, reason);
        }
        self.workshop.board.touch();
    }

    /// The engine has given a version up: the one before takes over, if there is one.
    fn failing(&mut self, model: &ModelName, version: &Version, reason: &str) {
        let Some(record) = self.records.get(model) else {
            return;
        };
        let (Some(active), true) = (record.active.clone(), record.previous.is_some()) else {
            warn!(%model, %version, reason, "version keeps failing and is the only one; it is tried on");
            return;
        };
        if active.version != *version
            || self
                .running
                .get(model)
                .is_some_and(|r| r.kind == Kind::PutBack)
        {
            return;
        }
        self.quarantine(model, version, active.rollout, reason);
        self.put_back_previous(model, version, reason);
    }

    /// Has the version before take over from this one, unless it is about to.
    pub(super) fn put_back_previous(&mut self, model: &ModelName, version: &Version, reason: &str) {
        let previous = self.records.get(model).and_then(|r| r.previous.clone());
        let running = self.running.get(model);
        let Some(previous) = previous.filter(|_| running.is_none_or(|r| r.kind != Kind::PutBack))
        else {
            return;
        };
        warn!(%model, %version, reason, previous = %previous.version, "version fails; the previous one is put back");
        if let Some(running) = self.running.remove(model) {
            running.abort.abort();
        }
        if self.put_back_kept(model, version, &previous) {
            return;
        }
        let job = self.workshop.clone();
        let job = job.load(model.clone(), previous.clone(), Role::Active);
        let (version, rollout) = (previous.version, previous.rollout);
        self.spawn(model, Kind::PutBack, version, rollout, job);
    }
}
