//! The state directory: what this device has, trusts and runs, in files that survive a power cut.
//!
//! ```text
//! lock                          held by the one process that owns the directory
//! trust/                        `models::verify`'s
//! identity/                     `identity`'s: key, certificate, enrolment
//! versions/{model}/{version}/   installed: verified, complete, never changed
//! active/{model}/pointer        which version serves and which one did before: replaced atomically
//! desired                       the sequence applied per group
//! incoming/ chunks/             work in progress: emptied at start; fetched chunks, kept to resume
//! outbox/ audit.log             telemetry that waits; the audit log
//! ```
//! An installation becomes visible by one rename, an activation by one pointer write, so at any instant the
//! device has the version before or the new one whole. What is active or previous is never removed here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use edgeward_models::durable::{self, Access, DurableError, Generations, Stored};
use edgeward_models::name::RolloutId;
use edgeward_models::package::{InstalledVersion, PackageError};
use edgeward_models::{Digest, GroupName, ModelName, Version};
use rustix::fs::{FlockOperation, Gid, Uid, flock};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

const FORMAT: u32 = 1;
/// Entries of a quarantine list; the oldest go first. A model refused this often has other troubles.
const MAX_QUARANTINED: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the state directory {0} is in use by another edgeward process (a running agent?)")]
    Locked(PathBuf),
    #[error("cannot use the state directory {path}")]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is damaged in both of its generations")]
    Damaged(PathBuf),
    #[error("{path} is not a document of this agent")]
    Foreign {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// The trust store's place in the state directory; the TLS door reads the proven time there before the state is
/// locked.
pub const TRUST_DIRECTORY: &str = "trust";

/// The directory, owned by this process until dropped.
#[derive(Debug)]
pub struct StateDirectory {
    root: PathBuf,
    _lock: File,
}

/// A version that serves or served, by everything needed to open it again without a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    pub version: Version,
    pub release: u64,
    pub manifest_digest: Digest,
    /// The rollout that brought it; a rollback by the device itself has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// Seconds since 1970 by the device's clock, for people.
    pub activated_at: i64,
}

/// A version that failed here: not tried again until another rollout names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    pub version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    pub reason: String,
    pub at: i64,
}

/// One model's pointers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Pointer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Pointer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Quarantined>,
}

impl Default for ModelRecord {
    fn default() -> Self {
        Self {
            format: FORMAT,
            active: None,
            previous: None,
            quarantined: Vec::new(),
        }
    }
}

impl ModelRecord {
    /// The record after `new` was activated. Activating what is active changes nothing but the rollout.
    pub fn activated(&self, new: Pointer) -> Self {
        let mut next = self.clone();
        if let Some(old) = next.active.replace(new.clone())
            && old.version != new.version
        {
            next.previous = Some(old);
        }
        next
    }

    /// The record after `version` failed here.
    pub fn quarantine(&self, entry: Quarantined) -> Self {
        let mut next = self.clone();
        next.quarantined
            .retain(|q| (&q.version, &q.rollout) != (&entry.version, &entry.rollout));
        next.quarantined.push(entry);
        let excess = next.quarantined.len().saturating_sub(MAX_QUARANTINED);
        next.quarantined.drain(..excess);
        next
    }

    /// The record after the active version failed and `previous` was put back.
    pub fn put_back(&self, now: i64) -> Self {
        let mut next = self.clone();
        if let Some(previous) = next.previous.take() {
            next.active = Some(Pointer {
                activated_at: now,
                ..previous
            });
        }
        next
    }

    /// Why this version may not run for this rollout.
    pub fn barred(&self, version: &Version, rollout: Option<&RolloutId>) -> Option<&str> {
        self.quarantined
            .iter()
            .find(|q| q.version == *version && q.rollout.as_ref() == rollout)
            .map(|q| q.reason.as_str())
    }

    /// Whether the version that the pointer names failed here for the rollout that brought it.
    pub fn active_is_barred(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|a| self.barred(&a.version, a.rollout.as_ref()).is_some())
    }
}

/// The sequences of desired state that this device has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    pub groups: BTreeMap<GroupName, u64>,
}

