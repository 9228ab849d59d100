//! tough, and what it may see: a source of untrusted bytes as its transport, and a scratch directory.
//!
//! tough takes any failure to fetch the next root for "there is none", so trouble must not look like one:
//! here only a certain absence is `FileNotFound`, and trouble is a stream that breaks. Its clock check is
//! kept from ratcheting by a directory that lives for one update.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use tough::error::Error as ToughError;
use tough::schema::{Metafile, RoleType, Signed, Snapshot, Timestamp};
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, Transport, TransportError, TransportErrorKind,
    TransportStream,
};
use url::Url;

use super::VerifyError;
use crate::chunk::{self, ChunkError, Source};
use crate::digest::Digest;
use crate::durable::DurableError;
use crate::name::FileName;
use crate::repository::MAX_METADATA_BYTES;

/// Roots, timestamps, snapshots and the top-level targets list keys and roles, never models.
const MAX_SMALL_BYTES: u64 = 128 * 1024;
/// More rotations than a fleet sees in its life.
const MAX_ROOT_UPDATES: u64 = 256;
/// Never resolved: a place for file names to hang on.
const BASE: &str = "edgeward://repository/metadata/";

/// What came of a load.
pub enum Loaded {
    Accepted,
    /// Its signature is good, its version below the one in the scratch directory.
    OlderTimestamp {
        offered: u64,
        known: u64,
    },
}

/// Has tough verify what `carrier` offers, beginning at `root`.
pub async fn load(root: &[u8], carrier: &Carrier, scratch: &Path) -> Result<Loaded, VerifyError> {
    let base: Url = BASE
        .parse()
        .map_err(|_| VerifyError::refused(BASE, "it is not an address"))?;
    let limits = Limits {
        max_root_size: MAX_SMALL_BYTES,
        max_targets_size: MAX_METADATA_BYTES,
        max_timestamp_size: MAX_SMALL_BYTES,
        max_snapshot_size: MAX_SMALL_BYTES,
        max_root_updates: MAX_ROOT_UPDATES,
    };
    let loader = RepositoryLoader::new(&root, base.clone(), base)
        .transport(carrier.clone())
        .limits(limits)
        .datastore(scratch)
        .expiration_enforcement(ExpirationEnforcement::Unsafe);
    match loader.load().await {
        Ok(_) => Ok(Loaded::Accepted),
        Err(ToughError::OlderMetadata {
            role: RoleType::Timestamp,
            current_version,
            new_version,
            ..
        }) => Ok(Loaded::OlderTimestamp {
            offered: new_version,
            known: current_version,
        }),
        Err(error) => Err(carrier.explain(error)),
    }
}

/// A [`Source`] as tough's transport. Remembers what it handed out, so that the very bytes are kept.
#[derive(Debug, Clone)]
pub struct Carrier {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    source: Arc<dyn Source>,
    /// Files that this device has already, by digest: not fetched again.
    kept: BTreeMap<Digest, Vec<u8>>,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    seen: BTreeMap<String, Vec<u8>>,
    /// Digests that the timestamp and snapshot seen so far claim.
    claimed: BTreeMap<String, Digest>,
    last: Option<FileName>,
    trouble: Option<ChunkError>,
}

