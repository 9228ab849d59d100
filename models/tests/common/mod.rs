//! A fleet on the operator's side, a carrier that can be tampered with, and a device.
#![allow(dead_code)] // each test file uses its own part

pub mod forge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeward_models::chunk::{Source, SourceError, pack_metadata};
use edgeward_models::digest::Digest;
use edgeward_models::fleet::rollout::{DesiredState, Wish};
use edgeward_models::manifest::{FileEntry, Manifest};
use edgeward_models::name::FileName;
use edgeward_models::sign::{KeyRing, Lifetimes, Publication, Repository};
use edgeward_models::verify::{Policy, TrustStore, Update, VerifiedRepository, VerifyError};
use jiff::{SignedDuration, Timestamp};

pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub const POLICY: Policy = Policy {
    stale_after: Duration::from_secs(30 * 24 * 60 * 60),
};

/// The day on which every fleet of these tests begins.
pub fn day(n: i64) -> Timestamp {
    let first: Timestamp = "2026-03-01T08:00:00Z".parse().expect("time");
    first + SignedDuration::from_hours(24 * n)
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: &str, length: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|i| *Digest::of(format!("{seed}/{i}").as_bytes()).as_bytes())
        .take(length)
        .collect()
}

/// An operator: keys, a repository, and the carrier that they publish to.
pub struct Fleet {
    pub directory: tempfile::TempDir,
    pub key_directory: PathBuf,
    pub keys: KeyRing,
    pub repository: Repository,
    pub carrier: Arc<Carrier>,
}

impl Fleet {
    pub fn new() -> Self {
        Self::with(Lifetimes::default())
    }

    pub fn with(lifetimes: Lifetimes) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let key_directory = directory.path().join("keys");
        let keys = KeyRing::generate(&key_directory).expect("keys");
        let path = directory.path().join("repository");
        let repository = Repository::create_with(&path, &keys, day(0), lifetimes).expect("create");
        let fleet = Self {
            directory,
            key_directory,
            keys,
            repository,
            carrier: Arc::default(),
        };
        fleet.publish(&fleet.repository.everything().expect("everything"));
        fleet
    }

    pub fn publish(&self, publication: &Publication) {
        for digest in &publication.chunks {
            let bytes = self.repository.chunk(digest).expect("chunk");
            self.carrier.put_chunk(*digest, bytes);
        }
        for file in &publication.metadata {
            let packed = self.repository.packed_metadata(file).expect("metadata");
            self.carrier.put_head(file.as_str(), packed.head);
        }
    }

    pub fn commit(&mut self, now: Timestamp) -> Publication {
        let publication = self.repository.commit(&self.keys, now).expect("commit");
        self.publish(&publication);
        publication
    }

    pub fn refresh(&mut self, now: Timestamp) {
        let publication = self.repository.refresh(&self.keys, now).expect("refresh");
        self.publish(&publication);
    }

    /// Replaces every key.
    pub fn rotate(&mut self, now: Timestamp) {
        let version = self.repository.timestamp_version();
        let path = self.directory.path().join(format!("keys-{version}"));
        let next = KeyRing::generate(&path).expect("keys");
        let publication = self
            .repository
            .rotate(&self.keys, &next, now)
            .expect("rotate");
        self.keys = next;
        self.key_directory = path;
        self.publish(&publication);
    }

    /// Stages, signs and publishes a version of the sample manifest with this content as its model file.
    pub fn push(
        &mut self,
        model: &str,
        version: &str,
        content: &[u8],
        now: Timestamp,
    ) -> Publication {
        let manifest = self.stage(model, version, content);
        assert!(manifest.release > 0);
        self.commit(now)
    }

    pub fn stage(&mut self, model: &str, version: &str, content: &[u8]) -> Manifest {
        let mut manifest = sample_manifest();
        manifest.model = model.parse().expect("name");
        manifest.version = version.parse().expect("version");
        manifest.golden_file = None;
        let file: FileName = "model.tflite".parse().expect("name");
        let entry = FileEntry {
            length: content.len() as u64,
            sha256: Digest::of(content),
        };
        manifest.model_file = file.clone();
        manifest.files = BTreeMap::from([(file.clone(), entry)]);
        manifest.release = self
            .repository
            .next_release(&manifest.model)
            .expect("release");
        let path = self
            .directory
            .path()
            .join(format!("{model}-{version}.tflite"));
        std::fs::write(&path, content).expect("write");
        let files = BTreeMap::from([(file, path)]);
        self.repository.add_version(&manifest, &files).expect("add");
        manifest
    }

    /// Stages a group's wish and publishes it.
    pub fn wish(&mut self, group: &str, sequence: u64, now: Timestamp) -> DesiredState {
        let desired = desired(group, sequence);
        self.repository.set_desired(&desired).expect("desired");
        self.commit(now);
        desired
    }

    pub fn join(&mut self, device: &str, groups: &[&str], now: Timestamp) {
        let groups: BTreeSet<_> = groups.iter().map(|g| g.parse().expect("name")).collect();
        let device = device.parse().expect("name");
        self.repository.set_groups(&device, groups).expect("groups");
        self.commit(now);
    }

    pub fn repository_path(&self) -> PathBuf {
        self.repository.directory().to_owned()
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.repository_path().join("metadata").join(name)).expect(name)
    }
}

