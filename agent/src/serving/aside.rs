//! A version is loaded and proven aside of the requests.
//!
//! Inputs are generated, copied and compared there, megabytes of them for some models, which the thread that
//! answers requests must not do. What is waited for (the worker, timers) belongs to the runtime as always.

use edgeward_models::Manifest;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::LoadFailure;
use crate::worker::turns;

/// Runs `work` on a thread of its own, which makes way. Dropped, it is given up.
pub(super) async fn aside<T: Send + 'static>(
    manifest: &Manifest,
    niceness: i32,
    work: impl Future<Output = Result<T, LoadFailure>> + Send + 'static,
) -> Result<T, LoadFailure> {
    let runtime = Handle::current();
    let (mut result, waiting) = oneshot::channel();
    let thread = std::thread::Builder::new().name("proving".to_owned());
    let started = thread.spawn(move || {
        turns::give_way(niceness);
        let done = runtime.block_on(async {
            tokio::select! {
                done = work => Some(done),
                () = result.closed() => None,
            }
        });
        if let Some(done) = done {
            // Whoever waited may have left just now.
            let _ = result.send(done);
        }
    });
    let failed = |problem: String| {
        let reason = format!("the thread that proves versions: {problem}");
        LoadFailure::new(manifest, reason, true)
    };
    started.map_err(|e| failed(e.to_string()))?;
    waiting
        .await
        .unwrap_or_else(|_| Err(failed("it panicked".to_owned())))
}
