//! Changing who signs: keys replaced, added and revoked, thresholds raised and lowered, roots renewed.
//!
//! A role whose file is no longer signed as its new keys ask for is signed anew; everything else stays as it is, so
//! that a change of one role's keys does not need everybody's signature.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;

use super::commit::next;
use super::document::Document;
use super::keys::{KeyRing, SigningRole};
use super::repository::Repository;
use super::roster::Roster;
use super::{Publication, SignError, refused};

const BELOW_ROOT: [SigningRole; 3] = [
    SigningRole::Targets,
    SigningRole::Releases,
    SigningRole::Rollouts,
];

impl Repository {
    /// Gives every role the one key of `next_keys`, and signs everything anew.
    pub fn rotate(
        &mut self,
        keys: &KeyRing,
        next_keys: &KeyRing,
        now: Time,
    ) -> Result<Publication, SignError> {
        self.sign_anew(
            &Roster::of_keys(next_keys)?,
            &SigningRole::ALL,
            &[keys, next_keys],
            now,
        )
    }

    /// Signs the root and everything below it anew with the keys that it has, so that nothing ends.
    pub fn renew(&mut self, keys: &KeyRing, now: Time) -> Result<Publication, SignError> {
        self.sign_anew(&self.roster()?, &SigningRole::ALL, &[keys], now)
    }

    /// Puts the keys of `next_keys` in the places of those of `keys`, for these roles.
    pub fn replace_keys(
        &mut self,
        roles: &[SigningRole],
        keys: &KeyRing,
        next_keys: &KeyRing,
        now: Time,
    ) -> Result<Publication, SignError> {
        let mut roster = self.roster()?;
        for role in roles {
            roster.replace(*role, keys, next_keys)?;
        }
        self.reorganize(&roster, &[keys, next_keys], now)
    }

    /// Has these keys sign from now on. `keys`: those at hand, the ones that sign from then on last.
    pub fn reorganize(
        &mut self,
        roster: &Roster,
        keys: &[&KeyRing],
        now: Time,
    ) -> Result<Publication, SignError> {
        let standing = self.roster()?;
        let named_by_root = [
            SigningRole::Root,
            SigningRole::Targets,
            SigningRole::Snapshot,
            SigningRole::Timestamp,
        ];
        let changed = |role: &SigningRole| {
            Ok::<_, SignError>(standing.signers(*role)? != roster.signers(*role)?)
        };
        let mut anew = Vec::new();
        for role in named_by_root {
            if changed(&role)? && !anew.contains(&SigningRole::Root) {
                anew.push(SigningRole::Root);
            }
        }
        if changed(&SigningRole::Releases)? || changed(&SigningRole::Rollouts)? {
            anew.push(SigningRole::Targets);
        }
        if anew.is_empty() {
            return Err(refused("that is how it is already: nothing changes"));
        }
        for role in BELOW_ROOT {
            if !self.counts(role, roster)? && !anew.contains(&role) {
                anew.push(role);
            }
        }
        self.sign_anew(roster, &anew, keys, now)
    }

    fn sign_anew(
        &mut self,
        roster: &Roster,
        roles: &[SigningRole],
        keys: &[&KeyRing],
        now: Time,
    ) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        let mut documents = BTreeMap::new();
        for &role in roles {
            let document = match role {
                SigningRole::Root => {
                    let version = next(self.chain.root.signed.version)?;
                    Document::new(role, &roster.next_root(version, &self.lifetimes, now)?)?
                }
                SigningRole::Targets => {
                    let version = next(self.chain.targets.signed.version)?;
                    Document::new(role, &roster.next_targets(version, &self.lifetimes, now)?)?
                }
                SigningRole::Releases | SigningRole::Rollouts => {
                    Document::new(role, &self.next_delegated(role, now)?)?
                }
                // They are signed anew with every change.
                SigningRole::Snapshot | SigningRole::Timestamp => continue,
            };
            documents.insert(role, document);
        }
        self.propose(documents, keys, now)
    }
}
