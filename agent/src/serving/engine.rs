//! All served models: which version answers for which name, and how one version follows another.
//!
//! A request costs one short read lock here; loading, proving and draining happen beside it. The fleet side
//! calls `prepare` then `activate`; the doors call `resolve`. A version that was routed away is ended only
//! when the last request that had found it is answered, so no swap fails a request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, RwLock};

use edgeward_models::fleet::status::ActiveVersion;
use edgeward_models::fleet::telemetry::ModelSample;
use edgeward_models::package::InstalledVersion;
use edgeward_models::{Manifest, ModelName, Version};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::aside::aside;
use super::budget::grant;
use super::error::{LoadFailure, ServeError};
use super::evidence::Subject;
use super::loaded::{Hold, Loaded};
use super::metrics;
use super::proof::Prover;
use super::served::Served;
use super::stats::Outcome;
use super::supervise::{Skipped, supervise};
use crate::config::Config;
use crate::worker::cpu::usable_cores;
use crate::worker::{Spawner, turns};

/// Events that a slow listener may be behind. It is told that it missed some; the newest state is in `models`.
const EVENTS_KEPT: usize = 64;

/// Samples of versions that ended, kept until telemetry asks.
const PARTED_SAMPLES: usize = 64;

/// When to try again while the agent is being restarted.
const RETRY_AFTER_RESTART_SECONDS: u64 = 5;

/// All served models. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) spawner: Spawner,
    /// The version that answers, by the model's name.
    routes: RwLock<HashMap<String, Arc<Loaded>>>,
    /// Models that should be served and are not, with the reason.
    lacking: RwLock<BTreeMap<ModelName, String>>,
    events: broadcast::Sender<EngineEvent>,
    closing: watch::Sender<bool>,
    /// Versions that are being drained.
    drains: Mutex<Vec<JoinHandle<()>>>,
    /// Last samples of versions that ended.
    parted: Mutex<Vec<ModelSample>>,
}

/// A version that is loaded, proven and warm, and not yet routed to. Dropped, it ends its worker.
pub struct Prepared {
    loaded: Arc<Loaded>,
    active: ActiveVersion,
    choice: usize,
    refused: Skipped,
}

impl Prepared {
    pub fn active_version(&self) -> &ActiveVersion {
        &self.active
    }
}

/// What the fleet side must react to.
#[derive(Debug, Clone)]
pub enum EngineEvent {
    /// The worker died and is restarted after a pause.
    Crashed {
        model: ModelName,
        version: Version,
        reason: String,
    },
    /// Crashes on different inputs, or failing golden vectors on restart, on every delegate: give the
    /// previous version a chance, if there is one. Otherwise it keeps backing off and trying.
    Failing {
        model: ModelName,
        version: Version,
        reason: String,
    },
    /// Serving again after a crash.
    Recovered { model: ModelName, version: Version },
}

/// A snapshot of one served model.
#[derive(Debug, Clone)]
pub struct ServedModel {
    pub model: ModelName,
    pub manifest: Arc<Manifest>,
    pub active: ActiveVersion,
    /// Loaded and answering (a dead worker shows as false until it is back).
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    pub worker_pid: Option<u32>,
    pub worker_resident_bytes: u64,
    pub sandbox: String,
}

