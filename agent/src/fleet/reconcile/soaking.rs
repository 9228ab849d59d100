//! New versions are watched after they became active, for as long as their rollout says; one that is not good gives
//! way to the version before.
//!
//! What was seen is written down now and then, together with the pointers, so a power cut or a restart costs a few
//! seconds of the watch and nothing else. Time counts only while the version serves.

use std::time::{Duration, Instant};

use edgeward_models::fleet::health::Soak;
use edgeward_models::fleet::status::Phase;
use edgeward_models::{ModelName, Version};
use serde_json::json;
use tracing::{info, warn};

use super::Reconciler;
use crate::fleet::board::chain;
use crate::fleet::job::clock;
use crate::fleet::soak::SoakRecord;
use crate::fleet::state::{ModelRecord, Pointer};
use crate::serving::Figures;

/// How often figures are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What was seen is written down this often, or twenty times in a longer soak.
const SAVE: Duration = Duration::from_secs(5);
/// After the version before could not take over.
const AGAIN: Duration = Duration::from_secs(30);

/// What is known of a watched version beside its record.
pub(super) struct Watched {
    /// What it did before the last start of the agent; since then the engine knows.
    earlier: Figures,
    looked: Instant,
    watched: Duration,
    saved: Duration,
    /// Why its worker died last.
    crash: Option<String>,
    /// When the version before was last told to take over.
    gave_way: Option<Instant>,
}

impl Reconciler {
    /// When figures must be looked at next; `None` while nothing is watched.
    pub(super) fn next_soak_look(&self) -> Option<Instant> {
        let watched = self.records.iter().filter(|(_, record)| {
            let soak = record.soak.as_ref().filter(|_| record.active.is_some());
            soak.is_some_and(|soak| soak.failed.is_none() || record.previous.is_some())
        });
        let next = |model| self.watched.get(model).map(|w| w.looked + LOOK);
        watched
            .map(|(model, _)| next(model).unwrap_or_else(Instant::now))
            .min()
    }

    /// Looks at every version that is being watched.
    pub(super) fn look_at_soaks(&mut self) {
        let watched = self.records.iter().filter(|(_, r)| r.soak.is_some());
        let models: Vec<ModelName> = watched.map(|(model, _)| model.clone()).collect();
        self.watched.retain(|model, _| models.contains(model));
        for model in models {
            self.look_at_soak(&model);
        }
    }

    fn look_at_soak(&mut self, model: &ModelName) {
        let Some(record) = self.records.get(model).cloned() else {
            return;
        };
        let (Some(active), Some(soak)) = (record.active.clone(), record.soak.clone()) else {
            return;
        };
        let now = Instant::now();
        let watched = self
            .watched
            .entry(model.clone())
            .or_insert_with(|| Watched::begin(&soak, now));
        if soak.failed.is_some() {
            watched.looked = now;
            return self.give_way(model, &record, &active.version);
        }
        let engine = &self.workshop.engine;
        let served = engine.models().into_iter().find(|m| m.model == *model);
        let ready = served.is_some_and(|m| m.ready && m.active.version == active.version);
        let since = now.saturating_duration_since(std::mem::replace(&mut watched.looked, now));
        if ready {
            watched.watched += since;
        }
        let figures = engine.figures(model, &active.version).unwrap_or_default();
        let ends = watched.watched.as_secs() >= soak.seconds.into();
        let seen = figures.and(&watched.earlier);
        let complaint = soak.complaint(&seen, figures.succeeded, watched.crash.as_deref(), ends);
        if let Some(reason) = complaint {
            return self.not_good(model, record, soak, reason);
        }
        if ends {
            return self.soaked(model, record, &active.version);
        }
        let pause = SAVE.max(Duration::from_secs(u64::from(soak.seconds) / 20));
        if watched.watched - watched.saved >= pause {
            watched.saved = watched.watched;
            let mut next = record;
            next.soak = Some(SoakRecord {
                watched_seconds: u32::try_from(watched.watched.as_secs()).unwrap_or(u32::MAX),
                seen,
                ..soak
            });
            match self.workshop.state.write_record(model, &next) {
                Ok(()) => drop(self.records.insert(model.clone(), next)),
                Err(e) => {
                    warn!(%model, problem = %chain(&e), "the watch could not be written down")
                }
            }
        }
    }

