//! Versions beside the active ones: from what `routing` wants to jobs, and from jobs to what the engine serves.
//!
//! It all happens beside: no pointer of an active version is written here, no job of a wish is ended, and a version
//! that fails is withdrawn alone. A version that was proven once is noted in the model's routing record, so that it
//! serves again after a restart without a network.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::fleet::rollout::{Wish, model_target};
use edgeward_models::fleet::routing::Routing;
use edgeward_models::fleet::status::Phase;
use edgeward_models::manifest::MANIFEST_FILE;
use edgeward_models::name::RolloutId;
use edgeward_models::{ModelName, Version};
use serde_json::json;
use tokio::task::AbortHandle;
use tracing::warn;

use super::{Attempt, Reconciler};
use crate::fleet::board::{Line, chain};
use crate::fleet::goal::Goal;
use crate::fleet::job::{FaultKind, JobError, Ready, Role, clock};
use crate::fleet::pause;
use crate::fleet::state::{Pointer, RoutingRecord};
use crate::serving::ServedModel;

pub(super) type Key = (ModelName, Version);

/// What is known of all models' routings, and what is under way for them.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) records: BTreeMap<ModelName, RoutingRecord>,
    pub(super) running: HashMap<Key, Coming>,
    pub(super) attempts: HashMap<Key, Attempt>,
}

/// A job that brings a version here.
pub(super) struct Coming {
    pub(super) abort: AbortHandle,
    /// Fetches from a directory that somebody holds out.
    local: bool,
    /// For which change of the routing.
    rollout: Option<RolloutId>,
}

impl Beside {
    /// When the next attempt is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let idle = |key: &Key| !self.running.contains_key(key);
        let waiting = self.attempts.iter().filter(|(key, _)| idle(key));
        waiting.map(|(_, attempt)| attempt.again).min()
    }

    /// Whether a version of this model is being brought here.
    pub(super) fn is_busy(&self, model: &ModelName) -> bool {
        self.running.keys().any(|(busy, _)| busy == model)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.attempts.is_empty()
    }

    /// What the job of this id brought, and for which change of the routing, if it is one of these.
    pub(super) fn ended(&mut self, id: tokio::task::Id) -> Option<(Key, Option<RolloutId>)> {
        let mut found = self.running.extract_if(|_, job| job.abort.id() == id);
        found.next().map(|(key, job)| (key, job.rollout))
    }

    /// Whatever waits for its time is due now.
    pub(super) fn hurry(&mut self, which: impl Fn(&JobError) -> bool) {
        for attempt in self.attempts.values_mut() {
            if which(&attempt.error) {
                attempt.again = Instant::now();
            }
        }
    }

    pub(super) fn routing(&self, model: &ModelName) -> Routing {
        let record = self.records.get(model);
        record.map(|r| r.routing().clone()).unwrap_or_default()
    }
}

impl Reconciler {
    /// Whether a version is already on its way here to be served beside: then its wish waits for that.
    pub(super) fn comes_beside(
        &mut self,
        goal: &Goal,
        model: &ModelName,
        version: &Version,
    ) -> bool {
        let key = (model.clone(), version.clone());
        let Some(running) = self.beside.running.get(&key) else {
            return false;
        };
        // What a directory holds out need not wait for a broker.
        if goal.local && !running.local {
            running.abort.abort();
            self.beside.running.remove(&key);
            return false;
        }
        true
    }

    /// Compares what is wanted beside the active versions with what is served there.
    pub(super) fn steer_beside(&mut self) {
        let wanted: Vec<Key> = self
            .beside
            .records
            .iter()
            .flat_map(|(model, record)| {
                let versions = record.routing().named().into_iter();
                versions.map(|version| (model.clone(), version.clone()))
            })
            .collect();
        let served: Vec<_> = self.workshop.engine.versions();
        for key in wanted {
            let (model, version) = &key;
            let here = |s: &&ServedModel| s.model == *model && s.active.version == *version;
            match served.iter().find(here) {
                Some(served) => {
                    self.beside.attempts.remove(&key);
                    if served.beside {
                        self.note_pointer(model, version);
                    }
                }
                None => self.bring_beside(key),
            }
        }
        // What was due and not taken up has nothing to try at present; it must not keep this task awake.
        let now = Instant::now();
        for (key, attempt) in &mut self.beside.attempts {
            if attempt.again <= now && !self.beside.running.contains_key(key) {
                attempt.again = now + pause::LONGEST;
            }
        }
    }

