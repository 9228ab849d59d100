//! The link to the fleet: verified metadata in, installed versions, statuses and telemetry out. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::sync::Arc;

use crate::config::Config;
use crate::serving::Engine;
use crate::watch::audit::Audit;

/// The running fleet side.
pub struct FleetTasks {}

/// Starts what `serve` needs: loads the active versions from disk *before it returns* (so a boot without
/// network serves), then opens the admin socket, connects to the broker if the device is enrolled and
/// configured for it, and reconciles. `Err` only for trouble that must stop the agent (state locked by
/// another agent, unreadable state directory); everything else is logged and reported, and serving goes on.
pub async fn start(
    config: Arc<Config>,
    engine: Engine,
    audit: Audit,
) -> anyhow::Result<FleetTasks> {
    todo!()
}

impl FleetTasks {
    /// Publishes a graceful `offline`, flushes the outbox, closes the store.
    pub async fn stop(self) {
        todo!()
    }
}
