//! Whether a delegate that serves has stopped working.
//!
//! A driver whose device was lost fails every request without crashing. One failed request proves nothing: it may
//! be the request's fault. So the version's own evidence is asked again, and if that fails too the worker is ended;
//! what follows is what follows any death (`supervise`).

use std::convert::Infallible;
use std::time::Duration;

use edgeward_models::name::DelegateName;

use super::engine::Shared;
use super::loaded::Loaded;
use super::proof::Prover;
use crate::worker::{Stream, Worker, WorkerError};

/// However many requests fail, the evidence takes no more than its turn.
const PAUSE: Duration = Duration::from_secs(1);

/// Asks whenever a request has failed, and ends the worker when its delegate is to blame.
pub(super) async fn ask_when_in_doubt(shared: &Shared, loaded: &Loaded) -> Infallible {
    loop {
        loaded.in_doubt.notified().await;
        // Held no longer than the question takes.
        if let Some(worker) = loaded.worker()
            && let Some(reason) = guilt(shared, loaded, &worker).await
        {
            worker.kill(&reason);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why the delegate, and not a request, is to blame. `None`: nothing speaks against it.
async fn guilt(shared: &Shared, loaded: &Loaded, worker: &Worker) -> Option<String> {
    let delegate = loaded.active().delegate;
    // There is nothing behind the built-in kernels; a model that keeps state is asked in sequences only.
    if delegate.as_str() == DelegateName::BUILTIN || worker.facts().keeps_state {
        return None;
    }
    let (case, _) = loaded.subject.evidence.cases()?.first()?;
    let prover = Prover::new(&shared.config, &shared.spawner, loaded.grant);
    match prover.run(worker, case, Stream::default()).await {
        Err(WorkerError::Invoke(reason)) => Some(format!(
            "its delegate fails what it could do before: {}: {reason}",
            case.name
        )),
        // Answered, or too busy to be asked, or dead already.
        _ => None,
    }
}
