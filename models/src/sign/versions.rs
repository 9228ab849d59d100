//! Model versions in a repository. Changes are staged here and signed by `commit`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::repository::Repository;
use super::{SignError, metadata, refused};
use crate::digest::Digest;
use crate::durable;
use crate::fleet::rollout::model_target;
use crate::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use crate::name::{FileName, ModelName, Version};

impl Repository {
    pub fn manifest(
        &self,
        model: &ModelName,
        version: &Version,
    ) -> Result<Option<Manifest>, SignError> {
        let name = model_target(model, version, MANIFEST_FILE);
        let Some(target) = self.target(&name) else {
            return Ok(None);
        };
        let bytes = self.read_target(&name, &target, MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&bytes).map_err(|e| refused(format!("{name}: {e}")))?;
        Ok(Some(manifest))
    }

    /// The models that have any version.
    pub fn models(&self) -> Result<Vec<ModelName>, SignError> {
        let targets = self.targets_below("models/");
        let names = targets
            .keys()
            .filter_map(|name| name.split('/').nth(1)?.parse().ok());
        let names: BTreeSet<ModelName> = names.collect();
        Ok(names.into_iter().collect())
    }

    /// Versions of a model, oldest release first.
    pub fn versions(&self, model: &ModelName) -> Result<Vec<(Version, u64)>, SignError> {
        let targets = self.targets_below(&format!("models/{model}/"));
        let mut versions = Vec::new();
        for (name, target) in targets {
            let mut parts = name.split('/').skip(2);
            let (Some(version), Some(MANIFEST_FILE)) = (parts.next(), parts.next()) else {
                continue;
            };
            let version = version
                .parse()
                .map_err(|e| refused(format!("{name}: {e}")))?;
            let release = target
                .custom
                .get(metadata::RELEASE)
                .and_then(|r| r.as_u64());
            versions.push((version, release.unwrap_or(0)));
        }
        versions.sort_by_key(|&(_, release)| release);
        Ok(versions)
    }

    pub fn next_release(&self, model: &ModelName) -> Result<u64, SignError> {
        let versions = self.versions(model)?;
        Ok(versions.last().map_or(0, |&(_, release)| release) + 1)
    }

    /// Stages one model version: its manifest (release set) and files by name. A version that exists with other
    /// bytes is refused; one that exists as it is (whatever its release) is left alone.
    pub fn add_version(
        &mut self,
        manifest: &Manifest,
        files: &BTreeMap<FileName, PathBuf>,
    ) -> Result<(), SignError> {
        manifest.check().map_err(|e| refused(e.to_string()))?;
        let (model, version) = (&manifest.model, &manifest.version);
        if let Some(old) = self.manifest(model, version)? {
            let same = Manifest {
                release: manifest.release,
                ..old
            } == *manifest;
            return if same {
                Ok(())
            } else {
                Err(refused(format!(
                    "{model} {version} was already pushed with another content: a version never changes; \
                     raise the version number"
                )))
            };
        }
        let expected = self.next_release(model)?;
        if manifest.release < expected {
            return Err(refused(format!(
                "{model} {version}: release {} is not above what was pushed before; the next one is {expected}",
                manifest.release
            )));
        }
        let mut staged = BTreeMap::new();
        for (file, entry) in &manifest.files {
            let path = files.get(file).ok_or_else(|| {
                refused(format!(
                    "{model} {version}: the manifest names {file}, which was not given"
                ))
            })?;
            let bytes = durable::read(path, entry.length)?
                .ok_or_else(|| refused(format!("{} is not there", path.display())))?;
            if bytes.len() as u64 != entry.length || Digest::of(&bytes) != entry.sha256 {
                return Err(refused(format!(
                    "{} is not the file that the manifest of {model} {version} describes: make the manifest \
                     anew",
                    path.display()
                )));
            }
            let name = model_target(model, version, file.as_str());
            staged.insert(name, Some(self.store(&bytes, None)?));
        }
        let bytes = manifest.to_json();
        let name = model_target(model, version, MANIFEST_FILE);
        staged.insert(name, Some(self.store(&bytes, Some(manifest.release))?));
        self.staged.extend(staged);
        Ok(())
    }
}
