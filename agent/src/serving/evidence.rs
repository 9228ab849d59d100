//! What the workers of a version must reproduce: its golden vectors, or what the built-in kernels answer to
//! generated inputs.
//!
//! Read once when a version is prepared and kept for its restarts; `proof` runs it through workers.

use std::sync::Arc;

use edgeward_models::manifest::Manifest;
use edgeward_models::package::InstalledVersion;
use tokio::sync::OnceCell;

use super::error::LoadFailure;
use super::golden::{self, Case, Expected};

/// A version with what its workers must prove.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) installed: InstalledVersion,
    pub(super) evidence: Arc<Evidence>,
}

#[derive(Debug)]
pub(super) enum Evidence {
    Golden(Cases),
    /// Found when the first delegate is proven, at shapes that the model takes. `None`: it took none.
    Generated(OnceCell<Option<Cases>>),
}

/// Questions with their answers.
pub(super) type Cases = Vec<(Case, Vec<Expected>)>;

impl Evidence {
    /// What is known by now.
    pub(super) fn cases(&self) -> Option<&Cases> {
        match self {
            Self::Golden(cases) => Some(cases),
            Self::Generated(found) => found.get()?.as_ref(),
        }
    }
}

impl Subject {
    /// Reads the evidence. What is wrong with it is the version's fault, a disk that cannot be read the device's.
    pub(super) fn of(installed: &InstalledVersion) -> Result<Self, LoadFailure> {
        let manifest = installed.manifest();
        let failure = |reason, device_fault| LoadFailure::new(manifest, reason, device_fault);
        let found = installed.golden();
        let evidence = match found.map_err(|e| failure(e.to_string(), is_damaged(installed)))? {
            None => Evidence::Generated(OnceCell::new()),
            Some(vectors) => {
                let cases = golden::cases(manifest, &vectors);
                Evidence::Golden(cases.map_err(|reason| failure(reason, false))?)
            }
        };
        Ok(Self {
            installed: installed.clone(),
            evidence: Arc::new(evidence),
        })
    }

    pub(super) fn manifest(&self) -> &Arc<Manifest> {
        self.installed.manifest()
    }
}

/// Whether the files are no longer what was installed; if they are, what they say is the version's own fault.
fn is_damaged(version: &InstalledVersion) -> bool {
    InstalledVersion::open(version.directory(), version.manifest_digest()).is_err()
}
