//! One task that brings this device from what it runs to what its fleet wishes, and never the other way
//! round: whatever fails, what serves goes on serving.
//!
//! It wakes on a new timestamp, a new connection, an import, an engine event, the end of a job and the
//! passing of time; then it compares wishes with pointers and starts, supersedes or commits jobs. All state
//! of models is changed here and nowhere else. A commit is: audit record fsynced, pointer replaced, requests
//! routed; a power cut between any two of these leaves the old or the new version.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeward_models::chunk::{ChunkError, Source};
use edgeward_models::fleet::rollout::{Wish, model_target};
use edgeward_models::fleet::status::Phase;
use edgeward_models::manifest::MANIFEST_FILE;
use edgeward_models::name::RolloutId;
use edgeward_models::verify::{Policy, TrustStore, VerifyError};
use edgeward_models::{DeviceId, Digest, ModelName, Version};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tracing::{error, info, warn};

use super::board::chain;
use super::boot::activate;
use super::goal::{self, Goal, Looked, Target};
use super::identity::TrustedClock;
use super::job::{FaultKind, JobError, Ready, Workshop, clock};
use super::state::{Applied, ModelRecord, Quarantined};
use crate::serving::EngineEvent;

/// First pause after a failure; doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A person's wish to apply a repository from a directory.
pub struct ImportRequest {
    pub source: Arc<dyn Source>,
    pub progress: mpsc::Sender<ImportEvent>,
}