impl StateDirectory {
    /// Makes what is missing, takes the lock, throws work in progress away.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        if !root.exists() {
            durable::create_directory(root)?;
            fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(|source| {
                StateError::Unusable {
                    path: root.to_owned(),
                    source,
                }
            })?;
        }
        let lock = Self::take_lock(root)?;
        let state = Self {
            root: root.to_owned(),
            _lock: lock,
        };
        durable::remove_directory(&state.incoming())?;
        for directory in ["versions", "active", "incoming", "chunks", "identity"] {
            durable::create_directory(&root.join(directory))?;
        }
        Ok(state)
    }

    fn take_lock(root: &Path) -> Result<File, StateError> {
        let path = root.join("lock");
        let unusable = |source| StateError::Unusable {
            path: root.to_owned(),
            source,
        };
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked(root.to_owned())),
            Err(e) => Err(unusable(e.into())),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn trust(&self) -> PathBuf {
        self.root.join(TRUST_DIRECTORY)
    }

    pub fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub fn chunks(&self) -> PathBuf {
        self.root.join("chunks")
    }

    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    pub fn outbox(&self) -> PathBuf {
        self.root.join("outbox")
    }

    pub fn version_directory(&self, model: &ModelName, version: &Version) -> PathBuf {
        self.root
            .join("versions")
            .join(model.as_str())
            .join(version.to_string())
    }

    /// Opens an installed version, reading and checking every file of it.
    pub fn open_version(
        &self,
        model: &ModelName,
        pointer: &Pointer,
    ) -> Result<InstalledVersion, PackageError> {
        InstalledVersion::open(
            &self.version_directory(model, &pointer.version),
            &pointer.manifest_digest,
        )
    }

    /// All pointers. One that is damaged falls back to its generation before; one that cannot be read at all
    /// is reported and left alone, since the others must serve.
    pub fn records(&self) -> Result<BTreeMap<ModelName, ModelRecord>, StateError> {
        let directory = self.root.join("active");
        let unusable = |source| StateError::Unusable {
            path: directory.clone(),
            source,
        };
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(unusable)? {
            let name = entry.map_err(unusable)?.file_name();
            let Ok(model) = name.to_string_lossy().parse::<ModelName>() else {
                continue;
            };
            match self.record(&model) {
                Ok(record) => {
                    records.insert(model, record);
                }
                Err(problem) => {
                    error!(%model, %problem, "pointer unreadable; the model is not served");
                }
            }
        }
        Ok(records)
    }

    fn pointer_file(&self, model: &ModelName) -> Generations {
        // A directory of its own: beside each other, the generation before of `a` would be named like the
        // pointer of a model `a.before`.
        Generations::new(
            self.root
                .join("active")
                .join(model.as_str())
                .join("pointer"),
        )
    }

    pub fn record(&self, model: &ModelName) -> Result<ModelRecord, StateError> {
        Ok(read_document(&self.pointer_file(model))?.unwrap_or_default())
    }

    /// Replaces a model's pointers in one step.
    pub fn write_record(&self, model: &ModelName, record: &ModelRecord) -> Result<(), StateError> {
        let file = self.pointer_file(model);
        if let Some(parent) = file.path().parent() {
            durable::create_directory(parent)?;
        }
        write_document(&file, record)
    }

    fn desired_file(&self) -> Generations {
        Generations::new(self.root.join("desired"))
    }

    pub fn applied(&self) -> Result<Applied, StateError> {
        Ok(read_document(&self.desired_file())?.unwrap_or_default())
    }

    pub fn write_applied(&self, applied: &Applied) -> Result<(), StateError> {
        write_document(&self.desired_file(), applied)
    }

    /// Installed versions of a model, oldest first.
    pub fn installed(&self, model: &ModelName) -> Vec<Version> {
        let directory = self.root.join("versions").join(model.as_str());
        let mut versions: Vec<Version> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort();
        versions
    }

    /// Makes an assembled directory the installed version, by one rename. A leftover of the same name that
    /// no pointer speaks of is replaced.
    pub fn install(
        &self,
        assembled: &Path,
        model: &ModelName,
        version: &Version,
    ) -> Result<(), StateError> {
        let target = self.version_directory(model, version);
        durable::sync_directory(assembled)?;
        if let Some(parent) = target.parent() {
            durable::create_directory(parent)?;
        }
        self.remove_version(model, version)?;
        Ok(durable::rename(assembled, &target)?)
    }

    /// Removes an installed version. Moved away first, so that no half-removed directory bears its name.
    pub fn remove_version(&self, model: &ModelName, version: &Version) -> Result<(), StateError> {
        let target = self.version_directory(model, version);
        if !target.exists() {
            return Ok(());
        }
        let doomed = self.incoming().join(format!("removed-{model}-{version}"));
        durable::remove_directory(&doomed)?;
        durable::rename(&target, &doomed)?;
        Ok(durable::remove_directory(&doomed)?)
    }

    /// Removes versions that nobody needs: all but active, previous and the newest `keep` others.
    pub fn collect_garbage(&self, model: &ModelName, record: &ModelRecord, keep: usize) {
        let needed = |version: &Version| {
            [&record.active, &record.previous]
                .into_iter()
                .flatten()
                .any(|p| p.version == *version)
        };
        let mut others: Vec<Version> = self
            .installed(model)
            .into_iter()
            .filter(|v| !needed(v))
            .collect();
        let excess = others.len().saturating_sub(keep);
        for version in others.drain(..excess) {
            if let Err(problem) = self.remove_version(model, &version) {
                warn!(%model, %version, %problem, "old version could not be removed");
            }
        }
    }

    /// Free bytes on the disk of the state directory, for this user.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.root)
            .map(|s| s.f_bavail.saturating_mul(s.f_frsize))
            .unwrap_or(0)
    }
}

