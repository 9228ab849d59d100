//! Putting signed files in their places, under a new snapshot and timestamp.
//!
//! Versioned files are written first and the timestamp last: until its rename the repository is the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU64;

use jiff::Timestamp as Time;

use super::commit::next;
use super::keys::{KeyRing, SigningRole};
use super::repository::{Repository, TIMESTAMP_FILE, metadata_path, verified_chain};
use super::roster::Roster;
use super::{Publication, SignError, metadata, refused};
use crate::chunk::pack_metadata;
use crate::durable::{self, Access, lossy};
use crate::name::FileName;
use crate::repository::METADATA_DIRECTORY;

/// Newly signed files by role, with their versions.
pub(super) type Signed = BTreeMap<SigningRole, (NonZeroU64, Vec<u8>)>;

impl Repository {
    /// Signs snapshot and timestamp over `signed` and what stands, and writes everything, timestamp last.
    pub(super) fn seal(
        &mut self,
        mut signed: Signed,
        roster: &Roster,
        keys: &KeyRing,
        now: Time,
    ) -> Result<Publication, SignError> {
        for role in [SigningRole::Snapshot, SigningRole::Timestamp] {
            let id = keys.id(role);
            if id.is_some_and(|id| !roster.names(role, &id)) {
                return Err(refused(format!(
                    "the key of role {role} that is here is not the one that the root names: get the present one \
                     from where it was made"
                )));
            }
        }
        let mut publication = Publication {
            chunks: self.chunks_of_changes(&signed)?,
            metadata: Vec::new(),
        };
        let mut listed = self.standing()?;
        listed.extend(
            signed
                .clone()
                .into_iter()
                .filter(|(role, _)| *role != SigningRole::Root),
        );
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

    pub(super) fn standing_file(&self, role: &str) -> Result<(NonZeroU64, Vec<u8>), SignError> {
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

fn sign<T: tough::schema::Role>(
    role: T,
    kind: SigningRole,
    keys: &KeyRing,
) -> Result<(NonZeroU64, Vec<u8>), SignError> {
    let version = role.version();
    let signed = metadata::sign(role, kind, keys)?;
    Ok((version, metadata::to_bytes(&signed)?))
}
