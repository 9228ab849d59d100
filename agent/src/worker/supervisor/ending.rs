//! Ends a worker that hangs, and notices the end of any.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lease::{Lease, OwnMemory};
use super::{InFlight, Supervisor, lock};
use crate::worker::WorkerDeath;
use crate::worker::slots::State;
use crate::worker::wire::TensorRef;

/// A request whose input was running: its slot, its inputs, and their memory if it has its own.
type Suspect = (Arc<Lease>, Vec<TensorRef>, Option<Arc<OwnMemory>>);

impl Supervisor {
    /// Ends the process when one invoke takes longer than it may. No caller's deadline does.
    pub(super) async fn watch_invokes(self: Arc<Self>) {
        let limit = || Duration::from_millis(self.invoke_limit.load(Ordering::Relaxed));
        let mut death = self.death.subscribe();
        let watching = async {
            loop {
                self.busy.notified().await;
                while self.has_requests() {
                    let tick =
                        (limit() / 20).clamp(Duration::from_millis(5), Duration::from_millis(500));
                    tokio::time::sleep(tick).await;
                    let limit = limit();
                    if self.an_invoke_exceeds(limit, tick) {
                        self.end(&format!("an invoke exceeded its limit of {limit:?}"));
                        return;
                    }
                }
            }
        };
        tokio::select! {
            () = watching => {}
            _ = death.wait_for(Option::is_some) => {}
        }
    }

    fn has_requests(&self) -> bool {
        !lock(&self.running).busy.is_empty()
    }

    fn an_invoke_exceeds(&self, limit: Duration, tick: Duration) -> bool {
        let now = Instant::now();
        let mut newest = None;
        for request in lock(&self.running).requests.iter_mut().flatten() {
            newest = newest.max(Some(request.sent));
            if self
                .layout
                .is(&self.memory, request.lease.slot, State::Running)
            {
                let since = *request.seen_running.get_or_insert(now);
                if now.duration_since(since) >= limit {
                    return true;
                }
            } else {
                // One of several whose invoke failed waits for its own turn again.
                request.seen_running = None;
            }
        }
        // The states are the worker's own words. One that only claims to be idle hangs all the same: every
        // slot's request may run for the limit before the newest one, and no longer.
        let patience = limit
            .saturating_add(tick)
            .saturating_mul(self.layout.slots as u32 + 1);
        newest.is_some_and(|sent| now.duration_since(sent) > patience)
    }

    /// Fails what was in flight, at once, and names the inputs that were running.
    pub(super) async fn notice_death(self: Arc<Self>) {
        let exit = self.process.ended().await;
        let ours = lock(&self.ended_for).clone();
        let mut death = WorkerDeath {
            reason: ours.unwrap_or(exit.words),
            stderr: exit.stderr,
            suspects: Vec::new(),
        };
        // What fails from now on says why, though the whole death is not known yet.
        lock(&self.ended_for).get_or_insert_with(|| death.reason.clone());
        self.permits.close();
        let failed: Vec<InFlight> = {
            let mut running = lock(&self.running);
            running.closed = true;
            running.busy.clear();
            running
                .requests
                .iter_mut()
                .filter_map(Option::take)
                .collect()
        };
        let mut suspects: Vec<Suspect> = Vec::new();
        for request in failed {
            let slot = request.lease.slot;
            if self.layout.is(&self.memory, slot, State::Running) {
                suspects.push((request.lease, request.inputs, request.own_memory));
            }
            // Dropping the sender fails the request, at once.
            drop(request.answer);
        }
        if !suspects.is_empty() {
            let digests = tokio::task::spawn_blocking(move || {
                let digest = |(lease, inputs, own): &Suspect| lease.digest(inputs, own.as_deref());
                suspects.iter().map(digest).collect()
            });
            death.suspects = digests.await.unwrap_or_default();
        }
        self.death.send_replace(Some(death));
    }
}
