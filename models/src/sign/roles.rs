//! Which roles there are, who signs them and until when they hold; and the way of a new key to its place.
//!
//! A new key waits in `ROLE.next.pem` until the repository that names it is signed, which may take days if other
//! machines must sign too, and only then takes the place of the old one, which is kept in `retired/`. Whoever opens
//! the keys next ([`settle`]) sees to that.

use std::path::{Path, PathBuf};

use jiff::Timestamp as Time;
use tough::schema::{RoleType, Signed, Snapshot};

use super::encrypted::Unlock;
use super::keys::{KeyRing, SigningRole, key_path};
use super::repository::Repository;
use super::roster::Roster;
use super::{SignError, refused};
use crate::durable;
use crate::verify::key_ids;

/// A role as the repository has it.
#[derive(Debug, Clone)]
pub struct RoleInfo {
    pub role: SigningRole,
    pub version: u64,
    pub expires: Time,
    /// Of the keys that may sign it, in hexadecimal.
    pub key_ids: Vec<String>,
    /// How many of them must.
    pub threshold: u64,
}

impl Repository {
    pub fn roles(&self) -> Result<Vec<RoleInfo>, SignError> {
        let root = &self.chain.root.signed;
        let roster = self.roster()?;
        let threshold = |role| Ok::<_, SignError>(roster.signers(role)?.threshold.get());
        let mut roles = vec![RoleInfo {
            threshold: threshold(SigningRole::Root)?,
            role: SigningRole::Root,
            version: root.version.get(),
            expires: root.expires,
            key_ids: key_ids(root, RoleType::Root),
        }];
        for role in SigningRole::ALL.into_iter().skip(1) {
            let missing = || refused(format!("this repository has no role {role}"));
            let file = self.chain.files.get(role.name()).ok_or_else(missing)?;
            let expires = match role {
                SigningRole::Timestamp => Some(self.chain.timestamp.signed.expires),
                SigningRole::Snapshot => serde_json::from_slice::<Signed<Snapshot>>(&file.bytes)
                    .ok()
                    .map(|snapshot| snapshot.signed.expires),
                _ => {
                    let mut ends = self.chain.offline_expiries().into_iter();
                    ends.find(|(name, _)| *name == role.name())
                        .map(|(_, end)| end)
                }
            };
            roles.push(RoleInfo {
                role,
                version: file.version,
                expires: expires.ok_or_else(missing)?,
                key_ids: file.keys.clone(),
                threshold: threshold(role)?,
            });
        }
        Ok(roles)
    }
}

/// Opens the keys of a directory with new ones for `roles`, which wait beside the present ones; one that waits
/// already is the new one.
pub fn prepare(
    directory: &Path,
    unlock: Unlock,
    roles: &[SigningRole],
) -> Result<KeyRing, SignError> {
    let mut keys = KeyRing::open_with(directory, unlock)?;
    for &role in roles {
        keys.renew(role, &next_path(directory, role))?;
    }
    Ok(keys)
}

/// The keys of a directory as they will sign under `roster`: ones that wait, where it names them, for the present ones.
pub fn keys_under(directory: &Path, unlock: Unlock, roster: &Roster) -> Result<KeyRing, SignError> {
    let mut keys = KeyRing::open_with(directory, unlock)?;
    for role in SigningRole::ALL {
        let path = next_path(directory, role);
        if KeyRing::id_in(&path)?.is_some_and(|id| roster.names(role, &id)) {
            keys.renew(role, &path)?;
        }
    }
    Ok(keys)
}

/// Puts new keys that the repository names in their places.
pub fn settle(directory: &Path, repository: &Repository) -> Result<(), SignError> {
    for role in repository.roles()? {
        let (next, present) = (
            next_path(directory, role.role),
            key_path(directory, role.role),
        );
        let Some(id) = KeyRing::id_in(&next)? else {
            continue;
        };
        if !role.key_ids.contains(&id) {
            continue;
        }
        if let Some(old) = KeyRing::id_in(&present)?.filter(|old| *old != id) {
            let retired = directory.join("retired");
            durable::create_directory(&retired)?;
            durable::make_private(&retired)?;
            let name = format!("{}-{}.pem", role.role, &old[..12]);
            durable::rename(&present, &retired.join(name))?;
        }
        durable::rename(&next, &present)?;
    }
    Ok(())
}

fn next_path(directory: &Path, role: SigningRole) -> PathBuf {
    directory.join(format!("{role}.next.pem"))
}
