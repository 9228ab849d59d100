//! Routings: what is wanted beside the active versions, from the desired state to the engine.
//!
//! A change is recorded in the audit log and in the model's routing record before it takes effect. `beside` then brings
//! the versions that it names.

use edgeward_models::ModelName;
use edgeward_models::fleet::routing::Routing;
use serde_json::json;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::Reconciler;
use super::beside::Key;
use crate::fleet::board::{RoutingLine, chain};
use crate::fleet::goal::Goal;
use crate::fleet::job::{FaultKind, JobError};
use crate::fleet::state::{ModelRecord, RoutingRecord};

/// An administrator's wish that a model be routed otherwise than its fleet says.
pub struct OverrideRequest {
    pub model: ModelName,
    /// Absent: the override ends.
    pub routing: Option<Routing>,
    /// Who asks.
    pub uid: u32,
    /// What came of it, in words.
    pub answer: oneshot::Sender<Result<String, String>>,
}

impl Reconciler {
    pub(super) fn override_routing(&mut self, request: OverrideRequest) {
        let OverrideRequest {
            model,
            routing,
            uid,
            answer,
        } = request;
        let done = self.put_override(&model, routing, uid);
        self.steer_beside();
        // Whoever asked may have gone.
        let _ = answer.send(done);
    }

    /// Puts a routing in the place of the fleet's, or the fleet's back.
    fn put_override(
        &mut self,
        model: &ModelName,
        mut routing: Option<Routing>,
        uid: u32,
    ) -> Result<String, String> {
        let record = self.records.get(model);
        if record.is_none_or(|record| record.active.is_none()) {
            return Err(format!("model {model} is not served here"));
        }
        let mut next = self.beside.records.get(model).cloned().unwrap_or_default();
        if routing.is_none() && next.local.is_none() {
            return Err(format!("the routing of {model} is not overridden"));
        }
        if let Some(routing) = &mut routing {
            routing.check().map_err(|e| e.to_string())?;
            if let Some(unknown) = routing.named().into_iter().find(|v| !self.has(model, v)) {
                return Err(format!(
                    "{model} {unknown} is neither installed here nor in the repository that was read last"
                ));
            }
            // A version that failed is tried again, as for any new rollout.
            let id = format!("local-{:08x}", rand::random::<u32>());
            routing.rollout = id.parse().ok();
        }
        let (event, text) = match &routing {
            Some(routing) if routing.is_empty() => (
                "routing-overridden",
                format!("{model}: the active version alone, in place of what the fleet says"),
            ),
            Some(routing) => (
                "routing-overridden",
                format!("{model}: {routing}, in place of what the fleet says"),
            ),
            None => (
                "routing-override-ended",
                format!("{model}: what the fleet says holds again"),
            ),
        };
        let fields = json!({"model": model, "routing": routing, "uid": uid});
        next.local = routing;
        let changed = self.change_routing(model, event, fields, next);
        changed.map(|()| text).map_err(|e| e.reason)
    }

    /// Takes up what was wanted before the start.
    pub(super) fn recall_routings(&mut self) {
        let served = |(_, record): &(_, &ModelRecord)| record.active.is_some();
        let models = self.records.iter().filter(served);
        let models: Vec<ModelName> = models.map(|(model, _)| model.clone()).collect();
        for model in models {
            match self.workshop.state.routing(&model) {
                Ok(record) => self.apply_routing(&model, record),
                // Its active version serves; the next repository that is read says it again.
                Err(e) => error!(%model, problem = %chain(&e), "the model's routing is unreadable"),
            }
        }
        self.steer_beside();
    }

    /// Takes what a repository says of routing. Recorded before it takes effect.
    pub(super) fn accept_routings(&mut self, goal: &Goal) {
        for (model, routing) in &goal.routing {
            let record = self.beside.records.get(model).cloned().unwrap_or_default();
            if record.fleet != *routing {
                let mut next = record;
                next.fleet = routing.clone();
                let fields = json!({"model": model, "routing": routing});
                // What went wrong was said; the next look tries again.
                let _ = self.change_routing(model, "routing-changed", fields, next);
            }
        }
    }

    /// A model that is not served any more has no routing, whoever set it.
    pub(super) fn forget_routing(&mut self, model: &ModelName) {
        if let Some(record) = self.beside.records.get(model)
            && *record != RoutingRecord::default()
        {
            let fields = json!({"model": model, "routing": null});
            let _ = self.change_routing(model, "routing-changed", fields, RoutingRecord::default());
        }
        self.beside.records.remove(model);
    }

    fn change_routing(
        &mut self,
        model: &ModelName,
        event: &'static str,
        fields: serde_json::Value,
        mut record: RoutingRecord,
    ) -> Result<(), JobError> {
        record.forget_unwanted();
        self.record_routing(model, event, fields, &record)?;
        info!(%model, "routing changed");
        self.apply_routing(model, record);
        self.beside.hurry(|_| true);
        Ok(())
    }

    /// Audit record, then document. Nothing takes effect without both.
    pub(super) fn record_routing(
        &self,
        model: &ModelName,
        event: &'static str,
        fields: serde_json::Value,
        record: &RoutingRecord,
    ) -> Result<(), JobError> {
        let device = |e: &dyn std::error::Error| JobError::new(FaultKind::Device, chain(e));
        let workshop = &self.workshop;
        let recorded = workshop.audit.record(event, fields).map_err(|e| device(&e));
        let recorded = recorded.and_then(|()| {
            let written = workshop.state.write_routing(model, record);
            written.map_err(|e| device(&e))
        });
        recorded.inspect_err(|e| {
            error!(%model, event, problem = %e.reason, "routing could not be recorded; it stays as it was");
            workshop.board.error(e.reason.clone());
        })
    }

    /// Has the engine obey a record, and ends what it does not want.
    fn apply_routing(&mut self, model: &ModelName, record: RoutingRecord) {
        let routing = record.routing().clone();
        let unwanted = |(name, version): &Key| name == model && !routing.wants(version);
        for (_, job) in self.beside.running.extract_if(|key, _| unwanted(key)) {
            job.abort.abort();
        }
        self.beside.attempts.retain(|key, _| !unwanted(key));
        {
            // The engine's tasks belong on the runtime that serves.
            let _serving = self.workshop.serving.enter();
            self.workshop.engine.route(model, routing.clone());
        }
        let overridden = record.local.is_some();
        self.workshop.board.model(model, |line| {
            let shown = overridden || !routing.is_empty();
            line.routing = shown.then(|| RoutingLine::new(routing, overridden));
        });
        self.beside.records.insert(model.clone(), record);
    }
}
