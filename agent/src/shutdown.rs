//! The signals that end the agent.
//!
//! `serve` listens from its first moment, so that a stop during a long start is obeyed too. SIGTERM (systemd)
//! and SIGINT (a terminal) mean the same; SIGHUP does not end the agent: it has keys read again, where there
//! are any to read.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// The signals, heard from when this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Must be called inside the runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves with the signal's name when the agent is told to stop.
    pub async fn stop(&mut self) -> &'static str {
        self.stop_or(|| warn!("SIGHUP means nothing while the agent starts or stops"))
            .await
    }

    /// The same; meanwhile `hung_up` answers each SIGHUP.
    pub async fn stop_or(&mut self, hung_up: impl Fn()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => hung_up(),
            }
        }
    }
}
