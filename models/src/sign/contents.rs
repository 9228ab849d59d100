//! What a repository holds: model versions, desired states, group membership. Changes are staged here.
//!
//! Chunks are written when they are staged: nothing names them before the commit, and the same bytes are the
//! same files if it never comes and the change is staged again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use tough::TargetName;
use tough::schema::Target;

use super::repository::Repository;
use super::{SignError, metadata, refused};
use crate::chunk::{self, ChunkRef, Source, SourceError, pack_target};
use crate::digest::Digest;
use crate::durable::{self, Access};
use crate::fleet::rollout::{
    self, DesiredState, MAX_DOCUMENT_BYTES, Membership, group_target, membership_target,
    model_target,
};
use crate::manifest::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use crate::name::{DeviceId, FileName, GroupName, ModelName, Version};
use crate::repository::chunk_path;

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

    pub fn desired(&self, group: &GroupName) -> Result<Option<DesiredState>, SignError> {
        self.document(&group_target(group))
    }

    pub fn groups(&self) -> Result<Vec<GroupName>, SignError> {
        let targets = self.targets_below("groups/");
        let name = |target: &String| {
            let name = target.strip_prefix("groups/")?.strip_suffix(".json")?;
            name.parse().ok()
        };
        Ok(targets.keys().filter_map(name).collect())
    }

    /// Stages a group's desired state. Its sequence must go up, unless nothing changes.
    pub fn set_desired(&mut self, desired: &DesiredState) -> Result<(), SignError> {
        let group = &desired.group;
        if let Some(old) = self.desired(group)? {
            if old == *desired {
                return Ok(());
            }
            if desired.sequence <= old.sequence {
                return Err(refused(format!(
                    "the desired state of group {group} is at sequence {}; a change needs a higher one than {}",
                    old.sequence, desired.sequence
                )));
            }
        }
        self.stage_document(group_target(group), desired)
    }

    pub fn groups_of(&self, device: &DeviceId) -> Result<BTreeSet<GroupName>, SignError> {
        let membership: Option<Membership> = self.document(&membership_target(device))?;
        let mut membership = membership.unwrap_or_default();
        Ok(membership.devices.remove(device).unwrap_or_default())
    }

    /// All devices with their groups.
    pub fn membership(&self) -> Result<BTreeMap<DeviceId, BTreeSet<GroupName>>, SignError> {
        let mut all = BTreeMap::new();
        let names: Vec<String> = self.targets_below("devices/").into_keys().collect();
        for name in names {
            let membership: Option<Membership> = self.document(&name)?;
            all.extend(membership.unwrap_or_default().devices);
        }
        Ok(all)
    }

    /// Stages a device's groups; none takes it out of the document.
    pub fn set_groups(
        &mut self,
        device: &DeviceId,
        groups: BTreeSet<GroupName>,
    ) -> Result<(), SignError> {
        let name = membership_target(device);
        let mut membership: Membership = self.document(&name)?.unwrap_or_default();
        if groups.is_empty() {
            membership.devices.remove(device);
        } else {
            membership.devices.insert(device.clone(), groups);
        }
        if membership.devices.is_empty() {
            self.staged.insert(name, None);
            return Ok(());
        }
        self.stage_document(name, &membership)
    }

    fn document<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SignError> {
        #[derive(serde::Deserialize)]
        struct Head {
            format: u32,
        }
        let Some(target) = self.target(name) else {
            return Ok(None);
        };
        let bytes = self.read_target(name, &target, MAX_DOCUMENT_BYTES)?;
        let wrong =
            |e: serde_json::Error| refused(format!("{name} is not the document it should be: {e}"));
        let head: Head = serde_json::from_slice(&bytes).map_err(wrong)?;
        if head.format != rollout::FORMAT {
            return Err(refused(format!(
                "{name} has format {}; this program reads format {}: update it",
                head.format,
                rollout::FORMAT
            )));
        }
        serde_json::from_slice(&bytes).map_err(wrong).map(Some)
    }

    fn stage_document<T: serde::Serialize>(
        &mut self,
        name: String,
        document: &T,
    ) -> Result<(), SignError> {
        let bytes = serde_json::to_vec(document).map_err(|e| refused(format!("{name}: {e}")))?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(refused(format!(
                "{name} would be {} bytes long and devices read at most {MAX_DOCUMENT_BYTES}",
                bytes.len()
            )));
        }
        let target = self.store(&bytes, None)?;
        self.staged.insert(name, Some(target));
        Ok(())
    }

    /// A target as it will stand after the next commit.
    fn target(&self, name: &str) -> Option<Target> {
        match self.staged.get(name) {
            Some(staged) => staged.clone(),
            None => {
                let name = TargetName::new(name).ok()?;
                self.chain
                    .targets
                    .signed
                    .find_target(&name, false)
                    .ok()
                    .cloned()
            }
        }
    }

    /// All of them below a path.
    fn targets_below(&self, prefix: &str) -> BTreeMap<String, Target> {
        let signed = self.chain.targets.signed.targets_iter();
        let mut targets: BTreeMap<String, Target> = signed
            .filter(|(name, _)| name.raw().starts_with(prefix))
            .map(|(name, target)| (name.raw().to_owned(), target.clone()))
            .collect();
        for (name, target) in &self.staged {
            match target {
                Some(target) if name.starts_with(prefix) => {
                    targets.insert(name.clone(), target.clone());
                }
                _ => drop(targets.remove(name)),
            }
        }
        targets
    }

    /// Writes a document's chunks; returns what is to be signed about it.
    fn store(&self, bytes: &[u8], release: Option<u64>) -> Result<Target, SignError> {
        let packed = pack_target(bytes)?;
        self.write_chunks(&packed.chunks)?;
        let sha256 = Digest::of(bytes);
        Ok(metadata::target(
            bytes.len() as u64,
            sha256,
            packed.list,
            release,
        ))
    }

    pub(super) fn write_chunks(&self, chunks: &[(Digest, Vec<u8>)]) -> Result<(), SignError> {
        let mut missing = Vec::new();
        for (digest, bytes) in chunks {
            let path = self.directory.join(chunk_path(digest));
            // Compression is not part of a chunk's name: any whole file of that name will do.
            let there = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() > 0);
            if !there {
                if let Some(parent) = path.parent() {
                    durable::create_directory(parent)?;
                }
                missing.push((path, bytes.as_slice()));
            }
        }
        Ok(durable::write_batch(&missing, Access::Anyone)?)
    }

    fn read_target(&self, name: &str, target: &Target, limit: u64) -> Result<Vec<u8>, SignError> {
        let chunks = self.chunk_refs(target)?;
        let bytes = ready(chunk::gather(&Chunks(self), name, &chunks, limit))?;
        if Digest::of(&bytes).as_bytes()[..] != target.hashes.sha256[..] {
            return Err(refused(format!(
                "{name} in the repository {} is damaged: restore it from a copy",
                self.directory.display()
            )));
        }
        Ok(bytes)
    }

    fn chunk_refs(&self, target: &Target) -> Result<Vec<ChunkRef>, SignError> {
        let info =
            crate::verify::target_info("target", target).map_err(|e| refused(e.to_string()))?;
        Ok(match info.list {
            Some(list) => ready(chunk::list_chunks(&Chunks(self), &list, info.length))?,
            None => vec![ChunkRef {
                sha256: info.sha256,
                length: info.length as u32,
            }],
        })
    }

    /// Every chunk that a target needs, its lists included.
    pub(super) fn chunks_of(&self, target: &Target) -> Result<Vec<Digest>, SignError> {
        let info =
            crate::verify::target_info("target", target).map_err(|e| refused(e.to_string()))?;
        Ok(match info.list {
            Some(list) => ready(chunk::list_digests(&Chunks(self), &list, info.length))?,
            None => vec![info.sha256],
        })
    }
}

/// The repository's own chunks as a source that answers at once.
#[derive(Debug)]
struct Chunks<'a>(&'a Repository);

#[async_trait]
impl Source for Chunks<'_> {
    async fn metadata(&self, _file: &FileName) -> Result<Option<Bytes>, SourceError> {
        Ok(None)
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        let bytes = self.0.chunk(digest).map_err(|e| SourceError {
            what: format!("chunk {digest}"),
            source: e.into(),
        })?;
        Ok(Some(bytes.into()))
    }
}

/// Runs a future that never waits for anything outside: [`Chunks`] reads its files while it is polled.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
