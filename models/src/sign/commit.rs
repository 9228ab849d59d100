//! Signing what was staged, renewing what grows old, changing keys.
//!
//! Versioned files are written first and the timestamp last: until its rename the repository is the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU64;

use jiff::Timestamp as Time;
use tough::TargetName;
use tough::schema::Targets;

use super::key_file::key_id;
use super::keys::{KeyRing, SigningRole};
use super::repository::{Repository, TIMESTAMP_FILE, metadata_path, verified_chain};
use super::{Publication, SignError, metadata, refused};
use crate::chunk::pack_metadata;
use crate::durable::{self, Access, lossy};
use crate::name::FileName;
use crate::repository::METADATA_DIRECTORY;

/// Newly signed files by role, with their versions.
type Signed = BTreeMap<SigningRole, (NonZeroU64, Vec<u8>)>;

impl Repository {
    /// Signs what was staged: changed delegated roles, snapshot, timestamp. Roles past three quarters of their
    /// life are renewed on the way if their keys are at hand (and can be unlocked). On disk the timestamp is replaced last.
    /// With nothing staged and nothing to renew the publication is empty and nothing is signed.
    pub fn commit(&mut self, keys: &KeyRing, now: Time) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        let mut signed = Signed::new();
        for role in [SigningRole::Releases, SigningRole::Rollouts] {
            if let Some(file) = self.sign_delegated(role, keys, now)? {
                signed.insert(role, file);
            }
        }
        if self.renewable(
            SigningRole::Targets,
            self.chain.targets.signed.expires,
            keys,
            now,
        ) {
            let mut targets = self.chain.targets.signed.clone();
            targets.version = next(targets.version)?;
            targets.expires = self.lifetimes.end(SigningRole::Targets, now)?;
            signed.insert(
                SigningRole::Targets,
                sign(targets, SigningRole::Targets, keys)?,
            );
        }
        if signed.is_empty() {
            return Ok(Publication::default());
        }
        self.seal(signed, None, keys, now)
    }

    /// Re-signs snapshot and timestamp only (works with only those two keys present).
    pub fn refresh(&mut self, keys: &KeyRing, now: Time) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        self.seal(Signed::new(), None, keys, now)
    }

    /// Makes a new root that names the keys of `next`, signed by the root keys of both, and signs every role with
    /// its new key. This is how a root is renewed (`next` = `keys`) and how a lost or stolen key is replaced.
    pub fn rotate(
        &mut self,
        keys: &KeyRing,
        next_keys: &KeyRing,
        now: Time,
    ) -> Result<Publication, SignError> {
        let now = self.signing_time(now)?;
        let version = next(self.chain.root.signed.version)?;
        let root = metadata::root(version, next_keys, &self.lifetimes, now)?;
        let mut root = metadata::sign(root, SigningRole::Root, next_keys)?;
        let old = metadata::signature(&root.signed, SigningRole::Root, keys)?;
        if key_id(&keys.public(SigningRole::Root)?)? != root.signatures[0].keyid {
            root.signatures.push(old);
        }
        let version = next(self.chain.targets.signed.version)?;
        let targets = metadata::delegating_targets(version, next_keys, &self.lifetimes, now)?;
        let mut signed = Signed::new();
        signed.insert(
            SigningRole::Targets,
            sign(targets, SigningRole::Targets, next_keys)?,
        );
        for role in [SigningRole::Releases, SigningRole::Rollouts] {
            let targets = self.next_delegated(role, now)?;
            signed.insert(role, sign(targets, role, next_keys)?);
        }
        let root = (root.signed.version, metadata::to_bytes(&root)?);
        self.seal(signed, Some(root), next_keys, now)
    }

    /// Refuses a clock that went back: devices count on what signatures say of the time.
    fn signing_time(&self, now: Time) -> Result<Time, SignError> {
        let last = self.chain.signed_at;
        if now < last && !self.earlier_clock_accepted {
            return Err(refused(format!(
                "this computer's clock says {now}, and the repository was signed at {last}: set the clock, \
                 or, if it was ahead then, run `fleetctl refresh --accept-earlier-clock` once"
            )));
        }
        Ok(now)
    }

    fn renewable(&self, role: SigningRole, expires: Time, keys: &KeyRing, now: Time) -> bool {
        self.lifetimes.due(role, expires, now) && keys.ready(role).is_ok()
    }

    /// `None` when the role has no change and needs no renewal.
    fn sign_delegated(
        &self,
        role: SigningRole,
        keys: &KeyRing,
        now: Time,
    ) -> Result<Option<(NonZeroU64, Vec<u8>)>, SignError> {
        let old = &self.delegated(role)?.signed;
        let targets = self.next_delegated(role, now)?;
        if targets.targets == old.targets && !self.renewable(role, old.expires, keys, now) {
            return Ok(None);
        }
        sign(targets, role, keys).map(Some)
    }

    /// A delegated role's next version, with what was staged for it.
    fn next_delegated(&self, role: SigningRole, now: Time) -> Result<Targets, SignError> {
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

    /// Signs snapshot and timestamp over `signed` and what stands, and writes everything, timestamp last.
    fn seal(
        &mut self,
        mut signed: Signed,
        root: Option<(NonZeroU64, Vec<u8>)>,
        keys: &KeyRing,
        now: Time,
    ) -> Result<Publication, SignError> {
        let mut listed = self.standing()?;
        listed.extend(signed.clone());
        let version = next(self.standing_file("snapshot")?.0)?;
        let snapshot = metadata::snapshot(version, &listed, &self.lifetimes, now)?;
        let (version, bytes) = sign(snapshot, SigningRole::Snapshot, keys)?;
        let timestamp = metadata::timestamp(
            next(self.chain.timestamp.signed.version)?,
            (version, &bytes),
            &self.lifetimes,
            now,
        )?;
        let (_, timestamp) = sign(timestamp, SigningRole::Timestamp, keys)?;
        signed.insert(SigningRole::Snapshot, (version, bytes));
        signed.extend(root.map(|file| (SigningRole::Root, file)));

        let mut publication = Publication::default();
        for target in self.staged.values().flatten() {
            publication.chunks.extend(self.chunks_of(target)?);
        }
        for (role, (version, bytes)) in &signed {
            let name = format!("{version}.{role}.json");
            let file: FileName = name.parse().map_err(|e| refused(format!("{e}")))?;
            let packed = pack_metadata(bytes)?;
            self.write_chunks(&packed.chunks)?;
            publication
                .chunks
                .extend(packed.chunks.into_iter().map(|(digest, _)| digest));
            durable::write(
                &metadata_path(&self.directory, &name),
                bytes,
                Access::Anyone,
            )?;
            publication.metadata.push(file);
        }
        let path = metadata_path(&self.directory, TIMESTAMP_FILE);
        durable::write(&path, &timestamp, Access::Anyone)?;
        let last = TIMESTAMP_FILE
            .parse()
            .map_err(|e| refused(format!("{e}")))?;
        publication.metadata.push(last);
        publication.chunks.sort();
        publication.chunks.dedup();

        let before = std::mem::replace(&mut self.chain, verified_chain(&self.directory)?);
        self.staged.clear();
        self.prune(&before.files);
        Ok(publication)
    }

    /// What the next snapshot lists unless it is replaced.
    fn standing(&self) -> Result<Signed, SignError> {
        let roles = [
            SigningRole::Targets,
            SigningRole::Releases,
            SigningRole::Rollouts,
        ];
        let mut standing = Signed::new();
        for role in roles {
            standing.insert(role, self.standing_file(role.name())?);
        }
        Ok(standing)
    }

    fn standing_file(&self, role: &str) -> Result<(NonZeroU64, Vec<u8>), SignError> {
        let file = self.chain.files.get(role);
        file.and_then(|f| Some((NonZeroU64::new(f.version)?, f.bytes.clone())))
            .ok_or_else(|| refused(format!("this repository has no role {role}")))
    }

    /// Removes versioned files older than the generation before, which a reader may still be in the middle of.
    fn prune(&self, before: &BTreeMap<String, crate::verify::RoleFile>) {
        let name = |(role, file): (&String, &crate::verify::RoleFile)| {
            format!("{}.{role}.json", file.version)
        };
        let wanted: BTreeSet<String> = before
            .iter()
            .map(name)
            .chain(self.chain.files.iter().map(name))
            .collect();
        let entries = fs::read_dir(self.directory.join(METADATA_DIRECTORY));
        for entry in entries.into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let name = file_name.to_string_lossy();
            let roots_and_timestamp = name.ends_with(".root.json") || name == TIMESTAMP_FILE;
            if !roots_and_timestamp && name.ends_with(".json") && !wanted.contains(&*name) {
                lossy::remove(&entry.path());
            }
        }
    }
}

fn next(version: NonZeroU64) -> Result<NonZeroU64, SignError> {
    version
        .checked_add(1)
        .ok_or_else(|| refused("a version number has come to its end"))
}

fn sign<T: tough::schema::Role>(
    role: T,
    kind: SigningRole,
    keys: &KeyRing,
) -> Result<(NonZeroU64, Vec<u8>), SignError> {
    let version = role.version();
    let signed = metadata::sign(role, kind, keys)?;
    Ok((version, metadata::to_bytes(&signed)?))
}
