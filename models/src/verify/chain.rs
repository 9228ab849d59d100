//! A complete set of metadata, verified link by link from a trusted root.
//!
//! Used on what tough has just accepted, on the copies that a device kept (without any network), and on the
//! operator's own repository before it is changed. It asks for more than TUF does: every link carries length
//! and digest, roles delegate one level deep, the timestamp says when it was signed, and target names are made
//! of plain names.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;
use serde::de::DeserializeOwned;
use tough::schema::{Delegations, Role, RoleType, Root, Signed, Snapshot, Targets, Timestamp};

use super::VerifyError;
use super::link::{self, link, target_info};
use super::verified::TargetInfo;
use crate::name::FileName;

/// The extra field that says when a timestamp (or a root) was signed.
pub const SIGNED_AT: &str = "signed_at";
const TIMESTAMP_FILE: &str = "timestamp.json";

/// One role's file as it was verified.
#[derive(Debug, Clone)]
pub struct RoleFile {
    pub version: u64,
    pub bytes: Vec<u8>,
    /// The key ids that may sign this role, sorted.
    pub keys: Vec<String>,
}

/// Every role, verified.
pub struct Chain {
    pub root: Signed<Root>,
    pub timestamp: Signed<Timestamp>,
    /// With the delegated roles in their places.
    pub targets: Signed<Targets>,
    /// When the timestamp says that it was signed.
    pub signed_at: Time,
    /// By role name: `timestamp`, `snapshot`, `targets` and the delegated ones.
    pub files: BTreeMap<String, RoleFile>,
}

/// Hands out a metadata file by name.
type Get<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<u8>, VerifyError>;

impl Chain {
    pub fn verify(root: &[u8], get: Get<'_>) -> Result<Self, VerifyError> {
        let root = parse_root(root)?;
        let mut files = BTreeMap::new();

        let bytes = get(TIMESTAMP_FILE)?;
        let timestamp: Signed<Timestamp> = parse(TIMESTAMP_FILE, &bytes)?;
        verify_role(&root, &timestamp, TIMESTAMP_FILE)?;
        let signed_at = signed_at(&timestamp.signed._extra)
            .ok_or_else(|| refused(TIMESTAMP_FILE, "it does not say when it was signed"))?;
        let version = timestamp.signed.version.get();
        insert_role(
            &mut files,
            &root.signed,
            RoleType::Timestamp,
            version,
            bytes,
        );

        let link = link(TIMESTAMP_FILE, &timestamp.signed.meta, "snapshot.json")?;
        let file = link.file("snapshot");
        let bytes = link.check(&file, get(&file)?)?;
        let snapshot: Signed<Snapshot> = parse(&file, &bytes)?;
        verify_role(&root, &snapshot, &file)?;
        link.check_version(&file, snapshot.signed.version)?;
        insert_role(
            &mut files,
            &root.signed,
            RoleType::Snapshot,
            link.version,
            bytes,
        );

        let link = link::link(&file, &snapshot.signed.meta, "targets.json")?;
        let file = link.file("targets");
        let bytes = link.check(&file, get(&file)?)?;
        let mut targets: Signed<Targets> = parse(&file, &bytes)?;
        verify_role(&root, &targets, &file)?;
        link.check_version(&file, targets.signed.version)?;
        insert_role(
            &mut files,
            &root.signed,
            RoleType::Targets,
            link.version,
            bytes,
        );

        if let Some(delegations) = &mut targets.signed.delegations {
            verify_delegations(delegations, &snapshot.signed, &mut files, get)?;
        }
        Ok(Self {
            root,
            timestamp,
            targets,
            signed_at,
            files,
        })
    }

    /// The roles whose keys are kept offline, with the end of their validity.
    pub fn offline_expiries(&self) -> Vec<(&str, Time)> {
        let delegated = self
            .targets
            .signed
            .delegations
            .iter()
            .flat_map(|d| &d.roles);
        let delegated = delegated.filter_map(|role| {
            let signed = &role.targets.as_ref()?.signed;
            Some((role.name.as_str(), signed.expires))
        });
        let own = [
            ("root", self.root.signed.expires),
            ("targets", self.targets.signed.expires),
        ];
        own.into_iter().chain(delegated).collect()
    }