impl Engine {
    pub fn new(config: Arc<Config>, spawner: Spawner) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                spawner,
                routes: RwLock::default(),
                lacking: RwLock::default(),
                events: broadcast::Sender::new(EVENTS_KEPT),
                closing: watch::Sender::new(false),
                drains: Mutex::default(),
                parted: Mutex::default(),
            }),
        }
    }

    /// Loads a version beside whatever serves: delegates in the manifest's order, share of nodes, golden
    /// vectors, warm-up, seal.
    pub async fn prepare(&self, version: &InstalledVersion) -> Result<Prepared, LoadFailure> {
        let manifest = version.manifest();
        if let Some(reason) = too_old(manifest) {
            return Err(LoadFailure::new(manifest, reason, false));
        }
        let cores = usable_cores(self.shared.config.tflite.cores);
        let grant = grant(manifest, cores, self.shared.threads_beside(&manifest.model));
        let (shared, version) = (self.shared.clone(), version.clone());
        let manifest = manifest.clone();
        let proving = async move {
            let subject = Subject::of(&version)?;
            let prover = Prover::new(&shared.config, &shared.spawner, grant);
            let proven = prover.prove(&subject, &[]).await?;
            Ok((subject, proven))
        };
        let (subject, proven) = aside(&manifest, turns::NICENESS, proving).await?;
        let (active, choice) = (proven.active.clone(), proven.choice);
        let refused = proven.refused.clone();
        let loaded = Loaded::new(subject, grant, &self.shared.config.limits, proven);
        Ok(Prepared {
            loaded: Arc::new(loaded),
            active,
            choice,
            refused,
        })
    }

    /// Routes new requests to `prepared`; the version before finishes what it has and is unloaded.
    pub fn activate(&self, prepared: Prepared) {
        let Prepared {
            loaded,
            choice,
            refused,
            ..
        } = prepared;
        let manifest = loaded.manifest().clone();
        tokio::spawn(supervise(
            self.shared.clone(),
            loaded.clone(),
            choice,
            refused,
        ));
        let before = self
            .shared
            .write_routes()
            .insert(manifest.model.as_str().to_owned(), loaded);
        // Only now: between the two it would be unknown.
        self.shared.write_lacking().remove(&manifest.model);
        info!(model = %manifest.model, version = %manifest.version, "version active");
        if let Some(before) = before {
            self.shared.part_later(before);
        }
    }

    /// Stops serving a model; in-flight requests finish.
    pub async fn retire(&self, model: &ModelName) {
        self.shared.write_lacking().remove(model);
        let removed = self.shared.write_routes().remove(model.as_str());
        if let Some(loaded) = removed {
            self.shared.part(loaded).await;
        }
    }

    /// Takes note that a model should be served here and cannot be, until a version of it is activated: requests
    /// are told to come later, and this device is not ready.
    pub fn lacks(&self, model: &ModelName, reason: &str) {
        let mut lacking = self.shared.write_lacking();
        lacking.insert(model.clone(), reason.to_owned());
    }

    /// Models that should be served and are not, with the reason.
    pub fn lacking(&self) -> BTreeMap<ModelName, String> {
        self.shared.read_lacking().clone()
    }

    pub fn models(&self) -> Vec<ServedModel> {
        let versions = self.shared.versions();
        versions.iter().map(|loaded| snapshot(loaded)).collect()
    }

    pub fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.shared.events.subscribe()
    }

    /// Counters and latencies since the last call (one caller: telemetry).
    pub fn take_samples(&self) -> Vec<ModelSample> {
        let mut samples = std::mem::take(&mut *lock(&self.shared.parted));
        for loaded in self.shared.versions() {
            samples.push(sample(&loaded));
        }
        samples
    }

    /// Requests answered by the versions that serve now; the watchdog looks whether it grows.
    pub fn answered(&self) -> u64 {
        let count = |loaded: &Arc<Loaded>| loaded.stats.count(Outcome::Succeeded);
        self.shared.versions().iter().map(count).sum()
    }

    /// Metrics of all served versions in the Prometheus text format.
    pub fn metrics_text(&self) -> String {
        metrics::text(&self.shared.versions())
    }

    /// Finds what a request means. `version`: a semantic version or a release number; absent: the active one.
    pub fn resolve(&self, model: &str, version: Option<&str>) -> Result<Served, ServeError> {
        let routes = self.shared.read_routes();
        let Some(loaded) = routes.get(model) else {
            return Err(self.shared.not_served(model));
        };
        let manifest = loaded.manifest();
        if *self.shared.closing.borrow() {
            return Err(ServeError::NotReady {
                model: manifest.model.clone(),
                reason: "the agent is shutting down".to_owned(),
                retry_after_seconds: RETRY_AFTER_RESTART_SECONDS,
            });
        }
        if let Some(version) = version
            && !means(version, manifest)
        {
            return Err(ServeError::UnknownVersion {
                model: manifest.model.clone(),
                version: shortened(version),
                loaded: format!("{} (release {})", manifest.version, manifest.release),
            });
        }
        // Held before the lock is given back, so that a swap cannot end the version in between.
        Ok(Served::new(Hold::of(loaded)))
    }

    /// Refuse new requests, let those in flight finish within `limits.drain_timeout`, end all workers.
    pub async fn shutdown(&self) {
        self.shared.closing.send_replace(true);
        let versions = self.shared.versions();
        let partings = versions.into_iter().map(|loaded| self.shared.part(loaded));
        futures::future::join_all(partings).await;
        let drains = std::mem::take(&mut *lock(&self.shared.drains));
        futures::future::join_all(drains).await;
    }
}

