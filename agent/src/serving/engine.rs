//! All served models: which versions answer for which name, and how one version follows another.
//!
//! A request costs one short read lock here; loading, proving and draining happen beside it. The fleet side
//! calls `prepare` then `activate`, or `prepare_beside` then `serve_beside`; the doors call `resolve`. A version that was routed away is ended only
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
use super::known_names;
use super::loaded::Loaded;
use super::memory::{MemoryBudget, Room, guess};
use super::metrics::{self, Lifecycle};
use super::proof::Prover;
use super::stats::{Figures, Outcome};
use super::supervise::Skipped;
use super::versions::{Versions, shortened};
use crate::config::{Config, NamesOf};
use crate::watch::page::Page;
use crate::worker::cpu::usable_cores;
use crate::worker::{Spawner, turns};

/// Events that a slow listener may be behind. It is told that it missed some; the newest state is in `models`.
const EVENTS_KEPT: usize = 64;

/// Samples of versions that ended, kept until telemetry asks.
const PARTED_SAMPLES: usize = 64;

/// When to try again while the agent is being restarted.
pub(super) const RETRY_AFTER_RESTART_SECONDS: u64 = 5;

/// All served models. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) spawner: Spawner,
    pub(super) memory: MemoryBudget,
    /// By the model's name.
    routes: RwLock<HashMap<String, Versions>>,
    /// Models that should be served and are not, with the reason.
    lacking: RwLock<BTreeMap<ModelName, String>>,
    events: broadcast::Sender<EngineEvent>,
    pub(super) closing: watch::Sender<bool>,
    /// Versions that are being drained.
    drains: Mutex<Vec<JoinHandle<()>>>,
    /// Last samples of versions that ended.
    parted: Mutex<Vec<ModelSample>>,
    /// How often versions came and went, by model.
    lifecycle: Mutex<BTreeMap<ModelName, Lifecycle>>,
}

/// A version that is loaded, proven and warm, and not yet routed to. Dropped, it ends its worker.
pub struct Prepared {
    pub(super) loaded: Arc<Loaded>,
    active: ActiveVersion,
    pub(super) choice: usize,
    pub(super) refused: Skipped,
    /// Until it is served, and its worker counts by itself.
    _room: Room,
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

/// A snapshot of one served version.
#[derive(Debug, Clone)]
pub struct ServedModel {
    pub model: ModelName,
    pub manifest: Arc<Manifest>,
    /// Where it runs.
    pub active: ActiveVersion,
    /// It is not the active version, but served beside it.
    pub beside: bool,
    /// Loaded and answering (a dead worker shows as false until it is back).
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    pub worker_pid: Option<u32>,
    pub worker_resident_bytes: u64,
    /// What the worker takes, its share of what processes share, when it was last measured; 0 without one.
    pub worker_memory_bytes: u64,
    pub instances: usize,
    /// Why it is not loaded just now, though it answers: the next request loads it.
    pub unloaded: Option<String>,
    pub sandbox: String,
}

impl Engine {
    pub fn new(config: Arc<Config>, spawner: Spawner) -> Self {
        Self {
            shared: Arc::new(Shared {
                memory: MemoryBudget::new(config.tflite.memory_budget_bytes),
                config,
                spawner,
                routes: RwLock::default(),
                lacking: RwLock::default(),
                events: broadcast::Sender::new(EVENTS_KEPT),
                closing: watch::Sender::new(false),
                drains: Mutex::default(),
                parted: Mutex::default(),
                lifecycle: Mutex::default(),
            }),
        }
    }

    /// Loads a version that is to be the active one beside whatever serves: delegates in the manifest's order, share
    /// of nodes, golden vectors, warm-up, seal.
    pub async fn prepare(&self, version: &InstalledVersion) -> Result<Prepared, LoadFailure> {
        self.load(version, false).await
    }

    /// The same for a version that is to be served beside the active one.
    pub async fn prepare_beside(
        &self,
        version: &InstalledVersion,
    ) -> Result<Prepared, LoadFailure> {
        self.load(version, true).await
    }