impl Carrier {
    pub fn new(source: Arc<dyn Source>, kept: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let kept = kept.into_iter().map(|b| (Digest::of(&b), b)).collect();
        Self {
            shared: Arc::new(Shared {
                source,
                kept,
                record: Mutex::default(),
            }),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing that holds the lock can panic half-way through a change.
        self.shared
            .record
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a file that was handed out.
    pub fn seen(&self, file: &str) -> Option<Vec<u8>> {
        self.record().seen.get(file).cloned()
    }

    async fn get(&self, file: &FileName) -> Result<Option<Vec<u8>>, ChunkError> {
        let claimed = self.record().claimed.get(file.as_str()).copied();
        if let Some(bytes) = claimed.and_then(|digest| self.shared.kept.get(&digest)) {
            return Ok(Some(bytes.clone()));
        }
        let source = self.shared.source.as_ref();
        chunk::fetch_metadata(source, file, limit(file)).await
    }

    /// Whose fault it was: the carrier's, or that of the last file handed out.
    fn explain(&self, error: ToughError) -> VerifyError {
        let mut record = self.record();
        if let Some(trouble) = record.trouble.take() {
            return trouble.into();
        }
        // This device's own disk is full or failing; nobody is to blame for the metadata.
        let (action, path, source) = match error {
            ToughError::DatastoreCreate { path, source, .. } => ("create", path, source),
            ToughError::DatastoreOpen { path, source, .. } => ("open", path, source),
            ToughError::DatastoreRemove { path, source, .. } => ("remove", path, source),
            ToughError::DatastoreSerialize { path, source, .. } => ("write", path, source.into()),
            error => return Self::blame(&record, error),
        };
        DurableError {
            action,
            path,
            source,
        }
        .into()
    }

    fn blame(record: &Record, error: ToughError) -> VerifyError {
        let Some(file) = record.last.clone() else {
            return VerifyError::refused("the repository", error.to_string());
        };
        if let ToughError::Transport { source, .. } = &error
            && source.kind() == TransportErrorKind::FileNotFound
        {
            return VerifyError::Missing { file };
        }
        if let ToughError::InvalidPath { source } = &error {
            // Found when all roles are there, so the last file need not be the guilty one.
            let problem = format!("a role speaks for what was not delegated to it ({source})");
            return VerifyError::refused("the list of targets", problem);
        }
        VerifyError::refused(file.as_str(), problem(&error))
    }
}

#[async_trait]
impl Transport for Carrier {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = url.as_str().strip_prefix(BASE).unwrap_or_default();
        let Ok(file) = name.parse::<FileName>() else {
            return Ok(broken(&url, "no such file name"));
        };
        // A missing next root is the rule; any other missing file is what an error will be about.
        if !name.ends_with(".root.json") {
            self.record().last = Some(file.clone());
        }
        match self.get(&file).await {
            Ok(Some(bytes)) => {
                let mut record = self.record();
                record.last = Some(file);
                record.note_claims(name, &bytes);
                record.seen.insert(name.to_owned(), bytes.clone());
                Ok(whole(Ok(Bytes::from(bytes))))
            }
            Ok(None) => Err(TransportError::new(TransportErrorKind::FileNotFound, url)),
            Err(error) => {
                let stream = broken(&url, &error.to_string());
                self.record().trouble = Some(error);
                Ok(stream)
            }
        }
    }
}

impl Record {
    /// Notes which contents come next. A wrong claim costs a fetch; tough judges it.
    fn note_claims(&mut self, file: &str, bytes: &[u8]) {
        let mut note = |meta: std::collections::HashMap<String, Metafile>| {
            for (name, entry) in meta {
                let hash = entry.hashes.map(|hashes| hashes.sha256.into_vec());
                if let Some(hash) = hash.and_then(|hash| hash.try_into().ok()) {
                    let file = format!("{}.{name}", entry.version);
                    self.claimed.insert(file, Digest::from_bytes(hash));
                }
            }
        };
        if file == "timestamp.json" {
            if let Ok(timestamp) = serde_json::from_slice::<Signed<Timestamp>>(bytes) {
                note(timestamp.signed.meta);
            }
        } else if file.ends_with(".snapshot.json")
            && let Ok(snapshot) = serde_json::from_slice::<Signed<Snapshot>>(bytes)
        {
            note(snapshot.signed.meta);
        }
    }
}

fn limit(file: &FileName) -> u64 {
    let role = file
        .as_str()
        .trim_start_matches(|c: char| c.is_ascii_digit());
    match role {
        ".root.json" | "timestamp.json" | ".snapshot.json" | ".targets.json" => MAX_SMALL_BYTES,
        _ => MAX_METADATA_BYTES,
    }
}

fn whole(item: Result<Bytes, TransportError>) -> TransportStream {
    Box::pin(stream::iter([item]))
}

fn broken(url: &Url, problem: &str) -> TransportStream {
    let kind = TransportErrorKind::Other;
    whole(Err(TransportError::new_with_cause(kind, url, problem)))
}

/// In the words of someone who has to do something about it.
fn problem(error: &ToughError) -> String {
    match error {
        ToughError::VerifyMetadata { source, .. } => {
            format!(
                "it is not signed by the keys that this device trusts for it ({source}); a repository from \
                 before the fleet's last change of keys looks the same"
            )
        }
        ToughError::ParseMetadata { source, .. } => {
            format!("it is not the TUF metadata it should be ({source})")
        }
        ToughError::OlderMetadata {
            current_version,
            new_version,
            ..
        } => format!(
            "it is version {new_version}, and this device already trusts version {current_version}"
        ),
        ToughError::OlderSnapshotInTimestamp {
            snapshot_new,
            snapshot_old,
            ..
        } => format!(
            "it names snapshot {snapshot_new}, and this device already trusts snapshot {snapshot_old}"
        ),
        ToughError::SnapshotRoleRollback {
            role,
            old_role_version,
            new_role_version,
            ..
        } => format!(
            "it takes {role} back to version {new_role_version}, and this device already trusts \
             version {old_role_version}"
        ),
        ToughError::SnapshotRoleMissing { role, .. } => {
            format!("it no longer lists {role}, which this device already trusts")
        }
        ToughError::VersionMismatch {
            fetched, expected, ..
        } => format!("it says of itself that it is version {fetched}, not {expected}"),
        ToughError::Transport { .. } => {
            "its length or content is not what signed metadata names".to_owned()
        }
        ToughError::MaxUpdatesExceeded {
            max_root_updates, ..
        } => {
            format!("there are more than {max_root_updates} newer roots")
        }
        other => other.to_string(),
    }
}
