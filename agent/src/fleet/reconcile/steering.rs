//! From wishes to jobs: every wish is compared with what runs, and what is missing is started.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::fleet::rollout::{Wish, model_target};
use edgeward_models::fleet::status::Phase;
use edgeward_models::manifest::MANIFEST_FILE;
use edgeward_models::name::RolloutId;
use edgeward_models::{ModelName, Version};
use serde_json::json;
use tracing::{info, warn};

use super::{Kind, Reconciler, Running};
use crate::fleet::board::chain;
use crate::fleet::goal::{self, Goal, Target};
use crate::fleet::job::{JobError, Ready, Role};
use crate::fleet::pause;
use crate::fleet::state::{ModelRecord, Pointer};

/// The clock is asked at least this often whether a window is open.
const WINDOW_LOOK: Duration = Duration::from_secs(60);

impl Reconciler {
    /// Compares every wish with what runs.
    pub(super) fn steer(&mut self) {
        self.window_look = None;
        if let Some(goal) = self.goal.clone() {
            for (model, wish) in &goal.wishes {
                self.steer_model(&goal, model, wish);
            }
        }
        self.reload_absent();
        self.steer_beside();
        // What was due and not taken up has nothing to try at present; it must not keep this task awake.
        let now = Instant::now();
        for (model, attempt) in &mut self.attempts {
            if attempt.again <= now && !self.running.contains_key(model) {
                attempt.again = now + pause::LONGEST;
            }
        }
    }

    fn steer_model(&mut self, goal: &Arc<Goal>, model: &ModelName, wish: &Wish) {
        let Some(membership) = self.membership.clone() else {
            return;
        };
        let record = self.records.get(model).cloned().unwrap_or_default();
        self.workshop.board.model(model, |line| {
            line.rollout = Some(wish.rollout.clone());
        });
        let has_something = record.active.is_some();
        let version = match goal::target(wish, &membership.device, has_something) {
            Target::Run(version) => version,
            Target::NotYet => {
                self.supersede(model, None);
                let percent = wish.percent;
                self.show(
                    model,
                    Some(&wish.version),
                    Phase::Waiting,
                    Some(format!("not among the first {percent} % of the rollout")),
                );
                return;
            }
        };
        let rollout = Some(wish.rollout.clone());
        if let Some(problem) = changed_bytes(goal, model, &version, &record) {
            self.supersede(model, None);
            self.show(model, Some(&version), Phase::Refused, Some(problem));
            return;
        }
        if record.active.as_ref().is_some_and(|a| a.version == version) {
            self.supersede(model, None);
            self.adopt_rollout(model, &record, wish);
            self.attempts.remove(model);
            if self.served(model) {
                let reason = record.soak.and_then(|soak| soak.failed);
                self.show(model, Some(&version), Phase::Active, reason);
            }
            return;
        }
        if let Some(running) = self.running.get(model) {
            // What a directory holds out need not wait for a broker.
            let same = running.version == version
                && running.rollout == rollout
                && (running.local || !goal.local);
            if same || running.kind == Kind::PutBack {
                return;
            }
        }
        self.supersede(model, Some(&version));
        if self.comes_beside(goal, model, &version) {
            return;
        }
        if let Some(reason) = record.barred(&version, rollout.as_ref()) {
            let reason = format!("{version} failed on this device: {reason}");
            self.show(model, Some(&version), Phase::Refused, Some(reason));
            return;
        }
        if let Some(bar) = &goal.bar {
            let reason = format!("nothing new is installed: {bar}");
            self.show(model, Some(&version), Phase::Refused, Some(reason));
            return;
        }
        let mut delay = Duration::ZERO;
        if let Some(attempt) = self.attempts.get(model) {
            let same = attempt.version == version && attempt.rollout == rollout;
            if same && attempt.again > Instant::now() {
                return;
            }
            if !same {
                self.attempts.remove(model);
            }
        }
        // The jitter spares the broker at a rollout's start; a retry has its own pause.
        let retry = self.attempts.contains_key(model);
        if !goal.local && !retry {
            delay = wish.start_delay(&membership.device);
        }
        let back = record.previous.as_ref().map(|p| &p.version) == Some(&version);
        if has_something
            && !goal.local
            && !back
            && let Some(reason) = self.closed()
        {
            return self.show(model, Some(&version), Phase::Waiting, Some(reason));
        }
        self.workshop.board.model(model, |line| {
            line.target = Some(version.clone());
            line.previous = record.previous.as_ref().map(|p| p.version.clone());
            // The refusal of an earlier wish must not be read as the answer to this one.
            if !retry {
                line.phase = Phase::Fetching { have: 0, of: 0 };
                line.reason = None;
            }
        });
        let job = self.workshop.clone().obtain(
            goal.clone(),
            model.clone(),
            version.clone(),
            wish.clone(),
            delay,
            Role::Active,
        );
        self.spawn(model, Kind::Wish, version, rollout, job);
    }

    /// Why no new version may be taken now, if none may; it is looked at again when a window opens.
    fn closed(&mut self) -> Option<String> {
        let now = jiff::Timestamp::now();
        let opens = self.workshop.config.maintenance.opens(now)?;
        let left = opens.timestamp().duration_since(now);
        let left = Duration::try_from(left).unwrap_or_default();
        // A clock that is put right meanwhile is noticed.
        let again = Instant::now() + left.clamp(Duration::from_secs(1), WINDOW_LOOK);
        self.window_look = Some(self.window_look.map_or(again, |at| at.min(again)));
        Some(format!(
            "waiting for window: it opens {}",
            opens.strftime("%a %Y-%m-%d %H:%M %:z")
        ))
    }

