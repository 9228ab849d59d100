//! Making and signing single metadata files.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp as Time};
use serde_json::{Value, json};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{Hashes, Metafile, Role, Signed, Snapshot, Target, Targets, Timestamp};

use super::keys::{KeyRing, SigningRole};
use super::{SignError, refused};
use crate::chunk::ChunkRef;
use crate::digest::Digest;
use crate::verify::{LIST, SIGNED_AT};

/// The TUF specification that these files follow.
pub(super) const SPEC: &str = "1.0.33";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long each role's metadata is valid; defaults: root 3 years, targets, releases and rollouts 1 year,
/// snapshot and timestamp 30 days.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    pub root: Duration,
    pub targets: Duration,
    pub releases: Duration,
    pub rollouts: Duration,
    pub snapshot: Duration,
    pub timestamp: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            root: DAY * 365 * 3,
            targets: DAY * 365,
            releases: DAY * 365,
            rollouts: DAY * 365,
            snapshot: DAY * 30,
            timestamp: DAY * 30,
        }
    }
}

impl Lifetimes {
    fn of(&self, role: SigningRole) -> Duration {
        match role {
            SigningRole::Root => self.root,
            SigningRole::Targets => self.targets,
            SigningRole::Releases => self.releases,
            SigningRole::Rollouts => self.rollouts,
            SigningRole::Snapshot => self.snapshot,
            SigningRole::Timestamp => self.timestamp,
        }
    }

    pub(super) fn end(&self, role: SigningRole, now: Time) -> Result<Time, SignError> {
        let length = SignedDuration::try_from(self.of(role)).unwrap_or(SignedDuration::MAX);
        now.checked_add(length)
            .map_err(|_| refused(format!("the lifetime of role {role} is out of range")))
    }

    /// Whether what ends at `expires` is past three quarters of its life.
    pub(super) fn due(&self, role: SigningRole, expires: Time, now: Time) -> bool {
        let rest = expires.duration_since(now).as_secs_f64();
        rest < self.of(role).as_secs_f64() / 4.0
    }
}

/// Signs with one role's key.
pub(super) fn sign<T: Role>(
    signed: T,
    role: SigningRole,
    keys: &KeyRing,
) -> Result<Signed<T>, SignError> {
    let form = signed
        .canonical_form()
        .map_err(|e| refused(format!("cannot write the {role} role: {e}")))?;
    let signatures = vec![keys.signature(role, &form)?];
    Ok(Signed { signed, signatures })
}

/// The file's bytes: fields in order, so that equal content is equal bytes.
pub(super) fn to_bytes<T: serde::Serialize>(signed: &Signed<T>) -> Result<Vec<u8>, SignError> {
    let failed = |e| refused(format!("cannot write metadata: {e}"));
    let value = serde_json::to_value(signed).map_err(failed)?;
    serde_json::to_vec(&value).map_err(failed)
}

/// A targets role without content.
pub(super) fn targets(
    role: SigningRole,
    version: NonZeroU64,
    lifetimes: &Lifetimes,
    now: Time,
) -> Result<Targets, SignError> {
    let mut targets = Targets::new(SPEC.to_owned(), version, lifetimes.end(role, now)?);
    targets.delegations = None;
    Ok(targets)
}

/// A snapshot of the given files: role name to version and bytes.
pub(super) fn snapshot(
    version: NonZeroU64,
    files: &BTreeMap<SigningRole, (NonZeroU64, Vec<u8>)>,
    lifetimes: &Lifetimes,
    now: Time,
) -> Result<Snapshot, SignError> {
    let end = lifetimes.end(SigningRole::Snapshot, now)?;
    let mut snapshot = Snapshot::new(SPEC.to_owned(), version, end);
    for (role, (version, bytes)) in files {
        let name = format!("{role}.json");
        snapshot.meta.insert(name, metafile(*version, bytes));
    }
    Ok(snapshot)
}

/// A timestamp that names a snapshot and says when it was signed.
pub(super) fn timestamp(
    version: NonZeroU64,
    snapshot: (NonZeroU64, &[u8]),
    lifetimes: &Lifetimes,
    now: Time,
) -> Result<Timestamp, SignError> {
    let end = lifetimes.end(SigningRole::Timestamp, now)?;
    let mut timestamp = Timestamp::new(SPEC.to_owned(), version, end);
    let meta = metafile(snapshot.0, snapshot.1);
    timestamp.meta.insert("snapshot.json".to_owned(), meta);
    timestamp._extra = signed_at(now);
    Ok(timestamp)
}

/// One target, with its list of chunks and what else is to be known without fetching it.
pub(super) fn target(
    length: u64,
    sha256: Digest,
    list: Option<ChunkRef>,
    release: Option<u64>,
) -> Target {
    let mut custom = HashMap::new();
    if let Some(list) = list {
        let value = json!({ "sha256": list.sha256, "length": list.length });
        custom.insert(LIST.to_owned(), value);
    }
    if let Some(release) = release {
        custom.insert(RELEASE.to_owned(), Value::from(release));
    }
    Target {
        length,
        hashes: hashes(sha256),
        custom,
        _extra: HashMap::new(),
    }
}

/// The field of a manifest target's `custom` that holds the version's release number.
pub(super) const RELEASE: &str = "release";

fn metafile(version: NonZeroU64, bytes: &[u8]) -> Metafile {
    Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(hashes(Digest::of(bytes))),
        version,
        _extra: HashMap::new(),
    }
}

fn hashes(sha256: Digest) -> Hashes {
    Hashes {
        sha256: Decoded::<Hex>::from(sha256.as_bytes().to_vec()),
        _extra: HashMap::new(),
    }
}

pub(super) fn signed_at(now: Time) -> HashMap<String, Value> {
    HashMap::from([(SIGNED_AT.to_owned(), Value::from(now.to_string()))])
}