    /// A version that was active until now and stays beside must be found again after a restart.
    fn note_pointer(&mut self, model: &ModelName, version: &Version) {
        let Some(record) = self.beside.records.get(model) else {
            return;
        };
        if record.pointer(version).is_some() {
            return;
        }
        if let Some(pointer) = self.pointer(model, version) {
            let mut next = record.clone();
            next.install(pointer);
            if let Err(e) = self.workshop.state.write_routing(model, &next) {
                warn!(%model, problem = %chain(&e), "routing could not be written");
            }
            self.beside.records.insert(model.clone(), next);
        }
    }

    /// By what an installed version is opened again.
    fn pointer(&self, model: &ModelName, version: &Version) -> Option<Pointer> {
        let noted = self
            .beside
            .records
            .get(model)
            .and_then(|r| r.pointer(version));
        let record = self.records.get(model);
        let active = record.and_then(|r| r.active.as_ref());
        let previous = record.and_then(|r| r.previous.as_ref());
        let known = noted.into_iter().chain(active).chain(previous);
        known.into_iter().find(|p| p.version == *version).cloned()
    }

    /// Starts what brings a version here, if anything can now.
    fn bring_beside(&mut self, key: Key) {
        let (model, version) = &key;
        let comes_active = self
            .running
            .get(model)
            .is_some_and(|r| r.version == *version);
        if comes_active || self.beside.running.contains_key(&key) {
            return;
        }
        let due = |attempt: &Attempt| attempt.again <= Instant::now();
        if !self.beside.attempts.get(&key).is_none_or(due) {
            return;
        }
        let routing = self.beside.routing(model);
        let record = self.records.get(model).cloned().unwrap_or_default();
        if let Some(reason) = record.barred(version, routing.rollout.as_ref()) {
            let reason = format!("it failed on this device: {reason}");
            return self.lacks_beside(model, version, Phase::Refused, reason);
        }
        let workshop = self.workshop.clone();
        let pointer = self.pointer(model, version);
        let (name, of) = key.clone();
        match (self.offered(model, version, pointer.as_ref()), pointer) {
            (Some((goal, mut wish)), _) => {
                wish.rollout = routing.rollout.clone().unwrap_or(wish.rollout);
                let now = Duration::ZERO;
                let job = workshop.obtain(goal, name, of, wish, now, Role::Beside);
                self.spawn_beside(key, routing, job);
            }
            (None, Some(pointer)) => {
                let job = workshop.load(name, pointer, Role::Beside);
                self.spawn_beside(key, routing, job);
            }
            (None, None) => {
                let (phase, reason) = self.why_not_offered();
                self.lacks_beside(model, version, phase, reason);
            }
        }
    }

    /// Whether a version is installed, or may be fetched.
    pub(super) fn has(&self, model: &ModelName, version: &Version) -> bool {
        let pointer = self.pointer(model, version);
        pointer.is_some() || self.offered(model, version, None).is_some()
    }

    /// Where a version may be fetched from, if it must be: with the very bytes that are known here.
    fn offered(
        &self,
        model: &ModelName,
        version: &Version,
        known: Option<&Pointer>,
    ) -> Option<(Arc<Goal>, Wish)> {
        let goal = self.goal.clone()?;
        let wish = goal.wishes.get(model)?.clone();
        let name = model_target(model, version, MANIFEST_FILE);
        let signed = goal.repository.target(&name)?.sha256;
        let allowed = match known {
            Some(pointer) => pointer.manifest_digest == signed,
            None => goal.bar.is_none(),
        };
        allowed.then_some((goal, wish))
    }

    fn why_not_offered(&self) -> (Phase, String) {
        match &self.goal {
            None => (
                Phase::Waiting,
                "it is not installed, and no repository was read since the start".to_owned(),
            ),
            Some(goal) => match &goal.bar {
                Some(bar) => (Phase::Refused, format!("nothing new is installed: {bar}")),
                None => (
                    Phase::Refused,
                    "the repository holds no such version; `fleetctl push` puts it there"
                        .to_owned(),
                ),
            },
        }
    }

