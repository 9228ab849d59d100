//! The Edgeward agent: serves verified TFLite models on a device, and keeps all data there.
//!
//! Flow of a request: [`api`] (doors and protocols) → [`serving`] (versions, admission, statistics) →
//! [`worker`] (one sandboxed process per loaded version) → [`tflite`] (the only FFI, inside that process).
//! Flow of a version: [`fleet`] (broker or directory → verified → installed) → [`serving`] (loaded, proven,
//! activated). [`watch`] observes both and keeps the audit log.

#![deny(unsafe_code)]

pub mod api;
pub mod commands;
pub mod config;
mod either_time;
pub mod element;
pub mod fleet;
pub mod logging;
pub mod serving;
pub mod shutdown;
pub mod strings;
pub mod tflite;
pub mod watch;
pub mod watchdog;
pub mod worker;

/// The version of this program, as manifests' `minimum_agent` compares with it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
