//! The documents of the state directory: one model's pointers, and what was applied of each group.

use std::collections::BTreeMap;

use edgeward_models::fleet::health::Soak;
use edgeward_models::name::RolloutId;
use edgeward_models::{Digest, GroupName, Version};
use serde::{Deserialize, Serialize};

use crate::fleet::soak::SoakRecord;

const FORMAT: u32 = 1;
/// Entries of a quarantine list; the oldest go first. A model refused this often has other troubles.
pub(super) const MAX_QUARANTINED: usize = 32;
/// A version that serves or served, by everything needed to open it again without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    pub version: Version,
    pub release: u64,
    pub manifest_digest: Digest,
    /// The rollout that brought it; a rollback by the device itself has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// Seconds since 1970 by the device's clock, for people.
    pub activated_at: i64,
}

/// A version that failed here: not tried again until another rollout names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    pub version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    pub reason: String,
    pub at: i64,
}

/// One model's pointers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Pointer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Pointer>,
    /// While the active version is being watched, or when it turned out not to be good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<SoakRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Quarantined>,
}

impl Default for ModelRecord {
    fn default() -> Self {
        Self {
            format: FORMAT,
            active: None,
            previous: None,
            soak: None,
            quarantined: Vec::new(),
        }
    }
}

impl ModelRecord {
    /// Whether exactly this version is the active one.
    pub fn runs(&self, pointer: &Pointer) -> bool {
        self.active.as_ref().is_some_and(|active| {
            (&active.version, &active.manifest_digest)
                == (&pointer.version, &pointer.manifest_digest)
        })
    }

    /// The record after `new` was activated, to be watched like this. Activating what is active changes nothing but
    /// the rollout.
    pub fn activated(&self, new: Pointer, soak: Option<SoakRecord>) -> Self {
        let mut next = self.clone();
        next.soak = soak;
        if let Some(old) = next.active.replace(new.clone())
            && old.version != new.version
        {
            next.previous = Some(old);
        }
        next
    }

    /// The record after `version` failed here.
    pub fn quarantine(&self, entry: Quarantined) -> Self {
        let mut next = self.clone();
        next.quarantined
            .retain(|q| (&q.version, &q.rollout) != (&entry.version, &entry.rollout));
        next.quarantined.push(entry);
        let excess = next.quarantined.len().saturating_sub(MAX_QUARANTINED);
        next.quarantined.drain(..excess);
        next
    }

    /// The record after the active version failed and `previous` was put back.
    pub fn put_back(&self, now: i64) -> Self {
        let mut next = self.clone();
        if let Some(previous) = next.previous.take() {
            next.soak = None;
            next.active = Some(Pointer {
                activated_at: now,
                ..previous
            });
        }
        next
    }

    /// The record after its model was let go.
    pub fn retired(&self) -> Self {
        let mut next = self.clone();
        next.previous = next.active.take();
        next.soak = None;
        next
    }

    /// How the watch over the active version stands, where a rollout brought it.
    pub fn soak_state(&self) -> Option<Soak> {
        self.active.as_ref()?.rollout.as_ref()?;
        Some(self.soak.as_ref().map_or(Soak::Passed, SoakRecord::state))
    }

    /// Why this version may not run for this rollout.
    pub fn barred(&self, version: &Version, rollout: Option<&RolloutId>) -> Option<&str> {
        self.quarantined
            .iter()
            .find(|q| q.version == *version && q.rollout.as_ref() == rollout)
            .map(|q| q.reason.as_str())
    }

    /// Whether the version that the pointer names failed here for the rollout that brought it.
    pub fn active_is_barred(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|a| self.barred(&a.version, a.rollout.as_ref()).is_some())
    }
}

/// The sequences of desired state that this device has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    pub groups: BTreeMap<GroupName, u64>,
}
