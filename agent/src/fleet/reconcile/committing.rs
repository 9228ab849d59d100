//! From jobs to pointers. A commit is: audit record fsynced, pointer replaced, requests routed; a power cut
//! between any two of these leaves the old or the new version.

use edgeward_models::ModelName;
use serde_json::json;
use tracing::{error, info};

use super::{Kind, Reconciler};
use crate::fleet::board::chain;
use crate::fleet::boot::activate;
use crate::fleet::job::{FaultKind, JobError, Ready, clock};
use crate::fleet::soak::SoakRecord;
use crate::fleet::state::{ModelRecord, Pointer};
use crate::serving::driver_caches;

impl Reconciler {
    pub(super) fn job_ended(
        &mut self,
        ended: Result<(tokio::task::Id, Result<Ready, JobError>), tokio::task::JoinError>,
    ) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(e) => e.id(),
        };
        let ended_early = |_| {
            JobError::new(
                FaultKind::Device,
                "an internal error ended the installation; see the agent's log",
            )
        };
        let outcome = ended.map_err(ended_early).and_then(|(_, outcome)| outcome);
        // A superseded job is no longer among those that run.
        if let Some((key, rollout)) = self.beside.ended(id) {
            self.beside_ended(key, rollout, outcome);
            return self.steer();
        }
        let found = [&mut self.running, &mut self.reloading]
            .into_iter()
            .find_map(|jobs| jobs.extract_if(|_, job| job.abort.id() == id).next());
        let Some((model, running)) = found else {
            return;
        };
        match outcome.and_then(|ready| self.take_over(&model, running.kind, ready)) {
            Ok(()) => {
                let attempts = match running.kind {
                    Kind::Reload => &mut self.reloads,
                    Kind::Wish | Kind::PutBack => &mut self.attempts,
                };
                attempts.remove(&model);
            }
            Err(error) => self.job_failed(&model, running, error),
        }
        self.steer();
    }

    /// The commit: audit, pointer, routing.
    fn take_over(&mut self, model: &ModelName, kind: Kind, ready: Ready) -> Result<(), JobError> {
        let record = self.records.get(model).cloned().unwrap_or_default();
        let mut pointer = ready.pointer.clone();
        pointer.activated_at = clock();
        let (event, next) = match kind {
            Kind::Wish => {
                let soak = self.soak_of(model, &pointer, &record);
                ("version-activated", record.activated(pointer.clone(), soak))
            }
            Kind::PutBack if record.previous.as_ref() != Some(&ready.pointer) => {
                let reason = "the pointers changed while the previous version was loaded";
                return Err(JobError::new(FaultKind::Device, reason));
            }
            Kind::PutBack => ("version-put-back", record.put_back(clock())),
            Kind::Reload if !record.runs(&ready.pointer) => return Ok(()),
            Kind::Reload => {
                activate(&self.workshop, model, ready, record.soak.is_some());
                return Ok(());
            }
        };
        let fields = json!({
            "model": model, "version": pointer.version, "release": pointer.release,
            "manifest": pointer.manifest_digest, "rollout": pointer.rollout,
            "before": record.active.as_ref().map(|a| &a.version),
        });
        let record = next.clone();
        self.commit(model, event, fields, next)?;
        activate(&self.workshop, model, ready, record.soak.is_some());
        // What served before need not come back any more.
        self.reloads.remove(model);
        if let Some(reloading) = self.reloading.remove(model) {
            reloading.abort.abort();
        }
        info!(%model, version = %pointer.version, release = pointer.release, "version active");
        let keep = self
            .workshop
            .config
            .fleet
            .as_ref()
            .map_or(2, |f| f.keep_versions);
        let beside = self.beside.routing(model);
        let state = &self.workshop.state;
        state.collect_garbage(model, &record, &beside, keep);
        let installed = || self.workshop.state.model_digests();
        driver_caches::collect_garbage(&self.workshop.config, installed);
        // What is left belongs to fetches that were given up, unless one waits to be taken up again.
        let idle = self.running.is_empty() && self.reloading.is_empty() && self.beside.is_idle();
        if idle && self.attempts.keys().all(|other| other == model) {
            self.workshop.cache.clear();
        }
        let target = (kind == Kind::Wish).then_some(&pointer.version);
        self.watched.remove(model);
        self.workshop.board.model(model, |line| {
            line.soak = record.soak_state();
            line.previous = record.previous.as_ref().map(|p| p.version.clone());
            if let Some(target) = target {
                line.target = Some(target.clone());
            }
        });
        Ok(())
    }

    /// How a version that becomes active for a wish is watched.
    fn soak_of(
        &self,
        model: &ModelName,
        pointer: &Pointer,
        record: &ModelRecord,
    ) -> Option<SoakRecord> {
        let wish = self.goal.as_ref()?.wishes.get(model)?;
        let brought =
            wish.version == pointer.version && Some(&wish.rollout) == pointer.rollout.as_ref();
        let before = record.active.as_ref();
        let before = before.and_then(|b| self.workshop.engine.figures(model, &b.version));
        brought.then(|| SoakRecord::begin(wish, before)).flatten()
    }

    pub(super) fn commit(
        &mut self,
        model: &ModelName,
        event: &'static str,
        fields: serde_json::Value,
        record: ModelRecord,
    ) -> Result<(), JobError> {
        let device = |e: &dyn std::error::Error| JobError::new(FaultKind::Device, chain(e));
        let committed = self
            .workshop
            .audit
            .record(event, fields)
            .map_err(|e| device(&e))
            .and_then(|()| {
                self.workshop
                    .state
                    .write_record(model, &record)
                    .map_err(|e| device(&e))
            });
        match committed {
            Ok(()) => {
                self.records.insert(model.clone(), record);
                Ok(())
            }
            Err(error) => {
                error!(%model, event, problem = %error.reason, "state could not be written; nothing was changed");
                self.workshop.board.error(error.reason.clone());
                Err(error)
            }
        }
    }
}
