//! The work that brings one version of one model from "wished for" to "proven, ready to take over".
//!
//! A job changes nothing that serves: it fetches, verifies, installs and lets the engine prove the version
//! beside the old one. `reconcile` starts, supersedes and commits jobs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use edgeward_models::chunk::ChunkError;
use edgeward_models::fleet::rollout::{Wish, model_target};
use edgeward_models::fleet::status::Phase;
use edgeward_models::manifest::MANIFEST_FILE;
use edgeward_models::package::InstalledVersion;
use edgeward_models::verify::VerifyError;
use edgeward_models::{ModelName, Version};
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

/// How often a version is put together before missing chunks count as lost.
const ASSEMBLY_TRIES: u32 = 5;

use super::abort::AbortOnDrop;
use super::board::{Board, chain};
use super::goal::Goal;
use super::state::{Pointer, StateDirectory};
use super::transfer::{ChunkCache, Parts, TransferError};
use crate::config::Config;
use crate::serving::{Engine, Prepared};
use crate::watch::audit::Audit;

/// What every job works with.
pub struct Workshop {
    pub config: Arc<Config>,
    pub state: Arc<StateDirectory>,
    pub engine: Engine,
    /// Where the engine's own tasks run: the runtime that serves requests, not this side's.
    pub serving: Handle,
    pub audit: Audit,
    pub board: Arc<Board>,
    pub cache: ChunkCache,
    /// One version is proven at a time: proving takes a core from those that serve.
    pub proving: Semaphore,
}

/// What a version is brought here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To be the active one.
    Active,
    /// To be served beside it.
    Beside,
}

/// A version that may take over.
pub struct Ready {
    pub pointer: Pointer,
    pub prepared: Prepared,
}

/// Why a job ended without one.
#[derive(Debug, Clone)]
pub struct JobError {
    pub kind: FaultKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The carrier: tried again as soon as it is back.
    Carrier,
    /// This device (no space, no TFLite library, …): tried again after a pause.
    Device,
    /// What the carrier brought is not what was signed, or is not for this agent: likewise.
    Content,
    /// The version itself failed here: not tried again until another rollout names it.
    Version,
}

impl JobError {
    pub fn new(kind: FaultKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
        }
    }
}

impl From<TransferError> for JobError {
    fn from(error: TransferError) -> Self {
        let reason = chain(&error);
        match error {
            TransferError::Chunk(chunk) | TransferError::Verify(VerifyError::Chunk(chunk)) => {
                match chunk {
                    ChunkError::Source(_) => Self::new(FaultKind::Carrier, reason),
                    ChunkError::Missing(_) => Self::new(
                        FaultKind::Carrier,
                        format!("{reason}; `fleetctl sync` fills the broker again"),
                    ),
                    _ => Self::new(FaultKind::Content, reason),
                }
            }
            TransferError::NoSpace { .. }
            | TransferError::Durable(_)
            | TransferError::Aborted
            | TransferError::Verify(VerifyError::Durable(_)) => {
                Self::new(FaultKind::Device, reason)
            }
            _ => Self::new(FaultKind::Content, reason),
        }
    }
}

impl Workshop {
    /// From a wish to a proven version.
    pub async fn obtain(
        self: Arc<Self>,
        goal: Arc<Goal>,
        model: ModelName,
        version: Version,
        wish: Wish,
        delay: Duration,
        role: Role,
    ) -> Result<Ready, JobError> {
        if !delay.is_zero() {
            let reason = format!("starts within {} s", delay.as_secs() + 1);
            let board = &self.board;
            board.progress(&model, &version, role, Phase::Waiting, Some(reason));
            tokio::time::sleep(delay).await;
        }
        let name = model_target(&model, &version, MANIFEST_FILE);
        let Some(target) = goal.repository.target(&name) else {
            return Err(TransferError::Unknown { model, version }.into());
        };
        let mut pointer = Pointer {
            version: version.clone(),
            release: wish.release,
            manifest_digest: target.sha256,
            rollout: Some(wish.rollout.clone()),
            activated_at: 0,
        };
        let installed = match self.clone().open(model.clone(), pointer.clone()).await {
            Ok(installed) => installed,
            Err(_) => {
                self.install(&goal, &model, &version, role).await?;
                self.clone().open(model.clone(), pointer.clone()).await?
            }
        };
        check_manifest(&installed, &model, &version, &wish)?;
        pointer.release = installed.manifest().release;
        let prepared = self.prove(&model, installed, role).await?;
        Ok(Ready { pointer, prepared })
    }

    /// From an installed version to a proven one.
    pub async fn load(
        self: Arc<Self>,
        model: ModelName,
        pointer: Pointer,
        role: Role,
    ) -> Result<Ready, JobError> {
        let installed = self.clone().open(model.clone(), pointer.clone()).await?;
        let prepared = self.prove(&model, installed, role).await?;
        Ok(Ready { pointer, prepared })
    }

    /// Opens an installed version; reads and hashes all of it, so not on this thread.
    async fn open(
        self: Arc<Self>,
        model: ModelName,
        pointer: Pointer,
    ) -> Result<InstalledVersion, JobError> {
        tokio::task::spawn_blocking(move || self.state.open_version(&model, &pointer))
            .await
            .map_err(|_| TransferError::Aborted)?
            .map_err(|e| JobError::new(FaultKind::Device, chain(&e)))
    }

