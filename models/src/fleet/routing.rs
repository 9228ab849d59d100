//! Routing: which versions of a model are served beside the active one, and by which names requests find them.
//!
//! Part of a group's desired state, one for each model that needs it. Beside it a device may have an override of its
//! own, in the same form, which its administrator set. What the active version is, the wish alone says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::status::{ActiveVersion, Phase};
use crate::name::{LabelName, RolloutId, Version};

/// Versions of one model that may be wanted at once: each takes a worker and its memory.
pub const MAX_VERSIONS: usize = 8;
/// Labels of one model.
pub const MAX_LABELS: usize = 32;

/// How requests for one model find a version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// New with each change: a version that failed here is tried again for another rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// Served beside the active version, whether or not anything below names them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub versions: BTreeSet<Version>,
    /// Names that requests may use instead of a version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelName, Version>,
    /// How requests that name no version are split, by weight. Empty: the active version answers them all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub split: BTreeMap<Version, u32>,
    /// Gets a copy of the requests that name no version, for comparison; no caller waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Version>,
}

/// What is wrong with a routing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RoutingError {
    #[error("it names {0} versions; at most {MAX_VERSIONS} are served at once")]
    Versions(usize),
    #[error("it has {0} labels; at most {MAX_LABELS} are allowed")]
    Labels(usize),
    #[error("the label {0} reads as a version; give it another name")]
    Label(LabelName),
    #[error("its split has no version with a weight above 0")]
    Split,
    #[error("{0:?} is not NAME=VERSION")]
    Form(String),
    #[error("{0:?} is not VERSION=WEIGHT, with a whole number from 0 to 4294967295")]
    Weight(String),
    #[error("{0}")]
    Name(String),
}

impl Routing {
    /// Nothing beside the active version.
    pub fn is_empty(&self) -> bool {
        self.named().is_empty()
    }

    /// All versions that it names.
    pub fn named(&self) -> BTreeSet<&Version> {
        let named = self.versions.iter().chain(self.labels.values());
        named.chain(self.split.keys()).chain(&self.shadow).collect()
    }

    /// Whether it has this version served.
    pub fn wants(&self, version: &Version) -> bool {
        self.versions.contains(version)
            || self.split.contains_key(version)
            || self.shadow.as_ref() == Some(version)
            || self.labels.values().any(|v| v == version)
    }

    /// Holds it to its bounds.
    pub fn check(&self) -> Result<(), RoutingError> {
        let versions = self.named().len();
        if versions > MAX_VERSIONS {
            return Err(RoutingError::Versions(versions));
        }
        if self.labels.len() > MAX_LABELS {
            return Err(RoutingError::Labels(self.labels.len()));
        }
        if !self.split.is_empty() && self.split.values().all(|weight| *weight == 0) {
            return Err(RoutingError::Split);
        }
        let ambiguous = |label: &&LabelName| {
            let text = label.as_str();
            text.parse::<Version>().is_ok() || text.bytes().all(|b| b.is_ascii_digit())
        };
        match self.labels.keys().find(ambiguous) {
            Some(label) => Err(RoutingError::Label(label.clone())),
            None => Ok(()),
        }
    }
}

/// As people write it: `labels canary=2.0.0; split 1.0.0=90, 2.0.0=10; shadow 3.0.0`.
impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = |(label, version): (&LabelName, &Version)| format!("{label}={version}");
        let labels: Vec<_> = self.labels.iter().map(pairs).collect();
        let weights = self
            .split
            .iter()
            .map(|(version, weight)| format!("{version}={weight}"));
        let split: Vec<_> = weights.collect();
        let shadow: Vec<_> = self.shadow.iter().map(Version::to_string).collect();
        let also: Vec<_> = self.versions.iter().map(Version::to_string).collect();
        let parts = [
            ("labels", labels),
            ("split", split),
            ("shadow", shadow),
            ("also", also),
        ];
        let parts = parts.iter().filter(|(_, list)| !list.is_empty());
        if self.is_empty() {
            return f.write_str("the active version alone");
        }
        let parts = parts.map(|(what, list)| format!("{what} {}", list.join(", ")));
        f.write_str(&parts.collect::<Vec<_>>().join("; "))
    }
}