pub fn desired(group: &str, sequence: u64) -> DesiredState {
    let rollout = format!("r{sequence}").parse().expect("name");
    let wish = Wish::new("1.0.0".parse().expect("version"), 1, rollout);
    DesiredState {
        sequence,
        models: BTreeMap::from([("digits".parse().expect("name"), wish)]),
        ..DesiredState::new(group.parse().expect("name"))
    }
}

pub fn sample_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/digits-1.0.0")
}

pub fn sample_manifest() -> Manifest {
    let bytes = std::fs::read(sample_directory().join("manifest.json")).expect("manifest");
    Manifest::parse(&bytes).expect("manifest")
}

/// A device: its trust store, opened anew for every use, as after a reboot.
pub struct Device {
    pub directory: tempfile::TempDir,
}

impl Device {
    pub fn enrolled(fleet: &Fleet) -> Self {
        Self::with_root(&fleet.repository.root().expect("root"))
    }

    pub fn with_root(root: &[u8]) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        TrustStore::create(&directory.path().join("trust"), root).expect("create");
        Self { directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("trust")
    }

    pub fn store(&self) -> TrustStore {
        TrustStore::open(&self.path()).expect("open")
    }

    pub async fn update(
        &self,
        source: &Arc<Carrier>,
        clock: Timestamp,
    ) -> Result<Update, VerifyError> {
        let source: Arc<dyn Source> = Arc::clone(source) as _;
        self.store().update(source, clock, POLICY).await
    }

    /// Updates and expects the newest.
    pub async fn follows(&self, source: &Arc<Carrier>, clock: Timestamp) -> VerifiedRepository {
        match self.update(source, clock).await {
            Ok(Update::Current(repository)) => repository,
            other => panic!("not taken: {}", text(other)),
        }
    }

    /// Updates and expects a refusal, whose whole text it returns. Nothing may have changed but the root.
    pub async fn refuses(&self, source: &Arc<Carrier>, clock: Timestamp) -> String {
        let before = self.store().timestamp_version();
        let current = self.current(clock).map(|r| r.timestamp_version());
        let result = self.update(source, clock).await;
        assert_eq!(self.store().timestamp_version(), before);
        let now = self.current(clock).map(|r| r.timestamp_version());
        assert!(
            now == current || now.is_none(),
            "{now:?} instead of {current:?}"
        );
        match result {
            Err(error) => text(Err(error)),
            other => panic!("not refused: {}", text(other)),
        }
    }

    pub fn current(&self, clock: Timestamp) -> Option<VerifiedRepository> {
        self.store().current(clock, POLICY).expect("current")
    }
}

/// An outcome as the agent would log it, causes included.
pub fn text(outcome: Result<Update, VerifyError>) -> String {
    match outcome {
        Ok(update) => format!("{update:?}"),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        }
    }
}

/// A carrier in memory: like a broker's retained topics, and as little to be trusted.
#[derive(Debug, Default)]
pub struct Carrier {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone)]
struct State {
    metadata: BTreeMap<String, Vec<u8>>,
    chunks: BTreeMap<Digest, Vec<u8>>,
    broken: BTreeSet<String>,
    asked: Vec<String>,
}

impl Carrier {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    /// A second carrier with the same content, to be tampered with.
    pub fn copy(&self) -> Arc<Self> {
        let state = Mutex::new(self.state().clone());
        Arc::new(Self { state })
    }

    pub fn put_head(&self, file: &str, head: Vec<u8>) {
        self.state().metadata.insert(file.to_owned(), head);
    }

    /// Offers a metadata file of these bytes.
    pub fn put(&self, file: &str, bytes: &[u8]) {
        let packed = pack_metadata(bytes).expect("pack");
        for (digest, bytes) in packed.chunks {
            self.put_chunk(digest, bytes);
        }
        self.put_head(file, packed.head);
    }

    pub fn put_chunk(&self, digest: Digest, bytes: Vec<u8>) {
        self.state().chunks.insert(digest, bytes);
    }

    pub fn chunk_bytes(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.state().chunks.get(digest).cloned()
    }

    pub fn chunk_count(&self) -> usize {
        self.state().chunks.len()
    }

    pub fn hide(&self, file: &str) {
        self.state().metadata.remove(file);
    }

    pub fn hide_chunk(&self, digest: &Digest) {
        self.state().chunks.remove(digest);
    }

    /// From now on this file cannot be fetched: the link drops.
    pub fn break_at(&self, file: &str) {
        self.state().broken.insert(file.to_owned());
    }

    pub fn mend(&self) {
        self.state().broken.clear();
    }

    /// What was asked for since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }
}

#[async_trait]
impl Source for Carrier {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        let mut state = self.state();
        state.asked.push(file.to_string());
        if state.broken.contains(file.as_str()) {
            return Err(SourceError {
                what: file.to_string(),
                source: "the link dropped".into(),
            });
        }
        Ok(state.metadata.get(file.as_str()).cloned().map(Bytes::from))
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        let mut state = self.state();
        state.asked.push(digest.to_hex());
        Ok(state.chunks.get(digest).cloned().map(Bytes::from))
    }
}