    async fn load(
        &self,
        version: &InstalledVersion,
        beside: bool,
    ) -> Result<Prepared, LoadFailure> {
        let manifest = version.manifest();
        if let Some(reason) = too_old(manifest) {
            return Err(LoadFailure::new(manifest, reason, false));
        }
        let cores = usable_cores(self.shared.config.tflite.cores);
        let taken = self.shared.threads_taken(&manifest.model, beside);
        let settings = self.shared.config.models.get(&manifest.model);
        let grant = grant(manifest, settings, cores, taken);
        let (shared, version) = (self.shared.clone(), version.clone());
        let manifest = manifest.clone();
        let proving = async move {
            let subject = Subject::of(&version)?;
            let manifest = version.manifest();
            let room = shared.room_for(&manifest.model, guess(manifest)).await;
            let mut room = room.map_err(|reason| LoadFailure::new(manifest, reason, true))?;
            let prover = Prover::new(&shared.config, &shared.spawner, grant);
            let proven = prover.prove(&subject, &[]).await?;
            room.becomes(proven.worker.memory_bytes());
            Ok((subject, proven, room))
        };
        let proven = aside(&manifest, turns::NICENESS, proving).await;
        self.shared.count(&manifest.model, |life| match &proven {
            Ok(_) => life.loads += 1,
            Err(_) => life.failed_loads += 1,
        });
        let (subject, proven, room) = proven?;
        let (active, choice) = (proven.active.clone(), proven.choice);
        let refused = proven.refused.clone();
        let loaded = Loaded::new(subject, grant, &self.shared.config, proven);
        Ok(Prepared {
            loaded: Arc::new(loaded),
            active,
            choice,
            refused,
            _room: room,
        })
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

    /// The active version of each model.
    pub fn models(&self) -> Vec<ServedModel> {
        let mut versions = self.versions();
        versions.retain(|version| !version.beside);
        versions
    }

    /// All versions that are served, by model and version.
    pub fn versions(&self) -> Vec<ServedModel> {
        let routes = self.shared.read_routes();
        let snapshots = routes.values().flat_map(|versions| {
            let active = versions.active().map(|loaded| snapshot(loaded, false));
            let beside = versions.beside().iter();
            active.into_iter().chain(beside.map(|l| snapshot(l, true)))
        });
        let mut snapshots: Vec<_> = snapshots.collect();
        snapshots.sort_by(|a, b| by_name(&a.manifest, &b.manifest));
        snapshots
    }

    /// Measures all workers anew, for the snapshots that follow.
    pub fn measure(&self) {
        for loaded in self.shared.versions() {
            loaded.measure();
        }
    }

    /// What a loaded version did so far.
    pub fn figures(&self, model: &ModelName, version: &Version) -> Option<Figures> {
        let versions = self.shared.versions();
        let mut loaded = versions.iter().map(|l| (l.manifest(), l));
        loaded
            .find(|(manifest, _)| manifest.model == *model && manifest.version == *version)
            .map(|(_, loaded)| loaded.stats.figures())
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

    /// What [`take_samples`](Self::take_samples) would say now.
    pub fn peek_samples(&self) -> Vec<ModelSample> {
        let mut samples = lock(&self.shared.parted).clone();
        samples.extend(self.shared.versions().iter().map(|loaded| {
            let manifest = loaded.manifest();
            loaded.stats.peek_sample(&manifest.model, &manifest.version)
        }));
        samples
    }

    /// Requests answered by the versions that serve now; the watchdog looks whether it grows.
    pub fn answered(&self) -> u64 {
        let count = |loaded: &Arc<Loaded>| loaded.stats.count(Outcome::Succeeded);
        self.shared.versions().iter().map(count).sum()
    }

    /// Metrics of all served versions.
    pub fn write_metrics(&self, page: &mut Page) {
        let versions = self.shared.versions();
        metrics::write(page, &versions);
        metrics::write_lifecycle(page, &lock(&self.shared.lifecycle));
        let shadows = self.shadows().into_iter();
        let shadows: Vec<_> = shadows.map(|(model, status, _)| (model, status)).collect();
        metrics::write_shadows(page, &shadows);
        for names in &self.shared.config.metrics.names_of {
            match names {
                NamesOf::Triton => known_names::triton(page, &versions),
                NamesOf::TensorflowServing => known_names::tensorflow(page, &versions),
            }
        }
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

    pub(super) fn versions(&self) -> Vec<Arc<Loaded>> {
        let routes = self.read_routes();
        let loaded = |versions: &'_ Versions| {
            let all = versions.all().chain(versions.standby());
            all.cloned().collect::<Vec<_>>()
        };
        let mut versions: Vec<_> = routes.values().flat_map(loaded).collect();
        drop(routes);
        versions.sort_by(|a, b| by_name(a.manifest(), b.manifest()));
        versions
    }

    /// Threads of all interpreters that there are now.
    pub(super) fn threads_running(&self) -> usize {
        let versions = self.versions();
        versions.iter().map(|loaded| loaded.threads()).sum()
    }

    /// Threads that are held by others than the active version of a model, or (`beside`) by that one too.
    fn threads_taken(&self, model: &ModelName, beside: bool) -> usize {
        let routes = self.read_routes();
        let held = routes.iter().flat_map(|(name, versions)| {
            let active = versions
                .active()
                .filter(|_| beside || name != model.as_str());
            active.into_iter().chain(versions.beside())
        });
        held.map(|loaded| loaded.threads()).sum()
    }

    pub(super) fn part_later(self: &Arc<Self>, loaded: Arc<Loaded>) {
        let shared = self.clone();
        let mut drains = lock(&self.drains);
        drains.retain(|drain| !drain.is_finished());
        drains.push(tokio::spawn(async move { shared.part(loaded).await }));
    }

    /// Lets a version that is routed away finish, then ends it. No request outlives its deadline, so only the
    /// end of the agent cuts one short.
    pub(super) async fn part(&self, loaded: Arc<Loaded>) {
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
        self.count(&manifest.model, |life| life.unloads += 1);
        info!(model = %manifest.model, version = %manifest.version, "version unloaded");
    }

    fn count(&self, model: &ModelName, change: impl FnOnce(&mut Lifecycle)) {
        change(lock(&self.lifecycle).entry(model.clone()).or_default());
    }

    /// Why nothing answers for a model.
    pub(super) fn not_served(&self, model: &str) -> ServeError {
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

    pub(super) fn write_lacking(
        &self,
    ) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ModelName, String>> {
        self.lacking.write().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn read_routes(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Versions>> {
        self.routes.read().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn write_routes(
        &self,
    ) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Versions>> {
        self.routes.write().unwrap_or_else(|e| e.into_inner())
    }
}

fn by_name(a: &Manifest, b: &Manifest) -> std::cmp::Ordering {
    (&a.model, &a.version).cmp(&(&b.model, &b.version))
}

fn snapshot(loaded: &Loaded, beside: bool) -> ServedModel {
    let manifest = loaded.manifest().clone();
    let running = loaded.worker();
    let running = running.as_ref();
    ServedModel {
        model: manifest.model.clone(),
        active: loaded.active(),
        beside,
        ready: loaded.ready(),
        reason: loaded.outage().map(|outage| outage.reason),
        unloaded: loaded.unloaded().map(str::to_owned),
        worker_memory_bytes: running.map_or(0, |_| loaded.expected_bytes()),
        instances: loaded.interpreters(),
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