    /// A later rollout of the version that runs already: failures from now on count for that one.
    fn adopt_rollout(&mut self, model: &ModelName, record: &ModelRecord, wish: &Wish) {
        let mut next = record.clone();
        let Some(active) = next.active.as_mut() else {
            return;
        };
        if active.version == wish.version && active.rollout.as_ref() != Some(&wish.rollout) {
            active.rollout = Some(wish.rollout.clone());
            match self.workshop.state.write_record(model, &next) {
                Ok(()) => {
                    self.records.insert(model.clone(), next);
                }
                Err(e) => warn!(%model, problem = %chain(&e), "pointer could not be written"),
            }
        }
    }

    /// Ends a job that works towards something else than `version`.
    fn supersede(&mut self, model: &ModelName, version: Option<&Version>) {
        let ends = self
            .running
            .get(model)
            .is_some_and(|r| r.kind == Kind::Wish);
        if ends && let Some(running) = self.running.remove(model) {
            running.abort.abort();
            info!(%model, superseded = %running.version, by = ?version, "installation superseded");
        }
    }

    /// Tries again to bring active versions back that do not serve. One that is damaged is fetched anew, if the
    /// repository still holds the same bytes.
    fn reload_absent(&mut self) {
        let due: Vec<ModelName> = self
            .reloads
            .iter()
            .filter(|(model, attempt)| {
                attempt.again <= Instant::now() && !self.reloading.contains_key(*model)
            })
            .map(|(model, _)| model.clone())
            .collect();
        for model in due {
            let active = self.records.get(&model).and_then(|r| r.active.clone());
            let Some(active) = active.filter(|_| !self.served(&model)) else {
                self.reloads.remove(&model);
                continue;
            };
            let Pointer {
                version, rollout, ..
            } = active.clone();
            let goal = self.goal.clone();
            let offered = goal.and_then(|goal| {
                let wish = goal.wishes.get(&model)?.clone();
                let name = model_target(&model, &version, MANIFEST_FILE);
                let same = goal.repository.target(&name)?.sha256 == active.manifest_digest;
                same.then_some((goal, wish))
            });
            let workshop = self.workshop.clone();
            let (name, of) = (model.clone(), version.clone());
            let job = async move {
                match offered {
                    Some((goal, wish)) => {
                        let now = Duration::ZERO;
                        workshop
                            .obtain(goal, name, of, wish, now, Role::Active)
                            .await
                    }
                    None => workshop.load(name, active, Role::Active).await,
                }
            };
            self.spawn(&model, Kind::Reload, version, rollout, job);
        }
    }

    pub(super) fn spawn(
        &mut self,
        model: &ModelName,
        kind: Kind,
        version: Version,
        rollout: Option<RolloutId>,
        job: impl Future<Output = Result<Ready, JobError>> + Send + 'static,
    ) {
        let abort = self.jobs.spawn(job);
        let local = self.goal.as_ref().is_some_and(|goal| goal.local);
        let running = Running {
            abort,
            kind,
            local,
            version,
            rollout,
        };
        let jobs = match kind {
            Kind::Reload => &mut self.reloading,
            Kind::Wish | Kind::PutBack => &mut self.running,
        };
        jobs.insert(model.clone(), running);
    }

    fn served(&self, model: &ModelName) -> bool {
        self.workshop
            .engine
            .models()
            .iter()
            .any(|m| m.model == *model)
    }

    fn show(
        &self,
        model: &ModelName,
        target: Option<&Version>,
        phase: Phase,
        reason: Option<String>,
    ) {
        let previous = self.records.get(model).and_then(|r| r.previous.as_ref());
        let soak = self.soak_shown(model, phase);
        self.workshop.board.model(model, |line| {
            line.target = target.cloned();
            line.previous = previous.map(|p| p.version.clone());
            line.phase = phase;
            line.soak = soak;
            line.reason = reason;
        });
    }

    /// Models that no group wishes for any more are let go; their files stay until they are in the way.
    pub(super) fn retire_unwished(&mut self, goal: &Goal) {
        if !goal.complete {
            return;
        }
        let unwished: Vec<ModelName> = self
            .records
            .iter()
            .filter(|(model, record)| record.active.is_some() && !goal.wishes.contains_key(*model))
            .map(|(model, _)| model.clone())
            .collect();
        for model in unwished {
            for jobs in [&mut self.running, &mut self.reloading] {
                if let Some(running) = jobs.remove(&model) {
                    running.abort.abort();
                }
            }
            let Some(record) = self.records.get(&model) else {
                continue;
            };
            let next = record.retired();
            let fields =
                json!({"model": model, "version": next.previous.as_ref().map(|p| &p.version)});
            if self.commit(&model, "model-retired", fields, next).is_ok() {
                info!(%model, "no group wishes for this model any more; it is retired");
                self.attempts.remove(&model);
                self.reloads.remove(&model);
                self.forget_routing(&model);
                let (engine, name) = (self.workshop.engine.clone(), model.clone());
                self.workshop
                    .serving
                    .spawn(async move { engine.retire(&name).await });
                self.workshop.board.change(|facts| {
                    facts.models.remove(&model);
                });
            }
        }
    }
}

/// A version is immutable: other bytes under the name of one that this device has are refused.
fn changed_bytes(
    goal: &Goal,
    model: &ModelName,
    version: &Version,
    record: &ModelRecord,
) -> Option<String> {
    let name = model_target(model, version, MANIFEST_FILE);
    let signed = goal.repository.target(&name)?.sha256;
    let known = [&record.active, &record.previous]
        .into_iter()
        .flatten()
        .find(|p| p.version == *version)?;
    (known.manifest_digest != signed).then(|| {
        format!(
            "{version} was signed again with other bytes; a version never changes: push a new one"
        )
    })
}
