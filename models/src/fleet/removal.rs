//! Devices that were taken out of the fleet, so that each of them is told by the fleet's own signature.
//!
//! By the byte that a device's id hashes to, as its groups are: target `devices/removed-{byte}.json` of the role
//! `rollouts`. An entry is about one key: the same device with a new key may come back under its old id.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rollout::{FORMAT, membership_target};
use crate::digest::Digest;
use crate::name::DeviceId;

/// What the names of those targets begin with.
pub const REMOVALS_PREFIX: &str = "devices/removed-";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removals {
    pub format: u32,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER) that counts no longer.
    pub devices: BTreeMap<DeviceId, Digest>,
}

impl Default for Removals {
    fn default() -> Self {
        Self {
            format: FORMAT,
            devices: BTreeMap::new(),
        }
    }
}

/// The name of the target in which a device's removal would stand.
pub fn removals_target(device: &DeviceId) -> String {
    let membership = membership_target(device);
    let file = membership.rsplit('/').next().unwrap_or_default();
    format!("{REMOVALS_PREFIX}{file}")
}
