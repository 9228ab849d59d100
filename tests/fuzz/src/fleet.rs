//! The fleet: metadata through the verifier, lists of chunks, statuses and telemetry, enrolment, topics.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use edgeward_models::chunk::{MAX_CHUNK_BYTES, Source, SourceError, fetch_metadata, pack_metadata};
use edgeward_models::codec;
use edgeward_models::fleet::enrolment::EnrolmentBundle;
use edgeward_models::fleet::signed::{self, Purpose};
use edgeward_models::fleet::status::{Online, Status};
use edgeward_models::fleet::telemetry::TelemetryBatch;
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::FileName;
use edgeward_models::sign::{KeyRing, Repository};
use edgeward_models::verify::{Policy, TrustStore, Update};
use edgeward_models::{Digest, FleetName};

const MAX_METADATA: u64 = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
}

/// A carrier that says `foreign` for one file, or for every chunk.
#[derive(Debug)]
struct Hostile {
    honest: Vec<(FileName, Vec<u8>)>,
    file: Option<FileName>,
    foreign: Vec<u8>,
}

#[async_trait]
impl Source for Hostile {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        if self.file.as_ref() == Some(file) {
            return Ok(Some(self.foreign.clone().into()));
        }
        let found = self.honest.iter().find(|(name, _)| name == file);
        Ok(found.map(|(_, head)| head.clone().into()))
    }

    async fn chunk(&self, _digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        Ok(Some(self.foreign.clone().into()))
    }
}

/// A device that trusts a repository, and that repository.
struct Fleet {
    store: TrustStore,
    files: Vec<(FileName, Vec<u8>)>,
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("edgeward-fuzz-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn fleet() -> Fleet {
    let directory = scratch("fleet");
    let now = jiff::Timestamp::now();
    let keys = KeyRing::generate(&directory.join("keys")).expect("keys");
    let mut repository =
        Repository::create(&directory.join("repository"), &keys, now).expect("a repository");
    let root = repository.root().expect("a root");
    let mut store = TrustStore::create(&directory.join("trust"), &root).expect("trust");
    let files = |repository: &Repository| {
        let everything = repository
            .everything()
            .expect("everything")
            .metadata
            .into_iter();
        everything
            .map(|file| {
                (
                    file.clone(),
                    repository.packed_metadata(&file).expect("a file").head,
                )
            })
            .collect::<Vec<_>>()
    };
    // It has something to lose: version 1 is trusted, version 2 is offered.
    let source = Hostile {
        honest: files(&repository),
        file: None,
        foreign: Vec::new(),
    };
    let policy = Policy {
        stale_after: std::time::Duration::from_secs(u64::from(u32::MAX)),
    };
    let updated = runtime().block_on(store.update(Arc::new(source), now, policy));
    assert!(matches!(updated, Ok(Update::Current(_))));
    let device = "ct-1".parse().expect("a name");
    let groups = ["radiology".parse().expect("a name")].into();
    repository.set_groups(&device, groups).expect("groups");
    repository.commit(&keys, now).expect("a newer one");
    Fleet {
        files: files(&repository),
        store,
    }
}

/// One metadata file of a repository, the others as they should be: nothing but the signed bytes is taken. The
/// first byte says which file, and whether it travels as it should or raw.
pub fn metadata(data: &[u8]) {
    static FLEET: OnceLock<Mutex<Fleet>> = OnceLock::new();
    let [which, foreign @ ..] = data else {
        return;
    };
    let fleet = FLEET.get_or_init(|| Mutex::new(fleet()));
    let mut fleet = fleet
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // What is new to this device, and the next root, which there is not.
    let news = [
        "timestamp.json",
        "2.snapshot.json",
        "2.rollouts.json",
        "2.root.json",
    ];
    let file: FileName = news[usize::from(which & 3)].parse().expect("a name");
    let foreign = match which & 0x80 {
        0 if foreign.len() <= MAX_CHUNK_BYTES / 2 => pack_metadata(foreign).expect("pack").head,
        _ => foreign.to_vec(),
    };
    let source = Hostile {
        honest: fleet.files.clone(),
        file: Some(file),
        foreign,
    };
    let policy = Policy {
        stale_after: std::time::Duration::from_secs(u64::from(u32::MAX)),
    };
    let updated = runtime().block_on(fleet.store.update(
        Arc::new(source),
        jiff::Timestamp::now(),
        policy,
    ));
    assert!(updated.is_err(), "unsigned bytes were taken");
    assert_eq!(
        (fleet.store.timestamp_version(), fleet.store.root_version()),
        (1, 1)
    );
}

/// A list of chunks, and chunks that are not what it says.
pub fn chunk_list(data: &[u8]) {
    let file: FileName = "1.releases.json".parse().expect("a name");
    let Ok(foreign) = zstd::bulk::compress(data, 1) else {
        return;
    };
    let source = Hostile {
        honest: Vec::new(),
        file: Some(file.clone()),
        foreign,
    };
    if let Ok(Some(bytes)) = runtime().block_on(fetch_metadata(&source, &file, MAX_METADATA)) {
        assert!(bytes.len() as u64 <= MAX_METADATA);
        assert_eq!(bytes, data, "what came is not what was asked for");
    }
}

/// Statuses, presence and telemetry in CBOR, in their envelope and without.
pub fn cbor(data: &[u8]) {
    let device = "ct-1".parse().expect("a name");
    let opened = signed::open(Purpose::Status, &device, b"no key", data);
    assert!(
        opened.is_err(),
        "a message without a signature was believed"
    );
    if let Ok(status) = codec::decode::<Status>("status", data) {
        let again = codec::encode("status", &status).expect("what was read can be written");
        assert_eq!(
            codec::decode::<Status>("status", &again).expect("and read"),
            status
        );
    }
    if let Ok(online) = codec::decode::<Online>("online", data) {
        let again = codec::encode("online", &online).expect("what was read can be written");
        assert_eq!(
            codec::decode::<Online>("online", &again).expect("and read"),
            online
        );
    }
    if let Ok(batch) = codec::decode::<TelemetryBatch>("telemetry", data) {
        codec::encode("telemetry", &batch).expect("what was read can be written");
    }
}

/// The bundle that makes a device a member, and the root in it.
pub fn enrolment(data: &[u8]) {
    let Ok(bundle) = serde_json::from_slice::<EnrolmentBundle>(data) else {
        return;
    };
    let again = serde_json::to_vec(&bundle).expect("what was read can be written");
    let again: EnrolmentBundle = serde_json::from_slice(&again).expect("and read");
    assert_eq!(again, bundle);
    if let Ok(store) = TrustStore::create(&scratch("enrolment"), bundle.root.as_bytes()) {
        assert!(store.root_version() > 0);
    }
}

/// Topics: what is understood is written the same again.
pub fn topic(data: &[u8]) {
    let fleet: FleetName = "hospital".parse().expect("a name");
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(topic) = Topic::parse(&fleet, text)
    {
        assert_eq!(topic.in_fleet(&fleet), text);
    }
}
