//! Who signs what: the keys of each role, and how many of them must sign.
//!
//! The root names the keys of the top-level roles, the targets role those of releases and rollouts. A roster is read
//! from both, changed here, and written back as the next root and the next targets, which `proposal` has signed.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;

use jiff::Timestamp as Time;
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, PathPattern, PathSet, RoleKeys, RoleType, Root, Signature, Targets,
};

use super::key_file::{PublicKey, key_id, verifies};
use super::keys::{KeyRing, SigningRole};
use super::metadata::{self, Lifetimes};
use super::{SignError, refused};

/// The keys of one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    /// By key id in hexadecimal.
    pub keys: BTreeMap<String, Key>,
    pub threshold: NonZeroU64,
}

impl Signers {
    /// The keys whose signatures over `message` are good.
    pub(super) fn signed_by(&self, message: &[u8], signatures: &[Signature]) -> Vec<&str> {
        let mut ids: Vec<&str> = signatures
            .iter()
            .filter_map(|signature| {
                let id = hex::encode(&*signature.keyid);
                let (id, key) = self.keys.get_key_value(&id)?;
                verifies(key, message, &signature.sig).then_some(id.as_str())
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The keys of every role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    roles: BTreeMap<SigningRole, Signers>,
}

/// The roles that the root names, as TUF calls them.
const TOP_LEVEL: [(RoleType, SigningRole); 4] = [
    (RoleType::Root, SigningRole::Root),
    (RoleType::Targets, SigningRole::Targets),
    (RoleType::Snapshot, SigningRole::Snapshot),
    (RoleType::Timestamp, SigningRole::Timestamp),
];

/// The delegated roles and what they may speak for. In TUF's patterns as tough reads them, `*` also matches slashes.
const DELEGATED: [(SigningRole, &[&str]); 2] = [
    (SigningRole::Releases, &["models/*"]),
    (SigningRole::Rollouts, &["groups/*", "devices/*"]),
];

impl Roster {
    /// One key for each role: that of `keys`.
    pub(super) fn of_keys(keys: &KeyRing) -> Result<Self, SignError> {
        let mut roles = BTreeMap::new();
        for role in SigningRole::ALL {
            let key = keys.public(role)?;
            let signers = Signers {
                keys: BTreeMap::from([(hex_id(&key)?, key)]),
                threshold: NonZeroU64::MIN,
            };
            roles.insert(role, signers);
        }
        Ok(Self { roles })
    }

    pub(super) fn of(root: &Root, targets: &Targets) -> Result<Self, SignError> {
        let mut roles = BTreeMap::new();
        for (kind, role) in TOP_LEVEL {
            let named = root.roles.get(&kind).ok_or_else(|| no_role(role))?;
            let keys = named.keyids.iter().filter_map(|id| root.keys.get(id));
            roles.insert(role, signers(keys, named.threshold)?);
        }
        for (role, _) in DELEGATED {
            let delegations = targets.delegations.as_ref();
            let named = delegations
                .and_then(|d| d.roles.iter().find(|named| named.name == role.name()))
                .ok_or_else(|| no_role(role))?;
            let all = delegations.map(|d| &d.keys);
            let keys = named.keyids.iter().filter_map(|id| all?.get(id));
            roles.insert(role, signers(keys, named.threshold)?);
        }
        Ok(Self { roles })
    }

    pub fn signers(&self, role: SigningRole) -> Result<&Signers, SignError> {
        self.roles.get(&role).ok_or_else(|| no_role(role))
    }

    /// Whether a key may sign a role.
    pub(super) fn names(&self, role: SigningRole, id: &str) -> bool {
        let signers = self.roles.get(&role);
        signers.is_some_and(|signers| signers.keys.contains_key(id))
    }

    /// One more key that may sign a role.
    pub fn add(&mut self, role: SigningRole, PublicKey(key): PublicKey) -> Result<(), SignError> {
        let id = hex_id(&key)?;
        let signers = self.change(role)?;
        if signers.keys.insert(id.clone(), key).is_some() {
            return Err(refused(format!("key {id} signs role {role} already")));
        }
        Ok(())
    }

    /// Takes a key of a role away, named by the beginning of its id; returns the whole id.
    pub fn revoke(&mut self, role: SigningRole, id: &str) -> Result<String, SignError> {
        let signers = self.change(role)?;
        let mut named = signers.keys.keys().filter(|known| known.starts_with(id));
        let (Some(found), None) = (named.next().cloned(), named.next()) else {
            return Err(refused(format!(
                "{id:?} is not the beginning of the id of one key of role {role}; `fleetctl key list` shows them"
            )));
        };
        if signers.keys.len() as u64 <= signers.threshold.get() {
            return Err(refused(format!(
                "role {role} has {} keys and {} of them must sign: add another key first, or lower the threshold",
                signers.keys.len(),
                signers.threshold
            )));
        }
        signers.keys.remove(&found);
        Ok(found)
    }

    /// How many of a role's keys must sign.
    pub fn set_threshold(&mut self, role: SigningRole, count: NonZeroU64) -> Result<(), SignError> {
        if matches!(role, SigningRole::Snapshot | SigningRole::Timestamp) && count.get() > 1 {
            return Err(refused(format!(
                "role {role} is signed by whichever machine publishes, with one key"
            )));
        }
        let signers = self.change(role)?;
        if count.get() > signers.keys.len() as u64 {
            return Err(refused(format!(
                "role {role} has {} keys, so {count} of them cannot sign: add keys first (`fleetctl key add`)",
                signers.keys.len()
            )));
        }
        signers.threshold = count;
        Ok(())
    }

    /// Puts the key of `next` in the place of that of `keys`.
    pub(super) fn replace(
        &mut self,
        role: SigningRole,
        keys: &KeyRing,
        next: &KeyRing,
    ) -> Result<(), SignError> {
        let key = next.public(role)?;
        let before = keys.id(role);
        let signers = self.change(role)?;
        if let Some(before) = before {
            signers.keys.remove(&before);
        }
        signers.keys.insert(hex_id(&key)?, key);
        Ok(())
    }

    fn change(&mut self, role: SigningRole) -> Result<&mut Signers, SignError> {
        self.roles.get_mut(&role).ok_or_else(|| no_role(role))
    }

    /// The root that names these keys.
    pub(super) fn root(
        &self,
        version: NonZeroU64,
        expires: Time,
        signed_at: Time,
    ) -> Result<Root, SignError> {
        let mut root = Root {
            spec_version: metadata::SPEC.to_owned(),
            consistent_snapshot: true,
            version,
            expires,
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: metadata::signed_at(signed_at),
        };
        for (kind, role) in TOP_LEVEL {
            let signers = self.signers(role)?;
            let mut keyids = Vec::new();
            for key in signers.keys.values() {
                let id = key_id(key)?;
                root.keys.insert(id.clone(), key.clone());
                keyids.push(id);
            }
            let named = RoleKeys {
                keyids,
                threshold: signers.threshold,
                _extra: HashMap::new(),
            };
            root.roles.insert(kind, named);
        }
        Ok(root)
    }

    /// The top-level targets that name these keys: nothing but the two delegations.
    pub(super) fn targets(&self, version: NonZeroU64, expires: Time) -> Result<Targets, SignError> {
        let mut delegations = Delegations::default();
        for (role, patterns) in DELEGATED {
            let signers = self.signers(role)?;
            let mut keyids = Vec::new();
            for key in signers.keys.values() {
                let id = key_id(key)?;
                delegations.keys.insert(id.clone(), key.clone());
                keyids.push(id);
            }
            let patterns: Result<Vec<_>, _> =
                patterns.iter().map(|p| PathPattern::new(*p)).collect();
            delegations.roles.push(DelegatedRole {
                name: role.name().to_owned(),
                keyids,
                threshold: signers.threshold,
                paths: PathSet::Paths(patterns.map_err(|e| refused(e.to_string()))?),
                terminating: true,
                targets: None,
            });
        }
        let mut targets = Targets::new(metadata::SPEC.to_owned(), version, expires);
        targets.delegations = Some(delegations);
        Ok(targets)
    }

    /// The first root, valid from now.
    pub(super) fn next_root(
        &self,
        version: NonZeroU64,
        lifetimes: &Lifetimes,
        now: Time,
    ) -> Result<Root, SignError> {
        self.root(version, lifetimes.end(SigningRole::Root, now)?, now)
    }

    pub(super) fn next_targets(
        &self,
        version: NonZeroU64,
        lifetimes: &Lifetimes,
        now: Time,
    ) -> Result<Targets, SignError> {
        self.targets(version, lifetimes.end(SigningRole::Targets, now)?)
    }
}

fn signers<'a>(
    keys: impl Iterator<Item = &'a Key>,
    threshold: NonZeroU64,
) -> Result<Signers, SignError> {
    let keys: Result<_, SignError> = keys.map(|key| Ok((hex_id(key)?, key.clone()))).collect();
    Ok(Signers {
        keys: keys?,
        threshold,
    })
}

fn hex_id(key: &Key) -> Result<String, SignError> {
    Ok(hex::encode(&*key_id(key)?))
}

fn no_role(role: SigningRole) -> SignError {
    refused(format!("this repository has no role {role}"))
}
