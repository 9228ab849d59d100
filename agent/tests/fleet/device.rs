//! One device with its agent's fleet side and engine, in this process; workers are real processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeward_agent::config::{self, Config};
use edgeward_agent::fleet::admin::{Client, Report, Routed};
use edgeward_agent::fleet::reconcile::{ImportEvent, ImportOutcome, ImportRequest};
use edgeward_agent::fleet::{self, FleetTasks, identity};
use edgeward_agent::serving::Engine;
use edgeward_agent::watch::audit::Audit;
use edgeward_agent::worker::Spawner;
use edgeward_models::fleet::routing::Routing;
use edgeward_models::fleet::status::ModelStatus;
use edgeward_models::repository::DirectorySource;
use edgeward_models::verify::TrustStore;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::site::{DEVICE, Site};
use crate::wait;

pub struct Device {
    directory: TempDir,
    config: Config,
    running: Option<(FleetTasks, Engine)>,
}

impl Device {
    /// Enrolled at `site`, not running, with nothing on its disk. Without a port it has no broker.
    pub fn new(site: &Site, port: Option<u16>) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = directory.path().join("state");
        let own = state.join("identity");
        std::fs::create_dir_all(&own).expect("mkdir");
        let request = identity::request(&own, "host").expect("request");
        let root = site.repository.root().expect("root");
        let bundle = site
            .authority
            .enrol(&request, DEVICE, port.unwrap_or(8883), &root);
        let bytes = serde_json::to_vec(&bundle).expect("bundle");
        identity::check(&own, &bytes).expect("accepted");
        TrustStore::create(&state.join("trust"), &root).expect("trust");
        identity::store(&own, &bundle).expect("store");
        let mut config = Config {
            state_directory: state,
            ..Config::default()
        };
        config.tflite.library = tflite_library();
        config.unix.path = directory.path().join("sock");
        config.fleet = port.map(|_| config::Fleet {
            reconcile_seconds: 2,
            quiet_period_ms: 200,
            ..config::Fleet::default()
        });
        Self {
            directory,
            config,
            running: None,
        }
    }

    pub fn config(&mut self) -> &mut Config {
        &mut self.config
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub async fn start(&mut self) {
        let config = Arc::new(self.config.clone());
        let spawner = Spawner::new(env!("CARGO_BIN_EXE_edgeward").into()).expect("spawner");
        let engine = Engine::new(config.clone(), spawner);
        let audit = Audit::open(&config.state_directory).expect("audit");
        let tasks = fleet::start(config, engine.clone(), audit)
            .await
            .expect("start");
        self.running = Some((tasks, engine));
    }

    pub async fn stop(&mut self) {
        let (tasks, engine) = self.running.take().expect("running");
        tasks.stop().await;
        engine.shutdown().await;
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub async fn import(&self, directory: &Path) -> (ImportOutcome, String) {
        let (tasks, _) = self.running.as_ref().expect("running");
        let source = Arc::new(DirectorySource::open(directory).expect("directory"));
        let (progress, mut events) = mpsc::channel(16);
        let request = ImportRequest { source, progress };
        tasks.import(request).await.expect("import");
        loop {
            let event = tokio::time::timeout(wait::PATIENCE, events.recv()).await;
            match event.expect("in time").expect("an end") {
                ImportEvent::Progress(_) => {}
                ImportEvent::Done { outcome, lines } => return (outcome, lines.join("\n")),
            }
        }
    }

    /// Through the admin socket, as `edgeward status` asks.
    pub async fn report(&self) -> Report {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || {
            let client = Client::connect(&config).expect("connect").expect("running");
            client.status().expect("status")
        })
        .await
        .expect("join")
    }

    /// Through the admin socket, as `edgeward route` asks.
    pub async fn route(&self, model: &str, routing: Option<Routing>) -> Routed {
        let (config, model) = (self.config.clone(), model.parse().expect("name"));
        tokio::task::spawn_blocking(move || {
            let client = Client::connect(&config).expect("connect").expect("running");
            client.route(model, routing).expect("an answer")
        })
        .await
        .expect("join")
    }

    pub async fn model(&self, model: &str) -> Option<ModelStatus> {
        let report = self.report().await;
        let mut models = report.status.models.into_iter();
        models.find(|m| m.model.as_str() == model)
    }

    /// The version that the engine answers with.
    pub fn engine(&self) -> &Engine {
        let (_, engine) = self.running.as_ref().expect("running");
        engine
    }

    pub fn serves(&self, model: &str) -> Option<String> {
        let served = self.engine().models();
        let served = served.into_iter().find(|m| m.model.as_str() == model)?;
        served.ready.then(|| served.active.version.to_string())
    }

    pub async fn wait_serves(&self, model: &str, version: &str) {
        let what = format!("{model} {version} to serve");
        wait::until(&what, || self.serves(model).as_deref() == Some(version)).await;
    }

    /// How often an event stands in the audit log.
    pub fn audited(&self, event: &str) -> usize {
        let text = std::fs::read_to_string(self.state().join("audit.log")).expect("audit log");
        text.matches(&format!("\"event\":\"{event}\"")).count()
    }
}

fn tflite_library() -> PathBuf {
    let library = std::env::var_os("EDGEWARD_TFLITE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../cross/lib/x86_64/libtensorflowlite_c.so"),
        PathBuf::from,
    );
    assert!(
        library.is_file(),
        "no TFLite library at {}: run cross/fetch-tflite",
        library.display()
    );
    library
}
