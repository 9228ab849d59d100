//! What a model version is, and how we know that it is genuine.
//!
//! This crate describes and verifies; it opens no socket and loads no TFLite. The agent and fleetctl
//! both stand on it and never on each other, so the words they exchange cannot drift apart.
//!
//! Reading order: [`name`] and [`digest`] (the words), [`manifest`] and [`package`] (a version),
//! [`tflite_file`] (what a `.tflite` file says of itself), [`chunk`] (how documents travel),
//! [`repository`] (the signed tree on disk), [`verify`] (the one verifier), `sign` (the writing half,
//! feature `sign`), [`fleet`] (what devices and operators say to each other), [`durable`] (how bytes
//! reach a disk that may lose power).

#![forbid(unsafe_code)]

pub mod chunk;
pub mod codec;
pub mod digest;
pub mod durable;
pub mod fleet;
pub mod manifest;
pub mod name;
pub mod package;
pub mod repository;
#[cfg(feature = "sign")]
pub mod sign;
pub mod tflite_file;
pub mod verify;

pub use digest::Digest;
pub use manifest::Manifest;
pub use name::{DeviceId, FleetName, GroupName, ModelName, Version};
