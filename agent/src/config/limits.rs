//! How much the agent takes on at once, and for how long.

use std::time::Duration;

use serde::Deserialize;

/// What one caller, or all of them, may ask of the agent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of one request; a model's own limit may be lower.
    pub max_body_bytes: u64,
    /// Memory for the bodies of all requests together; beyond it a request is answered 429.
    pub max_bodies_bytes: u64,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// To send a request's headers, from its first byte or the connection's start.
    pub header_timeout_ms: u64,
    /// Between requests of one connection, and for a client to take its answer.
    pub idle_timeout_ms: u64,
    /// To send a request's body.
    pub body_timeout_ms: u64,
    /// A request waits this long for a free slot before it is answered 429.
    pub queue_timeout_ms: u64,
    /// Deadline of a request that names none.
    pub default_deadline_ms: u64,
    /// The longest deadline a request may ask for.
    pub max_deadline_ms: u64,
    /// Requests that may wait or run at once, per interpreter.
    pub slots_per_instance: usize,
    /// On shutdown, requests in flight get this long. (A version that another one follows gets as long as its
    /// requests' deadlines.)
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 64 << 20,
            max_bodies_bytes: 256 << 20,
            max_header_bytes: 16 << 10,
            max_connections: 1024,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 300_000,
            body_timeout_ms: 30_000,
            queue_timeout_ms: 100,
            default_deadline_ms: 30_000,
            max_deadline_ms: 300_000,
            slots_per_instance: 16,
            drain_timeout_ms: 10_000,
        }
    }
}

impl Limits {
    pub fn queue_timeout(&self) -> Duration {
        Duration::from_millis(self.queue_timeout_ms)
    }

    pub fn default_deadline(&self) -> Duration {
        Duration::from_millis(self.default_deadline_ms)
    }

    pub fn max_deadline(&self) -> Duration {
        Duration::from_millis(self.max_deadline_ms)
    }

    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}
