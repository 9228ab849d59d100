//! What a device says of itself: `online` (its birth and last will) and `status` (signed, retained).

use serde::{Deserialize, Serialize};

use super::health::Soak;
use super::routing::RoutingStatus;
use crate::digest::Digest;
use crate::name::{DelegateName, DeviceId, GroupName, ModelName, RolloutId, Version};

pub const FORMAT: u32 = 1;

/// Presence. The last will says `online: false` with the boot id and session it belongs to, so that a late
/// will cannot mask a newer birth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Online {
    pub online: bool,
    /// Why it went: `stopped`, `connection lost`, …
    pub reason: String,
    /// Drawn anew at each start of the agent.
    pub boot_id: String,
    /// Counts connections of this boot.
    pub session: u64,
}

/// The state of one device. Within one boot id a lower `sequence` is older.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub format: u32,
    pub device: DeviceId,
    pub boot_id: String,
    pub sequence: u64,
    /// Seconds since 1970 by the device's clock, for people.
    pub at: i64,
    pub agent_version: String,
    pub groups: Vec<AppliedGroup>,
    pub models: Vec<ModelStatus>,
    /// The newest repository this device trusts.
    pub timestamp_version: u64,
    /// Metadata is too old to install anything new; what is installed serves on.
    pub stale: bool,
    /// `enforced`, or what is missing.
    pub sandbox: String,
    /// Length and head of the audit chain, so that truncation is seen from outside.
    pub audit_length: u64,
    pub audit_head: Digest,
    /// Free bytes where versions are stored.
    pub disk_free_bytes: u64,
    /// The newest thing that went wrong, in words for an operator.
    #[serde(default)]
    pub last_error: Option<String>,
    /// What an operator should look at although the device serves: topics that the broker denies it, telemetry
    /// that was lost, a certificate that is about to end.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Stands for words that stay on the device.
const KEPT_BACK: &str = "told on the device only (edgeward status)";

impl Status {
    /// Leaves names, numbers and states. Words may quote what a model or a driver wrote, which nobody can vouch for.
    pub fn keep_words_back(&mut self) {
        let keep_back = |words: &mut String| KEPT_BACK.clone_into(words);
        self.last_error.iter_mut().for_each(keep_back);
        self.warnings.truncate(1);
        self.warnings.iter_mut().for_each(keep_back);
        for model in &mut self.models {
            model.reason.iter_mut().for_each(keep_back);
            let beside = model.routing.iter_mut().flat_map(|r| &mut r.versions);
            let mut served: Vec<_> = model.active.iter_mut().collect();
            for version in beside {
                version.reason.iter_mut().for_each(keep_back);
                served.extend(&mut version.served);
            }
            for refused in served.into_iter().flat_map(|v| &mut v.refused_delegates) {
                keep_back(&mut refused.reason);
            }
        }
        if self.sandbox != "enforced" {
            keep_back(&mut self.sandbox);
        }
    }
}

/// The desired state a device last applied for one of its groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedGroup {
    pub group: GroupName,
    /// 0 when the group has no desired state yet.
    pub sequence: u64,
}

/// One model on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    pub model: ModelName,
    /// What answers requests now.
    #[serde(default)]
    pub active: Option<ActiveVersion>,
    /// Kept installed for rollback.
    #[serde(default)]
    pub previous: Option<Version>,
    /// The version the desired state asks for.
    #[serde(default)]
    pub target: Option<Version>,
    /// The rollout that asks for it: what `phase`, `soak` and `reason` are about.
    #[serde(default)]
    pub rollout: Option<RolloutId>,
    pub phase: Phase,
    /// How the watch over the active version stands, where a rollout brought it.
    #[serde(default)]
    pub soak: Option<Soak>,
    /// Why the phase is what it is, when that needs saying: a refusal, a crash, a wait.
    #[serde(default)]
    pub reason: Option<String>,
    /// What is served beside the active version.
    #[serde(default)]
    pub routing: Option<RoutingStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActiveVersion {
    pub version: Version,
    pub release: u64,
    /// Where it runs.
    pub delegate: DelegateName,
    /// Nodes of the graph that the delegate took, of all.
    pub delegated_nodes: u32,
    pub total_nodes: u32,
    /// Delegates tried before this one, each with the reason for its refusal.
    pub refused_delegates: Vec<RefusedDelegate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDelegate {
    pub delegate: DelegateName,
    pub reason: String,
}

/// Where a model stands on its way to its target version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The target serves.
    Active,
    /// Waiting for its moment in the rollout.
    Waiting,
    /// Fetching `have` of `of` bytes.
    Fetching { have: u64, of: u64 },
    /// Verified and on disk; being loaded and proven.
    Proving,
    /// The target was refused; the previous version serves on.
    Refused,
    /// The worker keeps failing and is restarted with growing pauses.
    BackingOff,
    /// Nothing is asked for and nothing serves.
    Idle,
}

impl Phase {
    /// One word for a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Waiting => "waiting",
            Self::Fetching { .. } => "fetching",
            Self::Proving => "proving",
            Self::Refused => "refused",
            Self::BackingOff => "backing-off",
            Self::Idle => "idle",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_back_wherever_they_stand() {
        let words = "what a driver wrote";
        let refused = serde_json::json!([{"delegate": "npu", "reason": words}]);
        let version = serde_json::json!({"version": "1.0.0", "release": 1, "delegate": "cpu", "delegated_nodes": 0,
            "total_nodes": 3, "refused_delegates": refused});
        let mut status: Status = serde_json::from_value(serde_json::json!({
            "format": FORMAT, "device": "ct-1", "boot_id": "b", "sequence": 1, "at": 0, "agent_version": "0.1.0",
            "groups": [], "timestamp_version": 1, "stale": false, "sandbox": words, "audit_length": 0,
            "audit_head": Digest::of(b""), "disk_free_bytes": 0, "last_error": words, "warnings": [words, words],
            "models": [{"model": "digits", "active": version, "phase": "active", "reason": words}],
        }))
        .expect("a status");
        status.keep_words_back();
        let text = serde_json::to_string(&status).expect("JSON");
        assert!(!text.contains(words), "{text}");
        assert_eq!(text.matches(KEPT_BACK).count(), 5, "{text}");
        assert!(text.contains("\"npu\"") && text.contains("\"total_nodes\":3"));
        let routing = "\"routing\":null";
        assert!(text.contains(routing), "{text}");
    }
}