    async fn install(
        &self,
        goal: &Goal,
        model: &ModelName,
        version: &Version,
        role: Role,
    ) -> Result<(), JobError> {
        let parts = Parts::list(&goal.repository, &*goal.source, model, version).await?;
        let parts = Arc::new(parts);
        self.room_for(parts.clone().needs(self.cache.clone()).await?)?;
        let installed = self.state.installed(model).into_iter().rev().take(2);
        let installed = installed.map(|other| self.state.version_directory(model, &other));
        parts
            .clone()
            .reuse(self.cache.clone(), installed.collect())
            .await;
        let board = &self.board;
        let bytes = parts.bytes();
        let assembled: PathBuf = self.state.incoming().join(format!("{model}-{version}"));
        let mut tries = 1;
        loop {
            let fetched = parts
                .clone()
                .fetch(&*goal.source, &self.cache, |have, of| {
                    board.progress(model, version, role, Phase::Fetching { have, of }, None);
                })
                .await?;
            let figure = &board.figures.fetched_bytes;
            figure.fetch_add(fetched, Ordering::Relaxed);
            info!(%model, %version, bytes, fetched, "version fetched");
            let put_together = parts
                .clone()
                .assemble(self.cache.clone(), assembled.clone());
            match put_together.await {
                Ok(()) => break,
                // Another version that shares chunks with this one was installed meanwhile, and its chunks
                // were forgotten with it.
                Err(TransferError::Chunk(ChunkError::Missing(_))) if tries < ASSEMBLY_TRIES => {
                    tries += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let device_fault = |e: &dyn std::error::Error| JobError::new(FaultKind::Device, chain(e));
        self.state
            .install(&assembled, model, version)
            .map_err(|e| device_fault(&e))?;
        self.cache.forget(parts.chunks());
        info!(%model, %version, "version installed");
        Ok(())
    }

    /// Before a byte of a version is fetched: whether it will fit and leave what is reserved.
    fn room_for(&self, needed: u64) -> Result<(), TransferError> {
        let (free, reserve) = (self.state.free_bytes(), self.reserve());
        if needed.saturating_add(reserve) > free {
            return Err(TransferError::NoSpace {
                needed,
                free,
                reserve,
            });
        }
        Ok(())
    }

    /// Bytes of the disk that are kept for what must be written: trust, pointers, and the record of their changes.
    pub fn reserve(&self) -> u64 {
        self.config.fleet.as_ref().map_or_else(
            || crate::config::Fleet::default().disk_reserve_bytes,
            |fleet| fleet.disk_reserve_bytes,
        )
    }

    /// Records in the audit log what changes nothing, unless it would take from the reserve. What changes
    /// something is recorded before it does (`audit.record`), or does not happen.
    pub fn note(&self, event: &'static str, fields: serde_json::Value) {
        if self.state.free_bytes() < self.reserve() {
            warn!(event, "disk nearly full; not recorded in the audit log");
            return;
        }
        if let Err(e) = self.audit.record(event, fields) {
            error!(event, problem = %chain(&e), "audit record failed");
        }
    }

    /// Lets the engine load and prove a version on the runtime that serves.
    async fn prove(
        &self,
        model: &ModelName,
        installed: InstalledVersion,
        role: Role,
    ) -> Result<Prepared, JobError> {
        let version = installed.manifest().version.clone();
        let board = &self.board;
        board.progress(model, &version, role, Phase::Proving, None);
        let _turn = self.proving.acquire().await;
        let engine = self.engine.clone();
        let task = self.serving.spawn(async move {
            match role {
                Role::Active => engine.prepare(&installed).await,
                Role::Beside => engine.prepare_beside(&installed).await,
            }
        });
        // A job that is superseded must not leave a half-loaded version behind on the other runtime.
        match AbortOnDrop(task).await {
            Ok(Ok(prepared)) => Ok(prepared),
            Ok(Err(failure)) => {
                let kind = if failure.device_fault {
                    FaultKind::Device
                } else {
                    FaultKind::Version
                };
                Err(JobError::new(kind, failure.to_string()))
            }
            Err(_) => Err(JobError::new(
                FaultKind::Device,
                "the task that loads models ended early",
            )),
        }
    }
}

fn check_manifest(
    installed: &InstalledVersion,
    model: &ModelName,
    version: &Version,
    wish: &Wish,
) -> Result<(), JobError> {
    let manifest = installed.manifest();
    let content = |reason: String| Err(JobError::new(FaultKind::Content, reason));
    if manifest.model != *model || manifest.version != *version {
        return content(format!(
            "the manifest of {model} {version} is one of {} {}",
            manifest.model, manifest.version
        ));
    }
    if *version == wish.version && manifest.release != wish.release {
        return content(format!(
            "{model} {version} is release {}, the desired state says {}",
            manifest.release, wish.release
        ));
    }
    let own: Option<Version> = crate::VERSION.parse().ok();
    if own.is_some_and(|own| own < manifest.minimum_agent) {
        return content(format!(
            "{model} {version} needs agent {} or newer; this one is {}: update it",
            manifest.minimum_agent,
            crate::VERSION
        ));
    }
    Ok(())
}

/// Seconds since 1970 by the device's clock.
pub fn clock() -> i64 {
    Timestamp::now().as_second()
}