/// When root runs a verb on a directory that belongs to the agent's own user, it acts as that user from here
/// on: files made as root would lock the agent out. Call before any other thread exists.
pub fn act_as_owner(root: &Path) -> Result<(), StateError> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let Ok(metadata) = fs::metadata(root) else {
        return Ok(());
    };
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    if !rustix::process::geteuid().is_root() || uid.is_root() {
        return Ok(());
    }
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|e| StateError::Unusable {
            path: root.to_owned(),
            source: e.into(),
        })
}

fn read_document<T: for<'de> Deserialize<'de>>(
    file: &Generations,
) -> Result<Option<T>, StateError> {
    let bytes = match file.read()? {
        Stored::Absent => return Ok(None),
        Stored::Good(bytes) => bytes,
        Stored::Damaged {
            before: Some(bytes),
        } => {
            error!(path = %file.path().display(), "state file damaged; the generation before it is used");
            bytes
        }
        Stored::Damaged { before: None } => {
            return Err(StateError::Damaged(file.path().to_owned()));
        }
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| StateError::Foreign {
            path: file.path().to_owned(),
            source,
        })
}

fn write_document<T: Serialize>(file: &Generations, document: &T) -> Result<(), StateError> {
    let bytes = serde_json::to_vec_pretty(document).map_err(|source| StateError::Foreign {
        path: file.path().to_owned(),
        source,
    })?;
    Ok(file.write(&bytes, Access::Owner)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(major: u64) -> Pointer {
        Pointer {
            version: Version::new(major, 0, 0),
            release: major,
            manifest_digest: Digest::of(&[major as u8]),
            rollout: Some(format!("r{major}").parse().expect("name")),
            activated_at: 0,
        }
    }

    fn model() -> ModelName {
        "digits".parse().expect("name")
    }

    #[test]
    fn what_was_active_becomes_previous_and_a_put_back_reverses_that() {
        let one = ModelRecord::default().activated(pointer(1));
        assert_eq!(one.previous, None);
        let two = one.activated(pointer(2));
        assert_eq!(two.previous, Some(pointer(1)));
        assert_eq!(two.activated(pointer(2)), two);
        let back = two
            .quarantine(Quarantined {
                version: Version::new(2, 0, 0),
                rollout: pointer(2).rollout,
                reason: "it crashed".to_owned(),
                at: 0,
            })
            .put_back(0);
        assert_eq!(back.active, Some(pointer(1)));
        assert_eq!(back.previous, None);
        let (version, rollout) = (Version::new(2, 0, 0), pointer(2).rollout);
        assert_eq!(back.barred(&version, rollout.as_ref()), Some("it crashed"));
        let another = "r9".parse().expect("name");
        assert_eq!(back.barred(&version, Some(&another)), None);
    }

    #[test]
    fn the_quarantine_list_is_bounded() {
        let mut record = ModelRecord::default();
        for patch in 0..100 {
            record = record.quarantine(Quarantined {
                version: Version::new(1, 0, patch),
                rollout: None,
                reason: String::new(),
                at: 0,
            });
        }
        assert_eq!(record.quarantined.len(), MAX_QUARANTINED);
        assert!(record.barred(&Version::new(1, 0, 99), None).is_some());
    }

    #[test]
    fn one_process_owns_the_directory_and_work_in_progress_is_thrown_away() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = StateDirectory::open(directory.path()).expect("open");
        fs::create_dir(state.incoming().join("digits-1.0.0")).expect("leftover");
        assert!(matches!(
            StateDirectory::open(directory.path()),
            Err(StateError::Locked(_))
        ));
        drop(state);
        let state = StateDirectory::open(directory.path()).expect("open");
        assert_eq!(fs::read_dir(state.incoming()).expect("read").count(), 0);
    }

    #[test]
    fn pointers_survive_a_restart_and_a_damaged_one_falls_back_to_the_generation_before() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = StateDirectory::open(directory.path()).expect("open");
        let one = ModelRecord::default().activated(pointer(1));
        let two = one.activated(pointer(2));
        state.write_record(&model(), &one).expect("write");
        state.write_record(&model(), &two).expect("write");
        assert_eq!(state.records().expect("read")[&model()], two);
        fs::write(directory.path().join("active/digits/pointer"), b"junk").expect("damage");
        assert_eq!(state.records().expect("read")[&model()], one);
        fs::write(
            directory.path().join("active/digits/pointer.before"),
            b"junk",
        )
        .expect("damage");
        assert!(state.records().expect("others still serve").is_empty());
        assert!(state.record(&model()).is_err());
    }

    #[test]
    fn garbage_collection_keeps_active_previous_and_the_newest_others() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = StateDirectory::open(directory.path()).expect("open");
        for major in 1..=6 {
            let assembled = state.incoming().join("x");
            fs::create_dir(&assembled).expect("mkdir");
            state
                .install(&assembled, &model(), &Version::new(major, 0, 0))
                .expect("install");
        }
        let record = ModelRecord::default()
            .activated(pointer(1))
            .activated(pointer(3));
        state.collect_garbage(&model(), &record, 2);
        let left: Vec<String> = state
            .installed(&model())
            .iter()
            .map(Version::to_string)
            .collect();
        assert_eq!(left, ["1.0.0", "3.0.0", "5.0.0", "6.0.0"]);
    }
}
