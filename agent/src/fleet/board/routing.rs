//! The part of a model's line that says what is served beside its active version.

use std::collections::BTreeMap;

use edgeward_models::Version;
use edgeward_models::fleet::routing::{BesideStatus, Routing, RoutingStatus};
use edgeward_models::fleet::status::{ModelStatus, Phase};

use super::shortened;
use crate::serving::ServedModel;

/// What holds, and how far each version is that it names.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingLine {
    routing: Routing,
    /// It was set on this device.
    overridden: bool,
    versions: BTreeMap<Version, (Phase, Option<String>)>,
}

impl RoutingLine {
    pub fn new(routing: Routing, overridden: bool) -> Self {
        Self {
            routing,
            overridden,
            versions: BTreeMap::new(),
        }
    }

    pub(super) fn progress(&mut self, version: &Version, phase: Phase, reason: Option<String>) {
        let reason = reason.map(shortened);
        self.versions.insert(version.clone(), (phase, reason));
    }

    /// Why a version is where it is.
    pub fn reason(&self, version: &Version) -> Option<&str> {
        self.versions.get(version)?.1.as_deref()
    }

    pub(super) fn status(self) -> RoutingStatus {
        let Self {
            routing,
            overridden,
            mut versions,
        } = self;
        let versions = routing.named().into_iter().map(|version| {
            let known = versions.remove(version);
            let (phase, reason) = known.unwrap_or((Phase::Waiting, None));
            BesideStatus {
                version: version.clone(),
                served: None,
                phase,
                reason,
            }
        });
        RoutingStatus {
            versions: versions.collect(),
            routing,
            overridden,
            shadow: None,
        }
    }
}

/// Adds what the engine knows: what is served, and how it is. The active version is not beside itself.
pub(super) fn complete(model: &mut ModelStatus, beside: &[ServedModel]) {
    let Some(routing) = &mut model.routing else {
        return;
    };
    let active = model.active.as_ref().map(|active| &active.version);
    routing.versions.retain(|v| Some(&v.version) != active);
    for version in &mut routing.versions {
        let served = beside
            .iter()
            .find(|s| s.model == model.model && s.active.version == version.version);
        let Some(served) = served else {
            continue;
        };
        version.served = Some(served.active.clone());
        if served.ready {
            version.phase = Phase::Active;
            version.reason = None;
        } else {
            version.phase = Phase::BackingOff;
            version.reason = served.reason.clone().map(shortened);
        }
    }
}
