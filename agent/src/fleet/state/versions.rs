//! Installed versions: made visible by one rename, opened with every byte checked, removed when in the way.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use edgeward_models::durable;
use edgeward_models::fleet::routing::Routing;
use edgeward_models::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES};
use edgeward_models::package::{InstalledVersion, PackageError};
use edgeward_models::{Digest, Manifest, ModelName, Version};
use tracing::warn;

use super::{ModelRecord, Pointer, StateDirectory, StateError};

impl StateDirectory {
    pub fn version_directory(&self, model: &ModelName, version: &Version) -> PathBuf {
        self.root
            .join("versions")
            .join(model.as_str())
            .join(version.to_string())
    }

    /// Opens an installed version, reading and checking every file of it.
    pub fn open_version(
        &self,
        model: &ModelName,
        pointer: &Pointer,
    ) -> Result<InstalledVersion, PackageError> {
        InstalledVersion::open(
            &self.version_directory(model, &pointer.version),
            &pointer.manifest_digest,
        )
    }

    /// Installed versions of a model, oldest first.
    pub fn installed(&self, model: &ModelName) -> Vec<Version> {
        let directory = self.root.join("versions").join(model.as_str());
        let mut versions: Vec<Version> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort();
        versions
    }

    /// Makes an assembled directory the installed version, by one rename. A leftover of the same name that
    /// no pointer speaks of is replaced.
    pub fn install(
        &self,
        assembled: &Path,
        model: &ModelName,
        version: &Version,
    ) -> Result<(), StateError> {
        let target = self.version_directory(model, version);
        durable::sync_directory(assembled)?;
        if let Some(parent) = target.parent() {
            durable::create_directory(parent)?;
        }
        self.remove_version(model, version)?;
        Ok(durable::rename(assembled, &target)?)
    }

    /// Removes an installed version. Moved away first, so that no half-removed directory bears its name.
    pub fn remove_version(&self, model: &ModelName, version: &Version) -> Result<(), StateError> {
        let target = self.version_directory(model, version);
        if !target.exists() {
            return Ok(());
        }
        let doomed = self.incoming().join(format!("removed-{model}-{version}"));
        durable::remove_directory(&doomed)?;
        durable::rename(&target, &doomed)?;
        Ok(durable::remove_directory(&doomed)?)
    }

    /// The model files of all installed versions.
    pub fn model_digests(&self) -> BTreeSet<Digest> {
        let subdirectories = |path: PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        };
        let models = subdirectories(self.root.join("versions"));
        let manifests = models
            .flat_map(subdirectories)
            .map(|version| version.join(MANIFEST_FILE));
        manifests
            .filter_map(|path| {
                let bytes = durable::read(&path, MAX_MANIFEST_BYTES).ok()??;
                let manifest = Manifest::parse(&bytes).ok()?;
                Some(manifest.files.get(&manifest.model_file)?.sha256)
            })
            .collect()
    }

    /// Removes versions that nobody needs: all but active, previous, those wanted beside and the newest `keep`
    /// others.
    pub fn collect_garbage(
        &self,
        model: &ModelName,
        record: &ModelRecord,
        routing: &Routing,
        keep: usize,
    ) {
        let needed = |version: &Version| {
            let pointers = [&record.active, &record.previous].into_iter().flatten();
            routing.wants(version) || pointers.into_iter().any(|p| p.version == *version)
        };
        let mut others: Vec<Version> = self
            .installed(model)
            .into_iter()
            .filter(|v| !needed(v))
            .collect();
        let excess = others.len().saturating_sub(keep);
        for version in others.drain(..excess) {
            if let Err(problem) = self.remove_version(model, &version) {
                warn!(%model, %version, %problem, "old version could not be removed");
            }
        }
    }
}
