//! Desired state: which group runs which version, and which device is in which group.
//!
//! Both are JSON documents and TUF targets of the role `rollouts`: a device believes them only as `verify`
//! hands them out. A device finds its own groups in one of 256 files, so membership of a large fleet is
//! never one large file, and it decides alone what it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::health::HealthLimits;
use super::history::Change;
use super::routing::Routing;
use super::waves::Waves;
use crate::digest::Digest;
use crate::name::{DeviceId, GroupName, ModelName, RolloutId, Version};

/// The format of both documents.
pub const FORMAT: u32 = 1;
/// A document larger than this many bytes is refused unread.
pub const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;

/// What one group should run: target `groups/{group}.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    pub format: u32,
    pub group: GroupName,
    /// Counted up by every change; a device refuses to go back.
    pub sequence: u64,
    pub models: BTreeMap<ModelName, Wish>,
    /// Versions beside those, and how requests find them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routing: BTreeMap<ModelName, Routing>,
    /// The newest changes of it, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Change>,
}

impl DesiredState {
    /// Nothing is wished for yet.
    pub fn new(group: GroupName) -> Self {
        Self {
            format: FORMAT,
            group,
            sequence: 0,
            models: BTreeMap::new(),
            routing: BTreeMap::new(),
            history: Vec::new(),
        }
    }
}

/// The wish that a group runs one version of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub version: Version,
    pub release: u64,
    pub rollout: RolloutId,
    /// What the group ran before this wish: where `rollback` goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Version>,
    /// The share of the group, in percent, that may move now; widened by later sequences. Waves go before it.
    #[serde(default = "all")]
    pub percent: u8,
    /// The rollout widens by itself, as long as the devices that moved are well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waves: Option<Waves>,
    /// Devices start within this time, each at its own moment, to spare the broker.
    #[serde(default)]
    pub jitter_seconds: u32,
    /// How long a device watches the new version, ready to put the one before back.
    #[serde(default = "default_soak_seconds")]
    pub soak_seconds: u32,
    /// What the version may not exceed meanwhile.
    #[serde(default, skip_serializing_if = "HealthLimits::is_default")]
    pub health: HealthLimits,
    /// The rollout that this wish takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<Withdrawn>,
}

/// A rollout that was taken back: halted by its rule, or aborted by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawn {
    pub version: Version,
    pub rollout: RolloutId,
    pub reason: String,
    pub at: Timestamp,
}

fn all() -> u8 {
    100
}

fn default_soak_seconds() -> u32 {
    60
}

impl Wish {
    /// That a whole group runs this version at once.
    pub fn new(version: Version, release: u64, rollout: RolloutId) -> Self {
        Self {
            version,
            release,
            rollout,
            previous: None,
            percent: all(),
            waves: None,
            jitter_seconds: 0,
            soak_seconds: default_soak_seconds(),
            health: HealthLimits::default(),
            withdrawn: None,
        }
    }

    /// Whether this device may move now. Stable as a rollout widens: it never drops a device.
    pub fn includes(&self, device: &DeviceId) -> bool {
        if let Some(waves) = &self.waves {
            return waves.includes(device, &self.rollout);
        }
        let position = place(device, &self.rollout, "wave");
        (position as f64) < u64::MAX as f64 / 100.0 * f64::from(self.percent.min(100))
            || self.percent >= 100
    }

    /// Whether every device of the group may move now.
    pub fn reaches_everybody(&self) -> bool {
        match &self.waves {
            Some(waves) => waves.reaches_everybody(),
            None => self.percent >= 100,
        }
    }

    /// How long this device waits before it starts, within the jitter.
    pub fn start_delay(&self, device: &DeviceId) -> Duration {
        let share = place(device, &self.rollout, "jitter") as f64 / u64::MAX as f64;
        Duration::from_secs_f64(share * f64::from(self.jitter_seconds))
    }
}

/// A device's place in a rollout: the first eight bytes of SHA-256 over `purpose`, device and rollout.
pub(super) fn place(device: &DeviceId, rollout: &RolloutId, purpose: &str) -> u64 {
    let digest = Digest::of(format!("{purpose}/{device}/{rollout}").as_bytes());
    u64::from_be_bytes(std::array::from_fn(|i| digest.as_bytes()[i]))
}

/// The groups of the devices whose id hashes to one byte: target `devices/{byte in hex}.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    pub format: u32,
    pub devices: BTreeMap<DeviceId, BTreeSet<GroupName>>,
}

impl Default for Membership {
    fn default() -> Self {
        Self {
            format: FORMAT,
            devices: BTreeMap::new(),
        }
    }
}

/// The name of the target that holds a device's groups: first byte of SHA-256 of its id.
pub fn membership_target(device: &DeviceId) -> String {
    format!("devices/{:02x}.json", first_byte(device))
}

/// Renewed certificates of the devices whose id hashes to one byte, PEM: target `devices/certificates-{byte}.json`.
///
/// A device takes one for its own key and name that its fleet's authority signed and that lasts longer than the one
/// it has. Nothing in it is secret; the private key stays on the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificates {
    pub format: u32,
    pub certificates: BTreeMap<DeviceId, String>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            format: FORMAT,
            certificates: BTreeMap::new(),
        }
    }
}

/// The name of the target that holds a device's renewed certificate.
pub fn certificates_target(device: &DeviceId) -> String {
    format!("{CERTIFICATES_PREFIX}{:02x}.json", first_byte(device))
}

/// What the names of those targets begin with.
pub const CERTIFICATES_PREFIX: &str = "devices/certificates-";

fn first_byte(device: &DeviceId) -> u8 {
    Digest::of(device.as_str().as_bytes()).as_bytes()[0]
}

/// The name of the target that holds a group's desired state.
pub fn group_target(group: &GroupName) -> String {
    format!("groups/{group}.json")
}

/// The name of a target that holds one file of a model version.
pub fn model_target(model: &ModelName, version: &Version, file: &str) -> String {
    format!("models/{model}/{version}/{file}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_widened_wave_keeps_every_device_and_has_about_its_share() {
        let wish = |percent| Wish {
            percent,
            ..Wish::new(Version::new(1, 0, 0), 1, "r1".parse().expect("name"))
        };
        let devices: Vec<DeviceId> = (0..2000)
            .map(|i| format!("device-{i}").parse().expect("name"))
            .collect();
        let mut before = BTreeSet::new();
        for percent in [0, 1, 10, 50, 99, 100] {
            let now: BTreeSet<_> = devices
                .iter()
                .filter(|d| wish(percent).includes(d))
                .collect();
            assert!(before.is_subset(&now));
            let share = now.len() as f64 / 20.0;
            assert!(
                (share - f64::from(percent)).abs() < 4.0,
                "{percent} % moved {share} %"
            );
            before = now;
        }
        assert_eq!(before.len(), devices.len());
    }
}
