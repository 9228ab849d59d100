//! What is wanted beside the active version of a model, and what is installed for it.
//!
//! A document of its own: whatever becomes of it, the pointers of the active version stay as they are.

use edgeward_models::fleet::routing::Routing;
use edgeward_models::{ModelName, Version};
use serde::{Deserialize, Serialize};

use super::documents::{read_document, write_document};
use super::{Pointer, StateDirectory, StateError};

const FORMAT: u32 = 1;

/// One model's routing and the versions that were installed for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingRecord {
    format: u32,
    /// What the desired state says, as last accepted.
    #[serde(default)]
    pub fleet: Routing,
    /// What this device's administrator put in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Routing>,
    /// Versions that it names and that were proven here, to be opened again without a network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub installed: Vec<Pointer>,
}

impl Default for RoutingRecord {
    fn default() -> Self {
        Self {
            format: FORMAT,
            fleet: Routing::default(),
            local: None,
            installed: Vec::new(),
        }
    }
}

impl RoutingRecord {
    /// What holds.
    pub fn routing(&self) -> &Routing {
        self.local.as_ref().unwrap_or(&self.fleet)
    }

    pub fn pointer(&self, version: &Version) -> Option<&Pointer> {
        self.installed.iter().find(|p| p.version == *version)
    }

    /// Takes note of an installed version.
    pub fn install(&mut self, pointer: Pointer) {
        self.installed.retain(|p| p.version != pointer.version);
        self.installed.push(pointer);
    }

    /// Forgets versions that are not named any more.
    pub fn forget_unwanted(&mut self) {
        let routing = self.routing().clone();
        self.installed.retain(|p| routing.wants(&p.version));
    }
}

impl StateDirectory {
    pub fn routing(&self, model: &ModelName) -> Result<RoutingRecord, StateError> {
        Ok(read_document(&self.model_file(model, "routing"))?.unwrap_or_default())
    }

    /// Replaces a model's routing in one step.
    pub fn write_routing(
        &self,
        model: &ModelName,
        record: &RoutingRecord,
    ) -> Result<(), StateError> {
        write_document(&self.model_file(model, "routing"), record)
    }
}