    /// The worker of a version died; one that is being watched is looked at right away.
    pub(super) fn crashed(&mut self, model: &ModelName, version: &Version, reason: &str) {
        let record = self.records.get(model);
        let active = record.and_then(|r| r.active.as_ref());
        let (Some(soak), true) = (
            record.and_then(|r| r.soak.as_ref()),
            active.is_some_and(|active| active.version == *version),
        ) else {
            return;
        };
        self.watched
            .entry(model.clone())
            .or_insert_with(|| Watched::begin(soak, Instant::now()))
            .crash = Some(reason.to_owned());
        self.look_at_soak(model);
        // Where another version serves by now its wish is answered.
        self.steer();
    }

    /// The version was well for as long as it was to be watched.
    fn soaked(&mut self, model: &ModelName, mut record: ModelRecord, version: &Version) {
        record.soak = None;
        let rollout = record.active.as_ref().and_then(|a| a.rollout.clone());
        let fields = json!({"model": model, "version": version, "rollout": rollout});
        if self.commit(model, "version-soaked", fields, record).is_ok() {
            info!(%model, %version, "version was well for all of its soak");
            self.watched.remove(model);
            let _serving = self.workshop.serving.enter();
            self.workshop.engine.let_go(model);
            self.workshop
                .board
                .model(model, |line| line.soak = Some(Soak::Passed));
        }
    }

    /// The version exceeded its limits: barred for its rollout, and the one before takes over.
    fn not_good(
        &mut self,
        model: &ModelName,
        mut record: ModelRecord,
        soak: SoakRecord,
        reason: String,
    ) {
        let Some(active) = record.active.clone() else {
            return;
        };
        record.soak = Some(SoakRecord {
            failed: Some(reason.clone()),
            ..soak
        });
        if record.previous.is_none() {
            let fields = json!({"model": model, "version": active.version, "reason": reason});
            if self
                .commit(model, "version-not-good", fields, record)
                .is_ok()
            {
                warn!(%model, version = %active.version, reason, "version is not good and is the only one; it goes on");
                self.show_failed(model, &reason);
            }
            return;
        }
        self.records.insert(model.clone(), record.clone());
        self.quarantine(model, &active.version, active.rollout, &reason);
        self.show_failed(model, &reason);
        self.give_way(model, &record, &active.version);
    }

    fn show_failed(&self, model: &ModelName, reason: &str) {
        self.workshop.board.model(model, |line| {
            line.soak = Some(Soak::Failed);
            line.reason = Some(reason.to_owned());
        });
    }

    /// Has the version before take over, again and again until it has.
    fn give_way(&mut self, model: &ModelName, record: &ModelRecord, version: &Version) {
        let (Some(watched), Some(reason)) = (
            self.watched.get_mut(model),
            record.soak.as_ref().and_then(|s| s.failed.clone()),
        ) else {
            return;
        };
        let now = Instant::now();
        let waits = watched.gave_way.is_some_and(|at| now < at + AGAIN);
        if record.previous.is_none() || waits {
            return;
        }
        watched.gave_way = Some(now);
        self.put_back_previous(model, version, &reason);
    }

    /// Puts the version before back where it is still loaded: no request waits for that. False where it is not.
    pub(super) fn put_back_kept(
        &mut self,
        model: &ModelName,
        instead_of: &Version,
        previous: &Pointer,
    ) -> bool {
        if !self.workshop.engine.keeps(model, &previous.version) {
            return false;
        }
        let record = self.records.get(model).cloned().unwrap_or_default();
        let fields = json!({
            "model": model, "version": previous.version, "release": previous.release,
            "manifest": previous.manifest_digest, "rollout": previous.rollout, "before": instead_of,
        });
        if self
            .commit(model, "version-put-back", fields, record.put_back(clock()))
            .is_ok()
        {
            let _serving = self.workshop.serving.enter();
            self.workshop.engine.put_back(model, &previous.version);
            self.watched.remove(model);
            self.workshop.board.model(model, |line| {
                line.previous = None;
                line.soak = None;
            });
        }
        // If not it is tried again, and meanwhile it answers whenever the other one cannot.
        true
    }

    /// What a status says of the watch over the active version.
    pub(super) fn soak_shown(&self, model: &ModelName, phase: Phase) -> Option<Soak> {
        let record = self.records.get(model)?;
        (phase == Phase::Active)
            .then(|| record.soak_state())
            .flatten()
    }
}

impl Watched {
    fn begin(soak: &SoakRecord, now: Instant) -> Self {
        let watched = Duration::from_secs(soak.watched_seconds.into());
        Self {
            earlier: soak.seen,
            looked: now,
            watched,
            saved: watched,
            crash: None,
            gave_way: None,
        }
    }
}
