//! Desired states and group membership in a repository. Changes are staged here and signed by `commit`.

use std::collections::{BTreeMap, BTreeSet};

use super::repository::Repository;
use super::{SignError, refused};
use crate::digest::Digest;
use crate::fleet::removal::{REMOVALS_PREFIX, Removals, removals_target};
use crate::fleet::rollout::{
    self, CERTIFICATES_PREFIX, Certificates, DesiredState, MAX_DOCUMENT_BYTES, Membership,
    certificates_target, group_target, membership_target,
};
use crate::name::{DeviceId, GroupName};

impl Repository {
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
        let names = self.targets_below("devices/").into_keys();
        let others = [CERTIFICATES_PREFIX, REMOVALS_PREFIX];
        for name in names.filter(|name| !others.iter().any(|other| name.starts_with(other))) {
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

    /// Stages a renewed certificate (PEM), which replaces the one that was renewed before.
    pub fn set_certificate(&mut self, device: &DeviceId, pem: &str) -> Result<(), SignError> {
        let name = certificates_target(device);
        let mut document: Certificates = self.document(&name)?.unwrap_or_default();
        document.certificates.insert(device.clone(), pem.to_owned());
        self.stage_document(name, &document)
    }

    /// Stages that a device's key (SHA-256 of its public half) belongs to the fleet no longer: no groups, no renewed
    /// certificate, and a word to the device itself.
    pub fn remove_device(&mut self, device: &DeviceId, key: Digest) -> Result<(), SignError> {
        self.set_groups(device, BTreeSet::new())?;
        let name = certificates_target(device);
        let mut certificates: Certificates = self.document(&name)?.unwrap_or_default();
        if certificates.certificates.remove(device).is_some() {
            self.stage_document(name, &certificates)?;
        }
        let name = removals_target(device);
        let mut removals: Removals = self.document(&name)?.unwrap_or_default();
        removals.devices.insert(device.clone(), key);
        self.stage_document(name, &removals)
    }

    /// The key with which a device was taken out of the fleet.
    pub fn removed(&self, device: &DeviceId) -> Result<Option<Digest>, SignError> {
        let removals: Option<Removals> = self.document(&removals_target(device))?;
        Ok(removals.unwrap_or_default().devices.remove(device))
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
}
