//! The link to the fleet: verified metadata in, installed versions, statuses and telemetry out.
//!
//! Reading order: [`state`] (what lies on the disk), [`identity`] (who the device is), [`credentials`] (the certificate that it shows), [`goal`] (what it
//! should run), [`job`] and [`transfer`] (how a version gets there), [`reconcile`] (the one task that
//! decides), [`boot`] (the first thing after a start), [`board`] (what others may see of it), [`admin`] (the
//! door for `import` and `status`), [`mqtt`] and [`transport`] (the broker), [`speaker`] (what is told it),
//! [`telemetry`], [`outbox`] and [`store`] (numbers that may leave, and wait until they can).
//!
//! All of it but loading at the start runs on a thread of its own, so that an fsync or a slow broker never
//! holds up a request; the engine's own tasks stay on the runtime that serves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use edgeward_models::DeviceId;
use edgeward_models::fleet::status::AppliedGroup;
use edgeward_models::fleet::topic::Topic;
use edgeward_models::verify::{Policy, TrustStore};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, broadcast, mpsc, watch};
use tracing::{error, info};

use crate::config::{self, Config};
use crate::serving::{Engine, EngineEvent, ServedModel};
use crate::watch::audit::Audit;
use crate::worker::turns;
use abort::AbortOnDrop;
use admin::Admin;
use board::{Board, chain};
use departures::Departures;
use identity::{Identity, TrustedClock};
use job::Workshop;
use metrics::FleetMetrics;
use mqtt::{Leaving, Link, LinkState};
use reconcile::{ImportRequest, Membership, OverrideRequest, Reconciler, Wires};
use state::StateDirectory;
use transfer::ChunkCache;
use transport::BrokerSource;

mod abort;
pub mod admin;
pub mod board;
pub mod boot;
pub mod credentials;
mod deadline;
pub mod departures;
pub mod goal;
pub mod identity;
pub mod job;
pub mod metrics;
pub mod mqtt;
pub mod outbox;
mod pause;
pub mod reconcile;
mod routes;
pub mod soak;
pub mod speaker;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod transfer;
pub mod transport;

/// After being asked to stop, the fleet side gets this long to say goodbye and flush.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The file whose change says that there is something new.
const TIMESTAMP: &str = "timestamp.json";
/// Connections are recorded in the audit log at most this often.
const CONNECTION_RECORDS: Duration = Duration::from_secs(600);
/// After a panic in the task of the broker connection.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// Imports, and overrides of routings, that wait while another one is looked at.
const PENDING_IMPORTS: usize = 4;

/// The running fleet side.
pub struct FleetTasks {
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
    imports: mpsc::Sender<ImportRequest>,
    metrics: Arc<FleetMetrics>,
}

/// Starts what `serve` needs: loads the active versions from disk *before it returns* (so a boot without
/// network serves), then opens the admin socket, connects to the broker if the device is enrolled and
/// configured for it, and reconciles. `Err` only for trouble that must stop the agent (state locked by
/// another agent, unreadable state directory); everything else is logged and reported, and serving goes on.
pub async fn start(
    config: Arc<Config>,
    engine: Engine,
    audit: Audit,
) -> anyhow::Result<FleetTasks> {
    begin(config, engine, audit, true).await
}

/// The same without broker, telemetry and admin socket: for `edgeward import` where no agent runs.
pub async fn start_offline(
    config: Arc<Config>,
    engine: Engine,
    audit: Audit,
) -> anyhow::Result<FleetTasks> {
    begin(config, engine, audit, false).await
}