    fn spawn_beside(
        &mut self,
        key: Key,
        routing: Routing,
        job: impl Future<Output = Result<Ready, JobError>> + Send + 'static,
    ) {
        let coming = Coming {
            abort: self.jobs.spawn(job),
            local: self.goal.as_ref().is_some_and(|goal| goal.local),
            rollout: routing.rollout,
        };
        self.beside.running.insert(key, coming);
    }

    /// A version is not served beside the active one, and why.
    fn lacks_beside(&self, model: &ModelName, version: &Version, phase: Phase, reason: String) {
        {
            let _serving = self.workshop.serving.enter();
            self.workshop.engine.withdraw(model, version, &reason);
        }
        let board = &self.workshop.board;
        board.progress(model, version, Role::Beside, phase, Some(reason));
    }

    /// What becomes of a job that has ended.
    pub(super) fn beside_ended(
        &mut self,
        key: Key,
        rollout: Option<RolloutId>,
        outcome: Result<Ready, JobError>,
    ) {
        let (model, version) = &key;
        match outcome.and_then(|ready| self.serve_beside(model, ready)) {
            Ok(()) => {
                self.beside.attempts.remove(&key);
            }
            Err(error) => {
                warn!(%model, %version, problem = %error.reason, "version not served beside the active one");
                if error.kind == FaultKind::Version {
                    self.quarantine(model, version, rollout.clone(), &error.reason);
                }
                let phase = match error.kind {
                    FaultKind::Carrier => Phase::Fetching { have: 0, of: 0 },
                    FaultKind::Device => Phase::BackingOff,
                    FaultKind::Content | FaultKind::Version => Phase::Refused,
                };
                self.lacks_beside(model, version, phase, error.reason.clone());
                let before = self.beside.attempts.get(&key);
                let attempt = Attempt::after(before, version.clone(), rollout, error);
                self.beside.attempts.insert(key, attempt);
            }
        }
    }

    /// The commit: audit, record, routing.
    fn serve_beside(&mut self, model: &ModelName, ready: Ready) -> Result<(), JobError> {
        let mut record = self.beside.records.get(model).cloned().unwrap_or_default();
        let pointer = Pointer {
            activated_at: clock(),
            ..ready.pointer
        };
        if !record.routing().wants(&pointer.version) {
            return Ok(());
        }
        let fields = json!({
            "model": model, "version": pointer.version, "release": pointer.release,
            "manifest": pointer.manifest_digest, "rollout": pointer.rollout,
        });
        record.install(pointer);
        self.record_routing(model, "version-served-beside", fields, &record)?;
        self.beside.records.insert(model.clone(), record);
        let _serving = self.workshop.serving.enter();
        self.workshop.engine.serve_beside(ready.prepared);
        self.workshop.board.touch();
        Ok(())
    }

    /// The engine has given up a version that is served beside the active one: it alone is withdrawn. `false`: it is
    /// none of those.
    pub(super) fn beside_failing(
        &mut self,
        model: &ModelName,
        version: &Version,
        reason: &str,
    ) -> bool {
        let active = self.records.get(model).and_then(|r| r.active.as_ref());
        let routing = self.beside.routing(model);
        if active.is_some_and(|a| a.version == *version) || !routing.wants(version) {
            return false;
        }
        warn!(%model, %version, reason, "version beside the active one fails and is withdrawn");
        self.quarantine(model, version, routing.rollout, reason);
        let reason = format!("it failed on this device: {reason}");
        self.lacks_beside(model, version, Phase::Refused, reason);
        true
    }

    /// What a person who brought a repository is told of a model's versions beside its active one, and whether
    /// something is wrong with one.
    pub(super) fn beside_lines(&self, model: &ModelName, line: &Line) -> (Vec<String>, bool) {
        let served = self.workshop.engine.versions();
        let (mut lines, mut wrong) = (Vec::new(), false);
        for version in self.beside.routing(model).named() {
            let here = served
                .iter()
                .find(|s| s.model == *model && s.active.version == *version);
            lines.push(match here {
                Some(served) if !served.beside => continue,
                Some(_) => format!("{model} {version} is served beside it"),
                None => {
                    wrong = true;
                    let reason = line.routing.as_ref().and_then(|r| r.reason(version));
                    let reason = reason.unwrap_or("it does not answer now");
                    format!("{model} {version} is not served beside it: {reason}")
                }
            });
        }
        (lines, wrong)
    }
}
