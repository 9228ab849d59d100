//! The trust store: update from a carrier, or read again what was last verified.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::chain::{self, Chain};
use super::disk::Disk;
use super::loader::{self, Carrier, Loaded};
use super::state::{Standing, TrustState};
use super::{Policy, Update, VerifiedRepository, VerifyError};
use crate::chunk::Source;
use crate::digest::Digest;

/// What a device trusts, in small atomic files: highest root, highest version per role with its digest,
/// latest trusted time, newest verified metadata (so that desired state can be read again offline).
///
/// One process opens it at a time; the agent's state lock sees to that.
#[derive(Debug)]
pub struct TrustStore {
    disk: Disk,
    state: TrustState,
}

impl TrustStore {
    /// Makes a trust store from the root metadata of the enrolment. Refuses if one is there with another root.
    pub fn create(directory: &Path, root: &[u8]) -> Result<Self, VerifyError> {
        let disk = Disk::new(directory);
        let fresh = TrustState::new(root)?;
        let state = match disk.read()? {
            None => {
                disk.create(&fresh)?;
                fresh
            }
            // Enrolled again, with the root that it had or the one that it has come to.
            Some(state) if state.enrolled_root == fresh.enrolled_root => state,
            Some(state) if Digest::of(state.root.as_bytes()) == fresh.enrolled_root => state,
            Some(_) => {
                return Err(VerifyError::TrustExists {
                    path: directory.to_owned(),
                    problem:
                        "it was made from another root; to make this device a member of another \
                              fleet, remove the directory first"
                            .to_owned(),
                });
            }
        };
        Ok(Self { disk, state })
    }

    /// Opens an existing one; unreadable state is an error, never "start from nothing".
    pub fn open(directory: &Path) -> Result<Self, VerifyError> {
        let disk = Disk::new(directory);
        let state = disk.read()?.ok_or_else(|| VerifyError::TrustUnreadable {
            path: directory.to_owned(),
            problem: "there is none: enrol this device first".to_owned(),
        })?;
        Ok(Self { disk, state })
    }

    /// The latest time that a verified signed document proved. The clock counts only when not behind it.
    pub fn trusted_time(&self) -> Timestamp {
        self.state.trusted_time
    }

    /// max(clock, trusted time): what TLS and expiry checks use.
    pub fn now(&self, clock: Timestamp) -> Timestamp {
        clock.max(self.state.trusted_time)
    }

    /// Version of the newest trusted timestamp; 0 before the first.
    pub fn timestamp_version(&self) -> u64 {
        self.state.timestamp_version()
    }

    /// Version of the highest root.
    pub fn root_version(&self) -> u64 {
        chain::parse_root(self.state.root.as_bytes()).map_or(0, |root| root.signed.version.get())
    }

    /// Fetches and verifies the metadata of `source`; commits trust only when all of it verified.
    /// A source older than the device's state is `Update::Older`, a friendly no-op.
    ///
    /// A newer root is kept even when the rest is refused: it is proven by itself, and what it revokes must
    /// not come back because of a dropped link (TUF 5.3.8). Time limits belong into the source, fetch by fetch:
    /// dropping this future while it fetches also drops the roots that it has seen. What follows the last fetch
    /// (verification, fsync) runs without a pause, so it is never split; call this where a thread may block.
    pub async fn update(
        &mut self,
        source: Arc<dyn Source>,
        clock: Timestamp,
        policy: Policy,
    ) -> Result<Update, VerifyError> {
        let kept = self.state.roles.keys();
        let kept = kept.filter_map(|role| self.disk.copy(&self.state, role));
        let carrier = Carrier::new(source, kept);
        let outcome = self.load(&carrier).await;
        self.follow_roots(&carrier)?;
        if let Loaded::OlderTimestamp { offered, known } = outcome? {
            return Ok(Update::Older { offered, known });
        }
        let root = self.state.root.as_bytes();
        let chain = Chain::verify(root, &mut |file| {
            carrier
                .seen(file)
                .ok_or_else(|| VerifyError::refused(file, "it was not fetched"))
        })?;
        match self.state.compare(&chain)? {
            Standing::Older { offered, known } => return Ok(Update::Older { offered, known }),
            Standing::Newer => {}
            Standing::Same => {
                // Nothing to write, unless a copy was damaged.
                let mut roles = chain.files.keys();
                if roles.all(|role| self.disk.copy(&self.state, role).is_some()) {
                    return self.judged(&chain, clock, policy).map(Update::Current);
                }
            }
        }
        let mut state = self.state.clone();
        state.remember(&chain);
        // Before anything is kept: a chain whose targets cannot be used must not become the one that is known.
        chain.target_infos()?;
        self.disk.commit(&state, &chain)?;
        self.state = state;
        self.judged(&chain, clock, policy).map(Update::Current)
    }

    /// The repository as last verified, from this store's own files (no network). `None` before the first,
    /// and while a newer root has revoked what was verified under an older one.
    pub fn current(
        &self,
        clock: Timestamp,
        policy: Policy,
    ) -> Result<Option<VerifiedRepository>, VerifyError> {
        let Some(timestamp) = self.state.roles.get("timestamp") else {
            return Ok(None);
        };
        let get = &mut |file: &str| {
            let role = file.trim_end_matches(".json");
            let role = role.split_once('.').map_or(role, |(_, role)| role);
            self.disk.copy(&self.state, role).ok_or_else(|| {
                let problem =
                    "this device's copy of it is damaged; the next update fetches it again";
                VerifyError::refused(file, problem)
            })
        };
        match Chain::verify(self.state.root.as_bytes(), get) {
            Ok(chain) => self.judged(&chain, clock, policy).map(Some),
            Err(error) if timestamp.root < self.root_version() => {
                tracing::warn!(%error, "a newer root revoked the metadata last verified");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn judged(
        &self,
        chain: &Chain,
        clock: Timestamp,
        policy: Policy,
    ) -> Result<VerifiedRepository, VerifyError> {
        VerifiedRepository::new(chain, policy.judge(chain, self.now(clock)))
    }

    /// Runs tough beside what this device knows.
    async fn load(&self, carrier: &Carrier) -> Result<Loaded, VerifyError> {
        let scratch = self.disk.scratch()?;
        let root = chain::parse_root(self.state.root.as_bytes())?;
        for role in ["timestamp", "snapshot"] {
            let binds = self.state.binding(&root.signed, role, &[]).is_some();
            if let Some(bytes) = self.disk.copy(&self.state, role).filter(|_| binds) {
                scratch.put(&format!("{role}.json"), &bytes)?;
            }
        }
        loader::load(self.state.root.as_bytes(), carrier, scratch.path()).await
    }

    /// Takes every newer root that was seen, each proven by the one before it.
    fn follow_roots(&mut self, carrier: &Carrier) -> Result<(), VerifyError> {
        let mut state = self.state.clone();
        let mut root = chain::parse_root(state.root.as_bytes())?;
        loop {
            let file = format!("{}.root.json", root.signed.version.get().saturating_add(1));
            let Some(text) = carrier.seen(&file).and_then(|b| String::from_utf8(b).ok()) else {
                break;
            };
            match chain::parse_root(text.as_bytes()) {
                Ok(next) if chain::root_follows(&root, &next) => {
                    state.follow_root(&next, text);
                    root = next;
                }
                _ => break,
            }
        }
        if state != self.state {
            self.disk.write_state(&state)?;
            self.state = state;
        }
        Ok(())
    }
}