/// What an import has to say.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportEvent {
    Progress(String),
    /// The last one. `lines` hold one sentence per model.
    Done {
        outcome: ImportOutcome,
        lines: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportOutcome {
    Applied,
    /// The directory's repository is older than this device's state: nothing to do.
    Older,
    Refused,
    Failed,
}

/// What the reconciler listens to.
pub struct Wires {
    pub imports: mpsc::Receiver<ImportRequest>,
    /// The newest timestamp that the broker showed, as it travels.
    pub timestamps: watch::Receiver<Option<Bytes>>,
    /// Counts connections.
    pub sessions: watch::Receiver<u64>,
    /// The repository behind the broker.
    pub remote: Option<Arc<dyn Source>>,
    pub engine: broadcast::Receiver<EngineEvent>,
    pub stop: watch::Receiver<bool>,
}

/// Who this device is to its fleet.
pub struct Membership {
    pub device: DeviceId,
    pub trust: Arc<Mutex<TrustStore>>,
    pub clock: Arc<TrustedClock>,
    pub policy: Policy,
}

pub struct Reconciler {
    workshop: Arc<Workshop>,
    /// Absent until the device is enrolled, or when its trust state is unreadable.
    membership: Option<Arc<Membership>>,
    records: BTreeMap<ModelName, ModelRecord>,
    applied: Applied,
    goal: Option<Arc<Goal>>,
    jobs: JoinSet<Result<Ready, JobError>>,
    running: HashMap<ModelName, Running>,
    attempts: HashMap<ModelName, Attempt>,
    looking: Option<(JoinHandle<Result<Looked, VerifyError>>, LookRequest)>,
    waiting_looks: VecDeque<LookRequest>,
    /// The timestamp of the last look that succeeded.
    seen: Option<Digest>,
    /// After a look that failed: how many have by now, and when the next one is due.
    look_failures: u32,
    look_at: Option<Instant>,
    import: Option<mpsc::Sender<ImportEvent>>,
}

struct Running {
    abort: AbortHandle,
    kind: Kind,
    version: Version,
    rollout: Option<RolloutId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Towards a wish; another wish supersedes it.
    Wish,
    /// The previous version, since the active one fails.
    PutBack,
    /// The active version, which could not be loaded at the start.
    Reload,
}

/// What was tried last and failed.
struct Attempt {
    version: Version,
    rollout: Option<RolloutId>,
    failures: u32,
    again: Instant,
    error: JobError,
}

struct LookRequest {
    source: Arc<dyn Source>,
    timestamp: Option<Digest>,
    import: Option<mpsc::Sender<ImportEvent>>,
}

impl Reconciler {
    pub fn new(
        workshop: Arc<Workshop>,
        membership: Option<Membership>,
        records: BTreeMap<ModelName, ModelRecord>,
        applied: Applied,
        absent: BTreeMap<ModelName, JobError>,
    ) -> Self {
        let attempts = absent
            .into_iter()
            .filter_map(|(model, error)| {
                let active = records.get(&model)?.active.as_ref()?;
                let attempt = Attempt {
                    version: active.version.clone(),
                    rollout: active.rollout.clone(),
                    failures: 1,
                    again: Instant::now() + FIRST_PAUSE,
                    error,
                };
                Some((model, attempt))
            })
            .collect();
        Self {
            workshop,
            membership: membership.map(Arc::new),
            records,
            applied,
            goal: None,
            jobs: JoinSet::new(),
            running: HashMap::new(),
            attempts,
            looking: None,
            waiting_looks: VecDeque::new(),
            seen: None,
            look_failures: 0,
            look_at: None,
            import: None,
        }
    }

    pub async fn run(mut self, mut wires: Wires) {
        let period = self
            .workshop
            .config
            .fleet
            .as_ref()
            .map_or(300, |f| f.reconcile_seconds);
        let mut timer = tokio::time::interval(Duration::from_secs(period.max(1)));
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.reset();
        loop {
            let pause = self.pause();
            tokio::select! {
                _ = wires.stop.changed() => break,
                Some(request) = wires.imports.recv() => self.import(request),
                Ok(()) = wires.timestamps.changed() => {
                    let payload = wires.timestamps.borrow_and_update().clone();
                    self.heard(wires.remote.as_ref(), payload);
                }
                Ok(()) = wires.sessions.changed() => self.reconnected(),
                _ = timer.tick() => self.look_again(wires.remote.as_ref()),
                event = wires.engine.recv() => self.engine_event(event),
                Some(ended) = self.jobs.join_next_with_id() => self.job_ended(ended),
                looked = async {
                    match self.looking.as_mut() {
                        Some((task, _)) => task.await,
                        None => std::future::pending().await,
                    }
                } => self.looked(looked).await,
                () = tokio::time::sleep(pause) => {
                    if self.look_at.is_some_and(|at| at <= Instant::now()) {
                        self.look_again(wires.remote.as_ref());
                    }
                    self.steer();
                }
            }
            self.finish_import();
        }
        self.jobs.shutdown().await;
        if let Some((task, _)) = self.looking.take() {
            task.abort();
        }
    }

    /// Until the next attempt is due.
    fn pause(&self) -> Duration {
        let next = self
            .attempts
            .iter()
            .filter(|(model, _)| !self.running.contains_key(*model))
            .map(|(_, a)| a.again)
            .chain(self.look_at)
            .min();
        next.map_or(Duration::from_secs(3600), |at| {
            at.saturating_duration_since(Instant::now())
        })
    }

    // --- Looking at repositories.

    fn heard(&mut self, remote: Option<&Arc<dyn Source>>, payload: Option<Bytes>) {
        let (Some(source), Some(payload)) = (remote, payload) else {
            return;
        };
        let digest = Digest::of(&payload);
        if self.seen == Some(digest) {
            return;
        }
        // Only the newest of what waits matters.
        self.waiting_looks.retain(|look| look.import.is_some());
        self.waiting_looks.push_back(LookRequest {
            source: source.clone(),
            timestamp: Some(digest),
            import: None,
        });
        self.next_look();
    }

    fn look_again(&mut self, remote: Option<&Arc<dyn Source>>) {
        self.look_at = None;
        self.refresh_age();
        let waiting = self.looking.is_some() || !self.waiting_looks.is_empty();
        let connected = self.workshop.board.facts().connected;
        if let (Some(source), true, false) = (remote, connected, waiting) {
            self.waiting_looks.push_back(LookRequest {
                source: source.clone(),
                timestamp: None,
                import: None,
            });
            self.next_look();
        }
    }

    /// Metadata grows old without anybody saying so.
    fn refresh_age(&self) {
        let Some(membership) = self.membership.clone() else {
            return;
        };
        let Ok(trust) = membership.trust.try_lock() else {
            return;
        };
        let now = jiff::Timestamp::now();
        if let Ok(Some(repository)) = trust.current(now, membership.policy) {
            let (stale, version) = (repository.stale(), repository.timestamp_version());
            self.workshop.board.change(|facts| {
                facts.stale = stale;
                facts.timestamp_version = version;
            });
        }
    }

    fn next_look(&mut self) {
        if self.looking.is_some() {
            return;
        }
        let (Some(membership), Some(request)) =
            (self.membership.clone(), self.waiting_looks.pop_front())
        else {
            return;
        };
        let (source, applied) = (request.source.clone(), self.applied.clone());
        let local = request.import.is_some();
        let task = tokio::spawn(async move {
            let Membership {
                device,
                trust,
                policy,
                ..
            } = &*membership;
            goal::look(trust, source, device, *policy, &applied, local).await
        });
        self.looking = Some((task, request));
    }

    async fn looked(
        &mut self,
        looked: Result<Result<Looked, VerifyError>, tokio::task::JoinError>,
    ) {
        let Some((_, request)) = self.looking.take() else {
            return;
        };
        if let Some(membership) = &self.membership {
            membership
                .clock
                .prove(membership.trust.lock().await.trusted_time());
        }
        match looked {
            Ok(Ok(Looked::Goal(goal))) => self.accept(goal, request),
            Ok(Ok(Looked::Older { offered, known })) => {
                self.seen = request.timestamp.or(self.seen);
                info!(
                    offered,
                    known, "an older repository was offered; nothing to do"
                );
                let line = format!(
                    "the repository is older (timestamp {offered}) than what this device already has ({known}); \
                     nothing to do"
                );
                if request.import.is_none() {
                    self.workshop.board.error(format!(
                        "the broker offers an older repository (timestamp {offered}, known {known}); \
                         `fleetctl sync` from the newest repository mends that"
                    ));
                }
                answer(request.import, ImportOutcome::Older, vec![line]);
            }
            Ok(Err(error)) => self.look_failed(error, request),
            Err(join_error) => {
                error!(%join_error, "a look at the repository ended early");
                let line = "an internal error ended the import; see the agent's log".to_owned();
                answer(request.import, ImportOutcome::Failed, vec![line]);
            }
        }
        self.refresh_age();
        self.next_look();
    }

    fn look_failed(&mut self, error: VerifyError, request: LookRequest) {
        if request.import.is_none() {
            self.look_failures += 1;
            self.look_at = Some(Instant::now() + pause_after(self.look_failures));
        }
        let text = chain(&error);
        // A broker that lost everything, or somebody who hides it, is no reason to cry wolf.
        let carrier = matches!(
            error,
            VerifyError::Missing { .. }
                | VerifyError::Chunk(ChunkError::Source(_) | ChunkError::Missing(_))
        );
        let known = self.workshop.board.facts().last_error.as_ref() == Some(&text);
        if carrier {
            warn!(problem = %text, "repository could not be read");
        } else {
            warn!(problem = %text, "repository refused; what is installed serves on");
            // The same refusal again and again (each reconnect) would only fill the log.
            if !known
                && let Err(e) = self
                    .workshop
                    .audit
                    .record("metadata-refused", json!({"reason": text}))
            {
                error!(problem = %chain(&e), "audit record failed");
            }
        }
        self.workshop.board.error(text.clone());
        let outcome = if carrier {
            ImportOutcome::Failed
        } else {
            ImportOutcome::Refused
        };
        answer(request.import, outcome, vec![text]);
    }

    fn accept(&mut self, goal: Goal, request: LookRequest) {
        self.seen = request.timestamp.or(self.seen);
        self.look_failures = 0;
        let mut applied = self.applied.clone();
        for group in &goal.groups {
            applied.groups.insert(group.group.clone(), group.sequence);
        }
        if applied != self.applied {
            let recorded = self
                .workshop
                .audit
                .record(
                    "desired-state-accepted",
                    json!({"groups": applied.groups, "timestamp": goal.repository.timestamp_version()}),
                )
                .map_err(|e| chain(&e))
                .and_then(|()| {
                    self.workshop
                        .state
                        .write_applied(&applied)
                        .map_err(|e| chain(&e))
                });
            if let Err(problem) = recorded {
                // Without the record the sequence could go back later: do not act on it.
                error!(%problem, "desired state could not be recorded and is not applied");
                self.seen = None;
                self.workshop.board.error(problem.clone());
                answer(request.import, ImportOutcome::Failed, vec![problem]);
                return;
            }
            self.applied = applied;
        }
        for note in &goal.notes {
            warn!(note, "desired state");
        }
        self.workshop.board.change(|facts| {
            facts.groups.clone_from(&goal.groups);
            facts.timestamp_version = goal.repository.timestamp_version();
            facts.stale = goal.repository.stale();
            facts.last_error = goal.notes.first().cloned();
        });
        if let Some(import) = request.import {
            let groups = goal.groups.iter().map(|g| g.group.to_string());
            let text = format!(
                "verified; groups: {}",
                groups.collect::<Vec<_>>().join(", ")
            );
            let _ = import.try_send(ImportEvent::Progress(text));
            self.import = Some(import);
            // Somebody stands there and waits: earlier failures are no reason to.
            for attempt in self.attempts.values_mut() {
                attempt.again = Instant::now();
            }
        }
        let goal = Arc::new(goal);
        self.retire_unwished(&goal);
        self.goal = Some(goal);
        self.steer();
    }

    // --- From wishes to jobs.

    /// Compares every wish with what runs.
    fn steer(&mut self) {
        if let Some(goal) = self.goal.clone() {
            for (model, wish) in &goal.wishes {
                self.steer_model(&goal, model, wish);
            }
        }
        self.reload_absent();
        // What was due and not taken up has nothing to try at present; it must not keep this task awake.
        let now = Instant::now();
        for (model, attempt) in &mut self.attempts {
            if attempt.again <= now && !self.running.contains_key(model) {
                attempt.again = now + LONGEST_PAUSE;
            }
        }
    }

    fn steer_model(&mut self, goal: &Arc<Goal>, model: &ModelName, wish: &Wish) {
        let Some(membership) = self.membership.clone() else {
            return;
        };
        let record = self.records.get(model).cloned().unwrap_or_default();
        let has_something = record.active.is_some();
        let version = match goal::target(wish, &membership.device, has_something) {
            Target::Run(version) => version,
            Target::NotYet => {
                self.supersede(model, None);
                let percent = wish.percent;
                self.show(
                    model,
                    Some(&wish.version),
                    Phase::Waiting,
                    Some(format!("not among the first {percent} % of the rollout")),
                );
                return;
            }
        };
        let rollout = Some(wish.rollout.clone());
        if let Some(problem) = changed_bytes(goal, model, &version, &record) {
            self.supersede(model, None);
            self.show(model, Some(&version), Phase::Refused, Some(problem));
            return;
        }
        if record.active.as_ref().is_some_and(|a| a.version == version) {
            self.supersede(model, None);
            self.adopt_rollout(model, &record, wish);
            if self.served(model) {
                self.attempts.remove(model);
                self.show(model, Some(&version), Phase::Active, None);
            }
            return;
        }
        if let Some(running) = self.running.get(model) {
            let same = running.version == version && running.rollout == rollout;
            if same || running.kind == Kind::PutBack {
                return;
            }
        }
        self.supersede(model, Some(&version));
        if let Some(reason) = record.barred(&version, rollout.as_ref()) {
            let reason = format!("{version} failed on this device: {reason}");
            self.show(model, Some(&version), Phase::Refused, Some(reason));
            return;
        }
        if let Some(bar) = &goal.bar {
            let reason = format!("nothing new is installed: {bar}");
            self.show(model, Some(&version), Phase::Refused, Some(reason));
            return;
        }
        let mut delay = Duration::ZERO;
        if let Some(attempt) = self.attempts.get(model) {
            let same = attempt.version == version && attempt.rollout == rollout;
            if same && attempt.again > Instant::now() {
                return;
            }
            if !same {
                self.attempts.remove(model);
            }
        }
        // The jitter spares the broker at a rollout's start; a retry has its own pause.
        if !goal.local && !self.attempts.contains_key(model) {
            delay = wish.start_delay(&membership.device);
        }
        self.workshop.board.model(model, |line| {
            line.target = Some(version.clone());
            line.previous = record.previous.as_ref().map(|p| p.version.clone());
        });
        let job = self.workshop.clone().obtain(
            goal.clone(),
            model.clone(),
            version.clone(),
            wish.clone(),
            delay,
        );
        self.spawn(model, Kind::Wish, version, rollout, job);
    }

    /// A later rollout of the version that runs already: failures from now on count for that one.
    fn adopt_rollout(&mut self, model: &ModelName, record: &ModelRecord, wish: &Wish) {
        let mut next = record.clone();
        let Some(active) = next.active.as_mut() else {
            return;
        };
        if active.version == wish.version && active.rollout.as_ref() != Some(&wish.rollout) {
            active.rollout = Some(wish.rollout.clone());
            match self.workshop.state.write_record(model, &next) {
                Ok(()) => {
                    self.records.insert(model.clone(), next);
                }
                Err(e) => warn!(%model, problem = %chain(&e), "pointer could not be written"),
            }
        }
    }

    /// Ends a job that works towards something else than `version`.
    fn supersede(&mut self, model: &ModelName, version: Option<&Version>) {
        let ends = self
            .running
            .get(model)
            .is_some_and(|r| r.kind == Kind::Wish);
        if ends && let Some(running) = self.running.remove(model) {
            running.abort.abort();
            info!(%model, superseded = %running.version, by = ?version, "installation superseded");
        }
    }

    /// Tries to load active versions again that could not be loaded at the start.
    fn reload_absent(&mut self) {
        let due: Vec<ModelName> = self
            .attempts
            .iter()
            .filter(|(model, attempt)| {
                attempt.again <= Instant::now() && !self.running.contains_key(*model)
            })
            .map(|(model, _)| model.clone())
            .collect();
        for model in due {
            let active = self.records.get(&model).and_then(|r| r.active.clone());
            let Some(active) = active.filter(|_| !self.served(&model)) else {
                continue;
            };
            let job = self.workshop.clone().load(model.clone(), active.clone());
            let (version, rollout) = (active.version, active.rollout);
            self.spawn(&model, Kind::Reload, version, rollout, job);
        }
    }

    fn spawn(
        &mut self,
        model: &ModelName,
        kind: Kind,
        version: Version,
        rollout: Option<RolloutId>,
        job: impl Future<Output = Result<Ready, JobError>> + Send + 'static,
    ) {
        let abort = self.jobs.spawn(job);
        let running = Running {
            abort,
            kind,
            version,
            rollout,
        };
        self.running.insert(model.clone(), running);
    }

    fn served(&self, model: &ModelName) -> bool {
        self.workshop
            .engine
            .models()
            .iter()
            .any(|m| m.model == *model)
    }

    fn show(
        &self,
        model: &ModelName,
        target: Option<&Version>,
        phase: Phase,
        reason: Option<String>,
    ) {
        let previous = self.records.get(model).and_then(|r| r.previous.as_ref());
        self.workshop.board.model(model, |line| {
            line.target = target.cloned();
            line.previous = previous.map(|p| p.version.clone());
            line.phase = phase;
            line.reason = reason;
        });
    }

    /// Models that no group wishes for any more are let go; their files stay until they are in the way.
    fn retire_unwished(&mut self, goal: &Goal) {
        if !goal.complete {
            return;
        }
        let unwished: Vec<ModelName> = self
            .records
            .iter()
            .filter(|(model, record)| record.active.is_some() && !goal.wishes.contains_key(*model))
            .map(|(model, _)| model.clone())
            .collect();
        for model in unwished {
            if let Some(running) = self.running.remove(&model) {
                running.abort.abort();
            }
            let Some(record) = self.records.get(&model) else {
                continue;
            };
            let mut next = record.clone();
            next.previous = next.active.take();
            let fields =
                json!({"model": model, "version": next.previous.as_ref().map(|p| &p.version)});
            if self.commit(&model, "model-retired", fields, next).is_ok() {
                info!(%model, "no group wishes for this model any more; it is retired");
                self.attempts.remove(&model);
                let (engine, name) = (self.workshop.engine.clone(), model.clone());
                self.workshop
                    .serving
                    .spawn(async move { engine.retire(&name).await });
                self.workshop.board.change(|facts| {
                    facts.models.remove(&model);
                });
            }
        }
    }

    // --- From jobs to pointers.

    fn job_ended(
        &mut self,
        ended: Result<(tokio::task::Id, Result<Ready, JobError>), tokio::task::JoinError>,
    ) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(e) => e.id(),
        };
        // A superseded job is no longer among those that run.
        let model = self
            .running
            .iter()
            .find(|(_, running)| running.abort.id() == id)
            .map(|(model, _)| model.clone());
        let Some((model, running)) = model.and_then(|m| self.running.remove_entry(&m)) else {
            return;
        };
        let outcome = match ended {
            Ok((_, outcome)) => outcome,
            Err(_) => Err(JobError::new(
                FaultKind::Device,
                "an internal error ended the installation; see the agent's log",
            )),
        };
        match outcome.and_then(|ready| self.take_over(&model, running.kind, ready)) {
            Ok(()) => {
                self.attempts.remove(&model);
            }
            Err(error) => self.job_failed(&model, running, error),
        }
        self.steer();
    }

    /// The commit: audit, pointer, routing.
    fn take_over(&mut self, model: &ModelName, kind: Kind, ready: Ready) -> Result<(), JobError> {
        let record = self.records.get(model).cloned().unwrap_or_default();
        let mut pointer = ready.pointer.clone();
        pointer.activated_at = clock();
        let (event, next) = match kind {
            Kind::Wish => ("version-activated", record.activated(pointer.clone())),
            Kind::PutBack if record.previous.as_ref() != Some(&ready.pointer) => {
                let reason = "the pointers changed while the previous version was loaded";
                return Err(JobError::new(FaultKind::Device, reason));
            }
            Kind::PutBack => ("version-put-back", record.put_back(clock())),
            Kind::Reload => {
                activate(&self.workshop, model, ready);
                return Ok(());
            }
        };
        let fields = json!({
            "model": model, "version": pointer.version, "release": pointer.release,
            "manifest": pointer.manifest_digest, "rollout": pointer.rollout,
            "before": record.active.as_ref().map(|a| &a.version),
        });
        self.commit(model, event, fields, next)?;
        activate(&self.workshop, model, ready);
        let record = &self.records[model];
        info!(%model, version = %pointer.version, release = pointer.release, "version active");
        let keep = self
            .workshop
            .config
            .fleet
            .as_ref()
            .map_or(2, |f| f.keep_versions);
        self.workshop.state.collect_garbage(model, record, keep);
        // What is left belongs to fetches that were given up, unless one waits to be taken up again.
        if self.running.is_empty() && self.attempts.keys().all(|other| other == model) {
            self.workshop.cache.clear();
        }
        let target = (kind == Kind::Wish).then_some(&pointer.version);
        self.workshop.board.model(model, |line| {
            line.previous = record.previous.as_ref().map(|p| p.version.clone());
            if let Some(target) = target {
                line.target = Some(target.clone());
            }
        });
        Ok(())
    }

    fn commit(
        &mut self,
        model: &ModelName,
        event: &'static str,
        fields: serde_json::Value,
        record: ModelRecord,
    ) -> Result<(), JobError> {
        let device = |e: &dyn std::error::Error| JobError::new(FaultKind::Device, chain(e));
        let committed = self
            .workshop
            .audit
            .record(event, fields)
            .map_err(|e| device(&e))
            .and_then(|()| {
                self.workshop
                    .state
                    .write_record(model, &record)
                    .map_err(|e| device(&e))
            });
        match committed {
            Ok(()) => {
                self.records.insert(model.clone(), record);
                Ok(())
            }
            Err(error) => {
                error!(%model, event, problem = %error.reason, "state could not be written; nothing was changed");
                self.workshop.board.error(error.reason.clone());
                Err(error)
            }
        }
    }

    fn job_failed(&mut self, model: &ModelName, running: Running, error: JobError) {
        let Running {
            kind,
            version,
            rollout,
            ..
        } = running;
        warn!(%model, %version, problem = %error.reason, "version not taken; what serves goes on");
        if kind == Kind::Wish && error.kind == FaultKind::Version {
            self.quarantine(model, &version, rollout.clone(), &error.reason);
        }
        if error.kind == FaultKind::Content {
            let fields = json!({"model": model, "version": version, "reason": error.reason});
            let first = self
                .attempts
                .get(model)
                .is_none_or(|a| a.error.reason != error.reason);
            if first && let Err(e) = self.workshop.audit.record("version-refused", fields) {
                error!(problem = %chain(&e), "audit record failed");
            }
        }
        let failures = self.attempts.get(model).map_or(0, |a| a.failures) + 1;
        self.workshop.board.model(model, |line| {
            line.reason = Some(error.reason.clone());
            line.phase = match (kind, error.kind) {
                // Not refused: it goes on when the carrier is back.
                (Kind::Wish, FaultKind::Carrier) => match line.phase {
                    Phase::Fetching { have, of } => Phase::Fetching { have, of },
                    _ => Phase::Fetching { have: 0, of: 0 },
                },
                (Kind::Wish, _) => Phase::Refused,
                _ => Phase::BackingOff,
            };
        });
        let text = format!("{model} {version}: {}", error.reason);
        self.workshop.board.error(text);
        let attempt = Attempt {
            version,
            rollout,
            failures,
            again: Instant::now() + pause_after(failures),
            error,
        };
        self.attempts.insert(model.clone(), attempt);
    }

    fn quarantine(
        &mut self,
        model: &ModelName,
        version: &Version,
        rollout: Option<RolloutId>,
        reason: &str,
    ) {
        let record = self.records.get(model).cloned().unwrap_or_default();
        let next = record.quarantine(Quarantined {
            version: version.clone(),
            rollout: rollout.clone(),
            reason: reason.to_owned(),
            at: clock(),
        });
        let fields =
            json!({"model": model, "version": version, "rollout": rollout, "reason": reason});
        // If this cannot be written the attempt's own pause still keeps it from being tried in a loop.
        let _ = self.commit(model, "version-quarantined", fields, next);
    }

    // --- The rest of the world.

    fn reconnected(&mut self) {
        for attempt in self.attempts.values_mut() {
            if attempt.error.kind == FaultKind::Carrier {
                attempt.again = Instant::now();
            }
        }
        self.steer();
    }

    fn engine_event(&mut self, event: Result<EngineEvent, RecvError>) {
        if let Ok(EngineEvent::Failing {
            model,
            version,
            reason,
        }) = &event
        {
            self.failing(model, version, reason);
        }
        if let Ok(EngineEvent::Crashed {
            model,
            version,
            reason,
        }) = &event
        {
            self.workshop
                .board
                .error(format!("{model} {version}: {reason}"));
        }
        self.workshop.board.touch();
    }

    /// The engine has given a version up: the one before takes over, if there is one.
    fn failing(&mut self, model: &ModelName, version: &Version, reason: &str) {
        let Some(record) = self.records.get(model) else {
            return;
        };
        let (Some(active), Some(previous)) = (record.active.clone(), record.previous.clone())
        else {
            warn!(%model, %version, reason, "version keeps failing and is the only one; it is tried on");
            return;
        };
        if active.version != *version
            || self
                .running
                .get(model)
                .is_some_and(|r| r.kind == Kind::PutBack)
        {
            return;
        }
        warn!(%model, %version, reason, previous = %previous.version, "version fails; the previous one is put back");
        self.quarantine(model, version, active.rollout, reason);
        if let Some(running) = self.running.remove(model) {
            running.abort.abort();
        }
        let job = self.workshop.clone().load(model.clone(), previous.clone());
        let (version, rollout) = (previous.version, previous.rollout);
        self.spawn(model, Kind::PutBack, version, rollout, job);
    }

    fn import(&mut self, request: ImportRequest) {
        if self.membership.is_none() {
            let line = "this device is not a member of a fleet, so nothing can be verified; `edgeward enroll` \
                        makes it one";
            answer(
                Some(request.progress),
                ImportOutcome::Failed,
                vec![line.to_owned()],
            );
            return;
        }
        self.waiting_looks.push_back(LookRequest {
            source: request.source,
            timestamp: None,
            import: Some(request.progress),
        });
        self.next_look();
    }

    /// An import is over when nothing works towards its wishes any more.
    fn finish_import(&mut self) {
        let Some(goal) = self.goal.clone().filter(|_| self.import.is_some()) else {
            return;
        };
        let busy = goal.wishes.keys().any(|m| self.running.contains_key(m));
        if busy {
            return;
        }
        let facts = self.workshop.board.facts();
        let mut outcome = ImportOutcome::Applied;
        let mut lines = Vec::new();
        for (model, wish) in &goal.wishes {
            let line = facts.models.get(model).cloned().unwrap_or_default();
            let active = self.records.get(model).and_then(|r| r.active.as_ref());
            let runs = active.map_or("nothing".to_owned(), |a| a.version.to_string());
            let reason = line.reason.unwrap_or_default();
            lines.push(match line.phase {
                Phase::Active => format!("{model} {runs} is active"),
                Phase::Waiting => format!("{model}: {runs} stays active; {reason}"),
                _ => {
                    let device = self.attempts.get(model).is_some_and(|a| {
                        matches!(a.error.kind, FaultKind::Device | FaultKind::Carrier)
                    });
                    outcome = if device && outcome != ImportOutcome::Refused {
                        ImportOutcome::Failed
                    } else {
                        ImportOutcome::Refused
                    };
                    format!(
                        "{model} {} was not taken, {runs} stays active: {reason}",
                        wish.version
                    )
                }
            });
        }
        if lines.is_empty() {
            lines.push("nothing is wished for on this device".to_owned());
        }
        let recorded = self.workshop.audit.record(
            "import",
            json!({"timestamp": goal.repository.timestamp_version(), "outcome": outcome}),
        );
        if let Err(e) = recorded {
            error!(problem = %chain(&e), "audit record failed");
        }
        answer(self.import.take(), outcome, lines);
    }
}

/// A version is immutable: other bytes under the name of one that this device has are refused.
fn changed_bytes(
    goal: &Goal,
    model: &ModelName,
    version: &Version,
    record: &ModelRecord,
) -> Option<String> {
    let name = model_target(model, version, MANIFEST_FILE);
    let signed = goal.repository.target(&name)?.sha256;
    let known = [&record.active, &record.previous]
        .into_iter()
        .flatten()
        .find(|p| p.version == *version)?;
    (known.manifest_digest != signed).then(|| {
        format!(
            "{version} was signed again with other bytes; a version never changes: push a new one"
        )
    })
}

/// Grows with each failure; spread, so that a whole fleet does not come back in step.
fn pause_after(failures: u32) -> Duration {
    let pause = FIRST_PAUSE * 2u32.saturating_pow(failures.clamp(1, 10) - 1);
    pause
        .min(LONGEST_PAUSE)
        .mul_f64(rand::random_range(0.8..1.2))
}

fn answer(import: Option<mpsc::Sender<ImportEvent>>, outcome: ImportOutcome, lines: Vec<String>) {
    if let Some(import) = import {
        // Whoever asked may have gone.
        let _ = import.try_send(ImportEvent::Done { outcome, lines });
    }
}
