//! A repository that passed every check, and the reading of what it names.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::VerifyError;
use super::chain::Chain;
use super::policy::Verdict;
use crate::chunk::{self, ChunkRef, Source};
use crate::digest::Digest;
use crate::fleet::removal::{Removals, removals_target};
use crate::fleet::rollout::{
    self, Certificates, DesiredState, MAX_DOCUMENT_BYTES, Membership, certificates_target,
    group_target, membership_target, model_target,
};
use crate::manifest::MANIFEST_FILE;
use crate::name::{DeviceId, GroupName, ModelName, Version};

/// Metadata that passed every check; what it names may be believed.
#[derive(Debug, Clone)]
pub struct VerifiedRepository {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    timestamp_version: u64,
    verdict: Verdict,
    targets: BTreeMap<String, TargetInfo>,
}

/// One target as signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    pub name: String,
    pub length: u64,
    pub sha256: Digest,
    /// The list document, for a target larger than one chunk.
    pub list: Option<ChunkRef>,
}

impl VerifiedRepository {
    pub(super) fn new(chain: &Chain, verdict: Verdict) -> Result<Self, VerifyError> {
        let inner = Inner {
            timestamp_version: chain.timestamp.signed.version.get(),
            verdict,
            targets: chain.target_infos()?,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    pub fn timestamp_version(&self) -> u64 {
        self.inner.timestamp_version
    }

    /// `Some(why)` when nothing new may be installed: stale, or root, targets or a delegated role expired.
    pub fn install_bar(&self) -> Option<&str> {
        self.inner.verdict.bar.as_deref()
    }

    pub fn stale(&self) -> bool {
        self.inner.verdict.stale
    }

    /// What ends before long, in words.
    pub fn ends(&self) -> &[String] {
        &self.inner.verdict.ends
    }

    pub fn target(&self, name: &str) -> Option<&TargetInfo> {
        self.inner.targets.get(name)
    }

    /// Desired state of a group; `None` when it has none. Checks that the document is about this group.
    /// That its sequence does not go back is for the device to check, which knows what it last obeyed.
    pub async fn desired(
        &self,
        source: &dyn Source,
        group: &GroupName,
    ) -> Result<Option<DesiredState>, VerifyError> {
        let Some(target) = self.target(&group_target(group)) else {
            return Ok(None);
        };
        let desired: DesiredState = self.document(source, target).await?;
        if desired.group != *group {
            let problem = format!("it is about group {}", desired.group);
            return Err(VerifyError::refused(&target.name, problem));
        }
        Ok(Some(desired))
    }

    /// The groups this device belongs to (empty when the document does not name it).
    pub async fn groups(
        &self,
        source: &dyn Source,
        device: &DeviceId,
    ) -> Result<Vec<GroupName>, VerifyError> {
        let Some(target) = self.target(&membership_target(device)) else {
            return Ok(Vec::new());
        };
        let mut membership: Membership = self.document(source, target).await?;
        let groups = membership.devices.remove(device).unwrap_or_default();
        Ok(groups.into_iter().collect())
    }

    /// The renewed certificate of this device (PEM), if there is one. Whether it is good is for the device to say.
    pub async fn certificate(
        &self,
        source: &dyn Source,
        device: &DeviceId,
    ) -> Result<Option<String>, VerifyError> {
        let Some(target) = self.target(&certificates_target(device)) else {
            return Ok(None);
        };
        let mut document: Certificates = self.document(source, target).await?;
        Ok(document.certificates.remove(device))
    }

    /// The key (SHA-256 of its public half) with which this device was taken out of the fleet, if it was.
    pub async fn removed(
        &self,
        source: &dyn Source,
        device: &DeviceId,
    ) -> Result<Option<Digest>, VerifyError> {
        let Some(target) = self.target(&removals_target(device)) else {
            return Ok(None);
        };
        let mut document: Removals = self.document(source, target).await?;
        Ok(document.devices.remove(device))
    }

    /// A small target's whole bytes, verified.
    pub async fn read(
        &self,
        source: &dyn Source,
        target: &TargetInfo,
        limit: u64,
    ) -> Result<Vec<u8>, VerifyError> {
        let chunks = self.chunks_within(source, target, limit).await?;
        let bytes = chunk::gather(source, &target.name, &chunks, limit).await?;
        if Digest::of(&bytes) != target.sha256 {
            let problem = "its content is not the one that was signed";
            return Err(VerifyError::refused(&target.name, problem));
        }
        Ok(bytes)
    }

    /// The chunks that a target is made of, in order (one, itself, for a small one). Lists are fetched and
    /// verified; lengths add up to the target's. The digest of the whole is still the caller's to check.
    pub async fn chunks(
        &self,
        source: &dyn Source,
        target: &TargetInfo,
    ) -> Result<Vec<ChunkRef>, VerifyError> {
        self.chunks_within(source, target, u64::MAX).await
    }

    /// All targets of one model version, its manifest first; empty when the version was not signed whole.
    pub fn version_targets(&self, model: &ModelName, version: &Version) -> Vec<&TargetInfo> {
        let Some(manifest) = self.target(&model_target(model, version, MANIFEST_FILE)) else {
            return Vec::new();
        };
        let prefix = model_target(model, version, "");
        let files = self.inner.targets.range(prefix.clone()..);
        let files = files
            .map(|(_, target)| target)
            .take_while(|target| target.name.starts_with(&prefix))
            .filter(|target| target.name != manifest.name);
        std::iter::once(manifest).chain(files).collect()
    }

    async fn chunks_within(
        &self,
        source: &dyn Source,
        target: &TargetInfo,
        limit: u64,
    ) -> Result<Vec<ChunkRef>, VerifyError> {
        if target.length > limit {
            let problem = format!("it is larger than the {limit} bytes allowed");
            return Err(VerifyError::refused(&target.name, problem));
        }
        Ok(match &target.list {
            Some(list) => chunk::list_chunks(source, list, target.length).await?,
            // A target without a list fits a chunk: `chain` saw to it.
            None => vec![ChunkRef {
                sha256: target.sha256,
                length: target.length as u32,
            }],
        })
    }

    /// Reads one of the rollout documents.
    async fn document<T: DeserializeOwned>(
        &self,
        source: &dyn Source,
        target: &TargetInfo,
    ) -> Result<T, VerifyError> {
        #[derive(serde::Deserialize)]
        struct Head {
            format: u32,
        }
        let bytes = self.read(source, target, MAX_DOCUMENT_BYTES).await?;
        let refused = |problem: String| VerifyError::refused(&target.name, problem);
        let wrong =
            |e: serde_json::Error| refused(format!("it is not the document it should be ({e})"));
        let head: Head = serde_json::from_slice(&bytes).map_err(wrong)?;
        if head.format != rollout::FORMAT {
            return Err(refused(format!(
                "it has format {}; this program reads format {}: update it",
                head.format,
                rollout::FORMAT
            )));
        }
        serde_json::from_slice(&bytes).map_err(wrong)
    }
}