async fn begin(
    config: Arc<Config>,
    engine: Engine,
    audit: Audit,
    online: bool,
) -> anyhow::Result<FleetTasks> {
    let state = Arc::new(StateDirectory::open(&config.state_directory)?);
    let board = Arc::new(Board::new());
    let mut records = state
        .records()
        .context("cannot read which versions are active")?;
    let workshop = Arc::new(Workshop {
        cache: ChunkCache::new(state.chunks()),
        config: config.clone(),
        state: state.clone(),
        engine: engine.clone(),
        serving: Handle::current(),
        audit: audit.clone(),
        board: board.clone(),
        proving: Semaphore::new(1),
    });
    let absent = boot::boot(&workshop, &mut records).await;
    let applied = state.applied().unwrap_or_else(|e| {
        // Sequences only guard against an operator's restored backup; without them the device still serves.
        error!(problem = %chain(&e), "the record of applied desired states is unreadable");
        board.error(chain(&e));
        state::Applied::default()
    });
    board.change(|facts| {
        let groups = applied.groups.clone().into_iter();
        facts.groups = groups
            .map(|(group, sequence)| AppliedGroup { group, sequence })
            .collect();
    });
    let (identity, membership) = join_fleet(&config, &state, &board);
    let (stop, stopping) = watch::channel(false);
    let (imports, wanted_imports) = mpsc::channel(PENDING_IMPORTS);
    let (overrides, wanted_overrides) = mpsc::channel(PENDING_IMPORTS);
    let membership_clock = membership.as_ref().map(|m| m.clock.clone());
    let reconciler = Reconciler::new(workshop.clone(), membership, records, applied, absent);
    // A device that is in no fleet still has to be shown to the person at its prompt.
    let device: DeviceId = match &identity {
        Some(identity) => identity.device.clone(),
        None => "unenrolled".parse()?,
    };
    let admin = Admin {
        board: board.clone(),
        imports: imports.clone(),
        overrides,
        report: report(&workshop, identity.as_deref(), device.clone()),
        preview: {
            let workshop = workshop.clone();
            Box::new(move || speaker::preview(&workshop, &device))
        },
        shared: config.admin_socket.is_some(),
    };
    let departures = Arc::new(Departures::new(&config, audit.clone()));
    let link = match (&identity, &config.fleet, online) {
        (Some(identity), Some(settings), true) => {
            let clock = membership_clock.unwrap_or_else(|| {
                Arc::new(TrustedClock::new(identity.credentials.validity().begins))
            });
            let leaving = departures.clone();
            let leaving = move |topic: &str, payload: &[u8]| leaving.leaving(topic, payload);
            connection(identity, settings, clock, &board, Box::new(leaving))
        }
        _ => None,
    };
    let metrics = Arc::new(FleetMetrics {
        board,
        audit,
        credentials: identity.as_ref().map(|i| i.credentials.clone()),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(|| turns::give_way(turns::NICENESS))
        .build()
        .context("cannot make the runtime of the fleet side")?;
    let side = Side {
        workshop,
        reconciler,
        // Bound before the agent says that it is ready: whoever asks then finds it.
        admin: online
            .then(|| admin::open(&config))
            .flatten()
            .map(|listener| (listener, admin)),
        identity,
        link,
        imports: wanted_imports,
        overrides: wanted_overrides,
        engine_events: engine.subscribe(),
        stop: stopping,
        departures,
    };
    let thread = std::thread::Builder::new()
        .name("fleet".to_owned())
        .spawn(move || {
            turns::give_way(turns::NICENESS);
            runtime.block_on(side.run());
        })
        .context("cannot start the thread of the fleet side")?;
    Ok(FleetTasks {
        stop,
        thread,
        imports,
        metrics,
    })
}

impl FleetTasks {
    /// Its part of the metrics page.
    pub fn metrics(&self) -> Arc<FleetMetrics> {
        self.metrics.clone()
    }

    /// Applies a repository; the events end with `Done`.
    pub async fn import(&self, request: ImportRequest) -> anyhow::Result<()> {
        self.imports
            .send(request)
            .await
            .map_err(|_| anyhow::anyhow!("the fleet side has stopped"))
    }

    /// Publishes a graceful `offline`, flushes the outbox, closes the store.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join().is_ok());
        match tokio::time::timeout(STOP_TIMEOUT, joined).await {
            Ok(Ok(true)) => {}
            Ok(_) => error!("the fleet side ended in a panic"),
            Err(_) => error!("the fleet side did not stop in time and is left behind"),
        }
    }
}

/// What runs on the thread of the fleet side.
struct Side {
    workshop: Arc<Workshop>,
    reconciler: Reconciler,
    admin: Option<(std::os::unix::net::UnixListener, Admin)>,
    identity: Option<Arc<Identity>>,
    link: Option<Link>,
    imports: mpsc::Receiver<ImportRequest>,
    overrides: mpsc::Receiver<OverrideRequest>,
    engine_events: broadcast::Receiver<EngineEvent>,
    stop: watch::Receiver<bool>,
    departures: Arc<Departures>,
}

impl Side {
    async fn run(self) {
        let workshop = self.workshop;
        // Everything spawned here ends with this runtime; what must end in order is awaited below.
        if let Some((listener, admin)) = self.admin {
            tokio::spawn(admin::serve(listener, admin));
        }
        let mut wires = Wires {
            imports: self.imports,
            overrides: self.overrides,
            timestamps: watch::channel(None).1,
            sessions: watch::channel(0).1,
            remote: None,
            engine: self.engine_events,
            stop: self.stop.clone(),
        };
        let mut last = Vec::new();
        if let (Some(link), Some(identity), Some(settings)) =
            (self.link, self.identity, &workshop.config.fleet)
        {
            wires.timestamps = link.standing();
            wires.sessions = link.sessions();
            wires.remote = Some(Arc::new(BrokerSource::new(
                link.clone(),
                identity.fleet.clone(),
                Duration::from_millis(settings.quiet_period_ms),
                settings.fetch_window_bytes,
            )));
            let speaking = speaker::speak(workshop.clone(), identity.clone(), link.clone());
            tokio::spawn(speaking);
            tokio::spawn(watch_link(workshop.clone(), link.clone()));
            let stop = self.stop.clone();
            let reporting = telemetry::report(workshop.clone(), identity, link.clone(), stop);
            last.push(tokio::spawn(reporting));
            last.push(tokio::spawn(keep_connected(link, self.stop)));
        }
        self.reconciler.run(wires).await;
        for task in last {
            if let Err(e) = task.await {
                error!(problem = %e, "a task of the fleet side ended in a panic");
            }
        }
        self.departures.close();
    }
}

/// A panic in the MQTT client costs a connection, never more.
async fn keep_connected(link: Link, stop: watch::Receiver<bool>) {
    while let Err(e) = AbortOnDrop(tokio::spawn(link.clone().run(stop.clone()))).await {
        error!(problem = %e, "the task of the broker connection ended in a panic and begins anew");
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// The settings of a connection to the broker; `None`, and reported, when the identity does not serve.
fn connection(
    identity: &Arc<Identity>,
    settings: &config::Fleet,
    clock: Arc<TrustedClock>,
    board: &Board,
    leaving: Leaving,
) -> Option<Link> {
    let tls = match identity.tls(clock) {
        Ok(tls) => Arc::new(tls),
        Err(e) => {
            error!(problem = %chain(&e), "cannot connect to the broker; enrol the device again");
            board.error(chain(&e));
            return None;
        }
    };
    let host = settings
        .broker_host
        .as_ref()
        .unwrap_or(&identity.broker.host);
    let timestamp = TIMESTAMP.parse().ok()?;
    Some(Link::new(mqtt::Settings {
        host: host.clone(),
        port: settings.broker_port.unwrap_or(identity.broker.port),
        client_id: identity.device.to_string(),
        tls,
        keep_alive: Duration::from_secs(u64::from(settings.keep_alive_seconds)),
        max_packet_bytes: settings.max_packet_bytes,
        standing_topic: Topic::Metadata(timestamp).in_fleet(&identity.fleet),
        presence_topic: Topic::Online(identity.device.clone()).in_fleet(&identity.fleet),
        presence: speaker::presence(board),
        leaving,
    }))
}

/// Puts the state of the link on the board, and connections into the audit log.
async fn watch_link(workshop: Arc<Workshop>, link: Link) {
    let broker = link.broker();
    let mut state = link.state();
    let mut recorded: Option<Instant> = None;
    let mut before = false;
    let mut refused = Vec::new();
    loop {
        let now = state.borrow_and_update().clone();
        let connected = now == LinkState::Connected;
        let text = match now {
            LinkState::Connecting => format!("connecting to {broker}"),
            LinkState::Connected => format!("connected to {broker}"),
            LinkState::Lost(reason) => format!("not connected: {reason}"),
        };
        workshop.board.change(|facts| {
            facts.link = Some(text);
            facts.connected = connected;
        });
        if connected && !before {
            let figure = &workshop.board.figures.connections;
            figure.fetch_add(1, Ordering::Relaxed);
        }
        before = connected;
        // A broker that flaps must not fill the log.
        if connected && recorded.is_none_or(|at| at.elapsed() > CONNECTION_RECORDS) {
            recorded = Some(Instant::now());
            let fields = serde_json::json!({"broker": broker});
            workshop.note("connected", fields);
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return;
            },
            now = link.refused(&refused) => {
                refused = now;
                workshop.board.warn("broker", refused.clone());
            }
        }
    }
}

/// Identity and trust, as far as they are there. Trouble is reported, and what is installed serves on.
fn join_fleet(
    config: &Config,
    state: &StateDirectory,
    board: &Board,
) -> (Option<Arc<Identity>>, Option<Membership>) {
    let identity = match Identity::load(&state.identity()) {
        Ok(Some(identity)) => Arc::new(identity),
        Ok(None) => {
            info!("this device is not enrolled; it serves what is installed");
            return (None, None);
        }
        Err(e) => {
            error!(problem = %chain(&e), "the device's identity is unusable; enrol it again");
            board.error(chain(&e));
            return (None, None);
        }
    };
    let trust = match TrustStore::open(&state.trust()) {
        Ok(trust) => trust,
        Err(e) => {
            error!(problem = %chain(&e), "nothing new is accepted");
            board.error(chain(&e));
            return (Some(identity), None);
        }
    };
    let policy = Policy {
        stale_after: Duration::from_secs(u64::from(config.trust.stale_after_days) * 24 * 3600),
    };
    let clock = Arc::new(TrustedClock::new(
        identity
            .credentials
            .validity()
            .begins
            .max(trust.trusted_time()),
    ));
    board.trusts(trust.trusted_time());
    if let Ok(Some(repository)) = trust.current(jiff::Timestamp::now(), policy) {
        board.change(|facts| {
            facts.timestamp_version = repository.timestamp_version();
            facts.stale = repository.stale();
        });
    }
    let membership = Membership {
        device: identity.device.clone(),
        credentials: identity.credentials.clone(),
        trust: Arc::new(Mutex::new(trust)),
        clock,
        policy,
    };
    (Some(identity), Some(membership))
}

fn worker(served: ServedModel) -> admin::WorkerReport {
    admin::WorkerReport {
        model: served.model,
        version: served.manifest.version.clone(),
        memory_bytes: served.worker_memory_bytes,
        interpreters: served.instances,
        unloaded: served.unloaded,
    }
}

/// How `edgeward status` is answered.
fn report(
    workshop: &Arc<Workshop>,
    identity: Option<&Identity>,
    device: DeviceId,
) -> Box<dyn Fn() -> admin::Report + Send + Sync> {
    let workshop = workshop.clone();
    let credentials = identity.map(|identity| identity.credentials.clone());
    Box::new(move || {
        let facts = workshop.board.facts();
        workshop.engine.measure();
        admin::Report {
            enrolled: credentials.is_some(),
            certificate_ends: credentials.as_ref().map(|c| c.validity().ends),
            link: facts.link,
            connected: facts.connected,
            differences: workshop
                .engine
                .shadows()
                .into_iter()
                .flat_map(|(.., differences)| differences)
                .collect(),
            status: workshop.board.status(
                device.clone(),
                0,
                &workshop.engine,
                &workshop.audit,
                workshop.state.free_bytes(),
            ),
            workers: workshop.engine.versions().into_iter().map(worker).collect(),
        }
    })
}