impl Shared {
    /// Nobody listening is no error: the newest state can always be asked for.
    pub(super) fn tell(&self, event: EngineEvent) {
        let _ = self.events.send(event);
    }

    fn versions(&self) -> Vec<Arc<Loaded>> {
        let mut versions: Vec<_> = self.read_routes().values().cloned().collect();
        versions.sort_by(|a, b| a.manifest().model.cmp(&b.manifest().model));
        versions
    }

    /// Threads that models other than this one hold.
    fn threads_beside(&self, model: &ModelName) -> usize {
        let routes = self.read_routes();
        let others = routes.values().filter(|l| &l.manifest().model != model);
        others.map(|l| l.grant.total()).sum()
    }

    fn part_later(self: &Arc<Self>, loaded: Arc<Loaded>) {
        let shared = self.clone();
        let mut drains = lock(&self.drains);
        drains.retain(|drain| !drain.is_finished());
        drains.push(tokio::spawn(async move { shared.part(loaded).await }));
    }

    /// Lets a version that is routed away finish, then ends it. No request outlives its deadline, so only the
    /// end of the agent cuts one short.
    async fn part(&self, loaded: Arc<Loaded>) {
        let mut closing = self.closing.subscribe();
        let drained = tokio::select! {
            drained = loaded.drain(self.config.limits.max_deadline()) => drained,
            () = async { drop(closing.wait_for(|closing| *closing).await) } => {
                loaded.drain(self.config.limits.drain_timeout()).await
            }
        };
        let manifest = loaded.manifest();
        if !drained {
            warn!(
                model = %manifest.model, version = %manifest.version,
                "requests still running when their version ended"
            );
        }
        loaded.end();
        let last = sample(&loaded);
        if last.succeeded + last.refused + last.failed + last.crashes > 0 {
            let mut parted = lock(&self.parted);
            if parted.len() >= PARTED_SAMPLES {
                parted.remove(0);
            }
            parted.push(last);
        }
        info!(model = %manifest.model, version = %manifest.version, "version unloaded");
    }

    /// Why nothing answers for a model.
    fn not_served(&self, model: &str) -> ServeError {
        let lacking = self.read_lacking();
        match lacking.iter().find(|(name, _)| name.as_str() == model) {
            Some((name, reason)) => ServeError::NotReady {
                model: name.clone(),
                reason: reason.clone(),
                retry_after_seconds: RETRY_AFTER_RESTART_SECONDS,
            },
            None => ServeError::UnknownModel(shortened(model)),
        }
    }

    fn read_lacking(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ModelName, String>> {
        self.lacking.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write_lacking(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ModelName, String>> {
        self.lacking.write().unwrap_or_else(|e| e.into_inner())
    }

    fn read_routes(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<Loaded>>> {
        self.routes.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write_routes(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<Loaded>>> {
        self.routes.write().unwrap_or_else(|e| e.into_inner())
    }
}

fn snapshot(loaded: &Loaded) -> ServedModel {
    let manifest = loaded.manifest().clone();
    let worker = loaded.worker();
    let running = worker.as_ref().ok();
    ServedModel {
        model: manifest.model.clone(),
        active: loaded.active(),
        ready: running.is_some(),
        reason: worker.as_ref().err().map(|outage| outage.reason.clone()),
        worker_pid: running.map(|w| w.facts().pid),
        worker_resident_bytes: running.map_or(0, |w| w.resident_bytes()),
        sandbox: running.map_or_else(String::new, |w| w.facts().sandbox.clone()),
        manifest,
    }
}

fn sample(loaded: &Loaded) -> ModelSample {
    let manifest = loaded.manifest();
    loaded.stats.take_sample(&manifest.model, &manifest.version)
}

/// Whether a request's version text, a release number or a semantic version, means this one.
fn means(text: &str, manifest: &Manifest) -> bool {
    match text.parse::<u64>() {
        Ok(release) => release == manifest.release,
        Err(_) => text.parse::<Version>().is_ok_and(|v| v == manifest.version),
    }
}

/// Why this agent cannot run a version that wants a newer one.
fn too_old(manifest: &Manifest) -> Option<String> {
    let own: Version = crate::VERSION.parse().ok()?;
    (manifest.minimum_agent > own).then(|| {
        format!(
            "it needs agent {} or newer and this is {own}: update the agent",
            manifest.minimum_agent
        )
    })
}

/// Foreign text as an error may quote it.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