/// Reads `NAME=VERSION`, as people write a label.
pub fn parse_label(text: &str) -> Result<(LabelName, Version), RoutingError> {
    let pair = text.split_once('=');
    let (label, version) = pair.ok_or_else(|| RoutingError::Form(text.to_owned()))?;
    let name = |e: crate::name::NameError| RoutingError::Name(e.to_string());
    Ok((label.parse().map_err(name)?, version.parse().map_err(name)?))
}

/// Reads `VERSION=WEIGHT`, as people write a share.
pub fn parse_weight(text: &str) -> Result<(Version, u32), RoutingError> {
    let wrong = || RoutingError::Weight(text.to_owned());
    let (version, weight) = text.split_once('=').ok_or_else(wrong)?;
    let version = version
        .parse()
        .map_err(|e: crate::name::NameError| RoutingError::Name(e.to_string()))?;
    Ok((version, weight.parse().map_err(|_| wrong())?))
}

/// What a device says of a model's routing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoutingStatus {
    /// What holds now.
    pub routing: Routing,
    /// It was set on the device by its administrator and takes the place of the fleet's.
    pub overridden: bool,
    /// The versions that it names, but for the active one.
    pub versions: Vec<BesideStatus>,
    /// What came of the shadow since it began.
    #[serde(default)]
    pub shadow: Option<ShadowStatus>,
}

/// What came of a shadow: numbers of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowStatus {
    pub version: Version,
    /// Put to the shadow as well, and the answers compared.
    pub compared: u64,
    /// Of those, with another answer than the caller's, beyond the tolerance of the version's manifest.
    pub different: u64,
    /// Not put to it, since the device was busy.
    pub dropped: u64,
    /// Put to it and not answered.
    pub failed: u64,
}

/// One version beside the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BesideStatus {
    pub version: Version,
    /// Where it runs, while it does.
    #[serde(default)]
    pub served: Option<ActiveVersion>,
    pub phase: Phase,
    #[serde(default)]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Routing {
        Routing {
            labels: [parse_label(text).expect("a label")].into(),
            ..Routing::default()
        }
    }

    #[test]
    fn a_label_must_not_read_as_a_version_and_bounds_are_kept() {
        assert_eq!(label("canary=2.0.0").check(), Ok(()));
        for ambiguous in ["2=2.0.0", "1.0.0=2.0.0"] {
            let refused = label(ambiguous).check();
            assert!(
                matches!(refused, Err(RoutingError::Label(_))),
                "{ambiguous}"
            );
        }
        for malformed in ["canary", "=2.0.0", "canary=", "canary=two", "a b=1.0.0"] {
            assert!(parse_label(malformed).is_err(), "{malformed}");
        }
        let split = |weights: &[&str]| Routing {
            split: weights
                .iter()
                .map(|w| parse_weight(w).expect("a weight"))
                .collect(),
            ..Routing::default()
        };
        assert_eq!(split(&["1.0.0=90", "2.0.0=0"]).check(), Ok(()));
        assert_eq!(split(&["1.0.0=0"]).check(), Err(RoutingError::Split));
        for malformed in ["1.0.0", "1.0.0=", "1.0.0=-1", "=1", "1.0.0=4294967296"] {
            assert!(parse_weight(malformed).is_err(), "{malformed}");
        }
        let many = |count| Routing {
            versions: (0..count).map(|n| Version::new(n, 0, 0)).collect(),
            ..Routing::default()
        };
        assert_eq!(many(MAX_VERSIONS as u64).check(), Ok(()));
        let refused = many(MAX_VERSIONS as u64 + 1).check();
        assert_eq!(refused, Err(RoutingError::Versions(MAX_VERSIONS + 1)));
    }
}
