//! Signing what was staged, renewing what grows old, carrying out what others have signed.
//!
//! Every change of an offline role is a proposal first (`proposal`); one with all its signatures is sealed (`seal`).

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use jiff::Timestamp as Time;
use tough::TargetName;
use tough::schema::{Root, Targets};

use super::document::Document;
use super::keys::{KeyRing, SigningRole};
use super::proposal::Proposal;
use super::repository::Repository;
use super::roster::Roster;
use super::seal::Signed;
use super::{Publication, SignError, refused};

impl Repository {
    /// Signs what was staged: changed delegated roles, snapshot, timestamp. Roles past three quarters of their
    /// life are renewed on the way if the keys at hand suffice. On disk the timestamp is replaced last.
    /// With nothing staged and nothing to renew the publication is empty and nothing is signed; where the keys at
    /// hand do not suffice nothing is changed ([`SignError::Unsigned`]).
    pub fn commit(&mut self, keys: &KeyRing, now: Time) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        let mut documents = BTreeMap::new();
        for role in [SigningRole::Releases, SigningRole::Rollouts] {
            let old = &self.delegated(role)?.signed;
            let targets = self.next_delegated(role, now)?;
            if targets.targets != old.targets || self.renewable(role, old.expires, keys, now)? {
                documents.insert(role, Document::new(role, &targets)?);
            }
        }
        let role = SigningRole::Targets;
        let mut targets = self.chain.targets.signed.clone();
        if self.renewable(role, targets.expires, keys, now)? {
            targets.version = next(targets.version)?;
            targets.expires = self.lifetimes.end(role, now)?;
            documents.insert(role, Document::new(role, &targets)?);
        }
        if documents.is_empty() {
            return Ok(Publication::default());
        }
        self.propose(documents, &[keys], now)
    }

    /// Re-signs snapshot and timestamp only (works with only those two keys present).
    pub fn refresh(&mut self, keys: &KeyRing, now: Time) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        let roster = self.roster()?;
        self.seal(Signed::new(), &roster, keys, now)
    }

    /// Signs documents with all these keys and carries them out, the last keys being those that sign from then on.
    pub(super) fn propose(
        &mut self,
        documents: BTreeMap<SigningRole, Document>,
        keys: &[&KeyRing],
        now: Time,
    ) -> Result<Publication, SignError> {
        let mut proposal = Proposal::new(self, documents, now)?;
        for keys in keys {
            proposal.sign(&self.chain, keys)?;
        }
        let keys = keys.last().ok_or_else(|| refused("there are no keys"))?;
        self.complete(proposal, keys, now)
    }

    /// Carries out a proposal that is signed as it must be, if the repository is still the one that it changes.
    pub fn complete(
        &mut self,
        mut proposal: Proposal,
        keys: &KeyRing,
        now: Time,
    ) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        for role in proposal.documents.keys() {
            let (version, bytes) = match role {
                SigningRole::Root => (self.chain.root.signed.version, self.root()?),
                role => self.standing_file(role.name())?,
            };
            let made_for = proposal.before.get(&format!("{version}.{role}.json"));
            if made_for.map(String::as_bytes) != Some(&bytes) {
                return Err(refused(format!(
                    "the repository moved on after this change was made: role {role} is at version {version} now, so \
                     it would undo what came between. Make the change anew"
                )));
            }
        }
        proposal.keep_counting(&self.chain)?;
        let lacks = proposal.lacks(&self.chain)?;
        if !lacks.is_empty() {
            return Err(SignError::Unsigned {
                lacks,
                proposal: Box::new(proposal),
            });
        }
        let (_, roster) = proposal.rosters(&self.chain)?;
        let mut signed = Signed::new();
        for (role, document) in &proposal.documents {
            let (file, standing) = match role {
                SigningRole::Root => (
                    document.file::<Root>(*role)?,
                    self.chain.root.signed.version,
                ),
                role => (
                    document.file::<Targets>(*role)?,
                    self.standing_file(role.name())?.0,
                ),
            };
            if file.0 != next(standing)? {
                return Err(refused(format!(
                    "it is not the next version of role {role}"
                )));
            }
            signed.insert(*role, file);
        }
        for role in [
            SigningRole::Targets,
            SigningRole::Releases,
            SigningRole::Rollouts,
        ] {
            if !signed.contains_key(&role) && !self.counts(role, &roster)? {
                return Err(refused(format!(
                    "role {role} would not be signed as the new keys ask for. Make the change anew"
                )));
            }
        }
        self.seal(signed, &roster, keys, now)
    }

    /// Who will sign what once a proposal is carried out.
    pub fn roster_after(&self, proposal: &Proposal) -> Result<Roster, SignError> {
        proposal.roster_after(&self.chain)
    }

    /// Whether a role's file as it stands is signed as this roster asks for.
    pub(super) fn counts(&self, role: SigningRole, roster: &Roster) -> Result<bool, SignError> {
        let file: tough::schema::Signed<Targets> =
            serde_json::from_slice(&self.standing_file(role.name())?.1)
                .map_err(|e| refused(format!("role {role}: {e}")))?;
        let form = Document::new(role, &file.signed)?.signed;
        let signers = roster.signers(role)?;
        let good = signers.signed_by(form.as_bytes(), &file.signatures).len();
        Ok(good as u64 >= signers.threshold.get())
    }

    /// Refuses a clock that went back: devices count on what signatures say of the time.
    pub(super) fn signing_time(&self, now: Time) -> Result<Time, SignError> {
        let last = self.chain.signed_at;
        if now < last && !self.earlier_clock_accepted {
            return Err(refused(format!(
                "this computer's clock says {now}, and the repository was signed at {last}: set the clock, \
                 or, if it was ahead then, run `fleetctl refresh --accept-earlier-clock` once"
            )));
        }
        Ok(now)
    }

    /// Whether a role is due and the keys at hand suffice to renew it.
    fn renewable(
        &self,
        role: SigningRole,
        expires: Time,
        keys: &KeyRing,
        now: Time,
    ) -> Result<bool, SignError> {
        if !self.lifetimes.due(role, expires, now) {
            return Ok(false);
        }
        let roster = self.roster()?;
        let signers = roster.signers(role)?;
        let ours = keys.id(role).is_some_and(|id| roster.names(role, &id));
        Ok(signers.threshold.get() == 1 && ours && keys.ready(role).is_ok())
    }

    /// A delegated role's next version, with what was staged for it.
    pub(super) fn next_delegated(
        &self,
        role: SigningRole,
        now: Time,
    ) -> Result<Targets, SignError> {
        let mut targets = self.delegated(role)?.signed.clone();
        targets.version = next(targets.version)?;
        targets.expires = self.lifetimes.end(role, now)?;
        for (name, target) in &self.staged {
            let released = name.starts_with("models/");
            if released != (role == SigningRole::Releases) {
                continue;
            }
            let name = TargetName::new(name).map_err(|e| refused(e.to_string()))?;
            match target {
                Some(target) => targets.add_target(name, target.clone()),
                None => drop(targets.remove_target(&name)),
            }
        }
        Ok(targets)
    }
}

pub(super) fn next(version: NonZeroU64) -> Result<NonZeroU64, SignError> {
    version
        .checked_add(1)
        .ok_or_else(|| refused("a version number has come to its end"))
}
