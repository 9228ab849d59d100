//! `edgeward serve`: the order in which the agent starts and stops.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use edgeward_models::durable;
use sd_notify::NotifyState;
use tracing::{info, warn};

use crate::api::{Doors, OpenDoors};
use crate::config::Config;
use crate::fleet::FleetTasks;
use crate::serving::Engine;
use crate::shutdown::Signals;
use crate::watch::audit::Audit;
use crate::watch::inference::Recorder;
use crate::watch::metrics::Metrics;
use crate::watch::resources::{self, Resources};
use crate::worker::{Spawner, turns};
use crate::{VERSION, fleet, logging, watchdog};

/// The running program, whatever a package update puts at its path meanwhile: agent and workers must be of
/// one build.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Threads for what may block (files, parsing); requests never wait for one.
const BLOCKING_THREADS: usize = 4;

/// How often systemd is asked to wait while versions are loaded.
const ASK_EVERY: Duration = Duration::from_secs(20);

/// How long such a thread may still take when everything else has ended.
const LEAVE_BEHIND: Duration = Duration::from_secs(1);

/// Arguments of `edgeward serve`.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        logging::init(&config.log)?;
        // rustls has no provider of its own choice; another part may have installed the same one already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // One thread for all requests: a second would cost a wake-up per request, more than it brings.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .on_thread_start(|| turns::give_way(0))
            .build()
            .context("cannot start the runtime")?;
        let result = runtime.block_on(serve(Arc::new(config)));
        runtime.shutdown_timeout(LEAVE_BEHIND);
        result.map(|()| ExitCode::SUCCESS)
    }
}

async fn serve(config: Arc<Config>) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    info!(version = VERSION, "starting");
    durable::create_directory(&config.state_directory)?;
    let spawner = Spawner::new(OWN_PROGRAM.into())?;
    let engine = Engine::new(config.clone(), spawner);
    let audit = Audit::open(&config.state_directory).context("the audit log cannot be used")?;
    // Bound early: a wrong address or key shows before anything is loaded, and callers queue meanwhile.
    let doors = Doors::bind(&config).await?;
    let recorder = Recorder::start(&config, audit.clone())?;
    let started = tokio::select! {
        started = fleet::start(config.clone(), engine.clone(), audit) => started?,
        never = ask_for_patience() => match never {},
        signal = signals.stop() => {
            info!(signal, "stopped while starting");
            engine.shutdown().await;
            return Ok(());
        }
    };
    let metrics = metrics(&config, &engine, &recorder, &started);
    let doors = doors.open(config.clone(), engine.clone(), recorder.clone(), metrics);
    tell_systemd(NotifyState::Ready);
    info!(models = engine.models().len(), "serving");

    tokio::select! {
        signal = signals.stop_or(|| read_keys_again(&doors, &config)) => info!(signal, "stopping"),
        () = watchdog::feed(&engine, &doors, &config.unix.path) => {}
    }
    tell_systemd(NotifyState::Stopping);
    let stopping = async {
        doors.close().await;
        started.stop().await;
        engine.shutdown().await;
        // What the last requests were is written by a thread that waits for the disk.
        let _ = tokio::task::spawn_blocking(move || recorder.close()).await;
    };
    tokio::select! {
        () = stopping => info!("stopped"),
        signal = signals.stop() => warn!(signal, "told twice: stopped without waiting for requests"),
    }
    Ok(())
}

/// Who writes the metrics page.
fn metrics(
    config: &Arc<Config>,
    engine: &Engine,
    recorder: &Recorder,
    fleet: &FleetTasks,
) -> Metrics {
    let mut metrics = Metrics::default();
    let engine = engine.clone();
    metrics.add(move |page| engine.write_metrics(page));
    let recorder = recorder.clone();
    metrics.add(move |page| recorder.write_metrics(page));
    let fleet = fleet.metrics();
    metrics.add(move |page| fleet.write(page));
    let resources = Mutex::new(Resources::new());
    let config = config.clone();
    metrics.add(move |page| {
        let mut resources = resources.lock().unwrap_or_else(|e| e.into_inner());
        let sample = resources.sample(&config.state_directory);
        resources::write_metrics(&sample, page);
    });
    metrics
}

/// A driver that compiles for the first time may take longer than the service manager waits. Each load has its own
/// limit, so asking has an end. Never resolves.
async fn ask_for_patience() -> std::convert::Infallible {
    let mut tick = tokio::time::interval(ASK_EVERY);
    loop {
        tick.tick().await;
        let patience = 3 * ASK_EVERY;
        tell_systemd(NotifyState::ExtendTimeoutUsec(patience.as_micros() as u32));
    }
}

/// What SIGHUP is for: a certificate is replaced while requests are answered.
fn read_keys_again(doors: &OpenDoors, config: &Config) {
    match doors.read_keys_again(config) {
        Ok(true) => info!(
            "SIGHUP: the TLS door's certificates and key were read again; a changed configuration needs a restart"
        ),
        Ok(false) => warn!(
            "SIGHUP: there is no TLS door whose keys could be read again; a changed configuration needs a restart"
        ),
        Err(error) => warn!("SIGHUP: {error:#}; those in use stay"),
    }
}

/// Outside of systemd there is nobody to tell, which is no error.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd cannot be told");
    }
}