    /// Every target that a role may speak for, by name.
    pub fn target_infos(&self) -> Result<BTreeMap<String, TargetInfo>, VerifyError> {
        let signed = &self.targets.signed;
        let mut infos = BTreeMap::new();
        for (name, _) in signed.targets_iter() {
            let raw = name.raw();
            let plain = raw.split('/').all(|part| part.parse::<FileName>().is_ok());
            if !plain {
                return Err(refused(format!("target {raw:?}"), "its name is not plain"));
            }
            // Asked for from the top, so that a role is heard only inside the paths delegated to it.
            let target = signed
                .find_target(name, false)
                .map_err(|_| refused(format!("target {raw}"), "its role may not speak for it"))?;
            infos.insert(raw.to_owned(), target_info(raw, target)?);
        }
        Ok(infos)
    }
}

/// Parses a root and checks that its own keys signed it.
pub fn parse_root(bytes: &[u8]) -> Result<Signed<Root>, VerifyError> {
    let root: Signed<Root> = parse("root.json", bytes)?;
    let file = format!("{}.root.json", root.signed.version);
    verify_role(&root, &root, &file)?;
    if !root.signed.consistent_snapshot {
        return Err(refused(file, "it does not use consistent snapshots"));
    }
    Ok(root)
}

/// Whether `next` follows `root`: one version on, signed by the keys of both (TUF 5.3.4 and 5.3.5).
pub fn root_follows(root: &Signed<Root>, next: &Signed<Root>) -> bool {
    root.signed.version.checked_add(1) == Some(next.signed.version)
        && root.signed.verify_role(next).is_ok()
        && next.signed.verify_role(next).is_ok()
}

/// The sorted key ids of a top-level role.
pub fn key_ids(root: &Root, role: RoleType) -> Vec<String> {
    let ids = root.roles.get(&role).map(|keys| keys.keyids.as_slice());
    sorted_hex(ids.unwrap_or_default())
}

/// Reads [`SIGNED_AT`] from a role's extra fields.
pub fn signed_at(extra: &std::collections::HashMap<String, serde_json::Value>) -> Option<Time> {
    extra.get(SIGNED_AT)?.as_str()?.parse().ok()
}

fn verify_delegations(
    delegations: &mut Delegations,
    snapshot: &Snapshot,
    files: &mut BTreeMap<String, RoleFile>,
    get: Get<'_>,
) -> Result<(), VerifyError> {
    let mut loaded = Vec::new();
    for role in &delegations.roles {
        let link = link(
            "snapshot.json",
            &snapshot.meta,
            &format!("{}.json", role.name),
        )?;
        let file = link.file(&role.name);
        let bytes = link.check(&file, get(&file)?)?;
        let targets: Signed<Targets> = parse(&file, &bytes)?;
        delegations
            .verify_role(&targets, &role.name)
            .map_err(|e| refused(&file, format!("it is not signed as it must be ({e})")))?;
        link.check_version(&file, targets.signed.version)?;
        if targets
            .signed
            .delegations
            .as_ref()
            .is_some_and(|d| !d.roles.is_empty())
        {
            return Err(refused(file, "a delegated role may not delegate further"));
        }
        let known = RoleFile {
            version: link.version,
            bytes,
            keys: sorted_hex(&role.keyids),
        };
        if files.insert(role.name.clone(), known).is_some() {
            return Err(refused(file, "two roles have this name"));
        }
        loaded.push(targets);
    }
    for (role, targets) in delegations.roles.iter_mut().zip(loaded) {
        role.targets = Some(targets);
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, VerifyError> {
    serde_json::from_slice(bytes).map_err(|e| {
        refused(
            file,
            format!("it is not the TUF metadata it should be ({e})"),
        )
    })
}

fn verify_role<T: Role>(
    root: &Signed<Root>,
    role: &Signed<T>,
    file: &str,
) -> Result<(), VerifyError> {
    root.signed.verify_role(role).map_err(|e| {
        let version = root.signed.version;
        refused(
            file,
            format!("it is not signed by the keys that root {version} names ({e})"),
        )
    })
}

fn insert_role(
    files: &mut BTreeMap<String, RoleFile>,
    root: &Root,
    role: RoleType,
    version: u64,
    bytes: Vec<u8>,
) {
    let file = RoleFile {
        version,
        bytes,
        keys: key_ids(root, role),
    };
    files.insert(role.to_string(), file);
}

fn sorted_hex(ids: &[tough::schema::decoded::Decoded<tough::schema::decoded::Hex>]) -> Vec<String> {
    let mut ids: Vec<String> = ids.iter().map(|id| hex::encode(&**id)).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn refused(file: impl Into<String>, problem: impl Into<String>) -> VerifyError {
    VerifyError::refused(file, problem)
}
