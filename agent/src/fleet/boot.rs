//! The first thing after a start: what served before serves again, without a network.
//!
//! The active version of each model is checked, loaded and proven anew. If it is damaged or does not run any
//! more, the previous one takes over. What is active or previous is never removed for failing here.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgeward_models::ModelName;
use edgeward_models::fleet::status::Phase;
use futures::future::join_all;
use serde_json::json;
use tracing::{error, info, warn};

use super::board::chain;
use super::job::{FaultKind, JobError, Ready, Role, Workshop, clock};
use super::state::{ModelRecord, Pointer, Quarantined};

/// Loads and activates everything that has a pointer; changes `records` where a previous version took over.
/// Returns the models that should serve and do not.
pub async fn boot(
    workshop: &Arc<Workshop>,
    records: &mut BTreeMap<ModelName, ModelRecord>,
) -> BTreeMap<ModelName, JobError> {
    let jobs = records
        .iter()
        .map(|(model, record)| start(workshop, model, record));
    let mut absent = BTreeMap::new();
    for outcome in join_all(jobs).await.into_iter().flatten() {
        match outcome {
            Ok((model, record)) => {
                records.insert(model, record);
            }
            Err((model, failure)) => {
                absent.insert(model, failure);
            }
        }
    }
    absent
}

type Outcome = Result<(ModelName, ModelRecord), (ModelName, JobError)>;

async fn start(
    workshop: &Arc<Workshop>,
    model: &ModelName,
    record: &ModelRecord,
) -> Option<Outcome> {
    let active = record.active.clone()?;
    let fallback = record.previous.clone();
    workshop.board.model(model, |line| {
        line.previous = fallback.as_ref().map(|p| p.version.clone());
        line.rollout.clone_from(&active.rollout);
        line.soak = record.soak_state();
    });
    let mut failure = None;
    if !(record.active_is_barred() && fallback.is_some()) {
        let job = workshop.clone();
        match job.load(model.clone(), active.clone(), Role::Active).await {
            Ok(ready) => {
                info!(%model, version = %active.version, "version active again after the start");
                activate(workshop, model, ready, false);
                return None;
            }
            Err(e) => failure = Some(e),
        }
    }
    // A fault of the device would meet the previous version just the same; a damaged directory would not.
    let damaged = workshop.state.open_version(model, &active).is_err();
    let device_fault = failure
        .as_ref()
        .is_some_and(|f| f.kind == FaultKind::Device && !damaged);
    if let (Some(previous), false) = (fallback, device_fault) {
        let job = workshop.clone();
        match job
            .load(model.clone(), previous.clone(), Role::Active)
            .await
        {
            Ok(ready) => {
                match put_back(workshop, model, record, &active, failure.as_ref(), ready) {
                    Ok(record) => return Some(Ok((model.clone(), record))),
                    Err(e) => failure = Some(e),
                }
            }
            Err(e) => {
                warn!(%model, version = %previous.version, problem = %e.reason, "the previous version does not run either");
                failure.get_or_insert(e);
            }
        }
    }
    let failure = failure?;
    error!(%model, version = %active.version, problem = %failure.reason, "the active version does not run");
    workshop.engine.lacks(model, &failure.reason);
    workshop.board.model(model, |line| {
        line.phase = Phase::BackingOff;
        line.reason = Some(failure.reason.clone());
    });
    Some(Err((model.clone(), failure)))
}

/// Routes requests to a proven version; while it is `watched`, the one before stays at hand.
pub fn activate(workshop: &Workshop, model: &ModelName, ready: Ready, watched: bool) {
    // The engine's tasks belong on the runtime that serves.
    let _serving = workshop.serving.enter();
    match watched {
        true => workshop.engine.activate_watched(ready.prepared),
        false => workshop.engine.activate(ready.prepared),
    }
    workshop.board.model(model, |line| {
        line.phase = Phase::Active;
        line.reason = None;
    });
}

fn put_back(
    workshop: &Workshop,
    model: &ModelName,
    record: &ModelRecord,
    failed: &Pointer,
    failure: Option<&JobError>,
    ready: Ready,
) -> Result<ModelRecord, JobError> {
    let device = |e: &dyn std::error::Error| JobError::new(FaultKind::Device, chain(e));
    let mut record = record.clone();
    let reason = failure.map_or("it failed before the restart", |f| f.reason.as_str());
    if failure.is_some_and(|f| f.kind == FaultKind::Version) {
        record = record.quarantine(Quarantined {
            version: failed.version.clone(),
            rollout: failed.rollout.clone(),
            reason: reason.to_owned(),
            at: clock(),
        });
    }
    let record = record.put_back(clock());
    workshop
        .audit
        .record(
            "version-put-back",
            json!({
                "model": model, "version": ready.pointer.version, "manifest": ready.pointer.manifest_digest,
                "instead_of": failed.version, "reason": reason,
            }),
        )
        .map_err(|e| device(&e))?;
    workshop
        .state
        .write_record(model, &record)
        .map_err(|e| device(&e))?;
    warn!(%model, version = %ready.pointer.version, failed = %failed.version, reason, "previous version put back");
    activate(workshop, model, ready, false);
    workshop.board.model(model, |line| {
        line.previous = None;
        line.soak = record.soak_state();
        line.reason = Some(format!("{} was put back from: {reason}", failed.version));
    });
    Ok(record)
}
