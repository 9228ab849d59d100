//! A device in one process: the engine with sample models behind open doors. Workers are real processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeward_agent::api::{Doors, OpenDoors};
use edgeward_agent::config::Config;
use edgeward_agent::serving::Engine;
use edgeward_agent::watch::audit::Audit;
use edgeward_agent::watch::inference::Recorder;
use edgeward_agent::watch::metrics::Metrics;
use edgeward_agent::watch::page::{Form, Page};
use edgeward_agent::worker::Spawner;
use edgeward_models::Digest;
use edgeward_models::package::InstalledVersion;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::client::Client;

pub const INFER: &str = "/v2/models/digits/infer";

pub struct Device {
    pub directory: TempDir,
    pub config: Arc<Config>,
    pub engine: Engine,
    pub tls: Option<std::net::SocketAddr>,
    pub recorder: Recorder,
    doors: Option<OpenDoors>,
}

/// The TFLite library of the tests.
pub fn library() -> PathBuf {
    let path = std::env::var_os("EDGEWARD_TFLITE").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../cross/lib")
                .join(std::env::consts::ARCH)
                .join("libtensorflowlite_c.so")
        },
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "no TFLite library at {}: run cross/fetch-tflite or set EDGEWARD_TFLITE",
        path.display()
    );
    path
}

pub fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/samples")
        .join(name)
}

impl Device {
    /// Open doors, no model.
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let mut config = Config {
            state_directory: directory.path().join("state"),
            ..Config::default()
        };
        config.unix.path = directory.path().join("edgeward.sock");
        config.tflite.library = library();
        change(&mut config);
        let config = Arc::new(config);
        let spawner = Spawner::new(env!("CARGO_BIN_EXE_edgeward").into()).expect("spawner");
        let engine = Engine::new(Arc::clone(&config), spawner);
        let doors = Doors::bind(&config).await.expect("doors");
        let tls = doors.tls_address();
        let audit = Audit::open(&config.state_directory).expect("audit log");
        let recorder = Recorder::start(&config, audit).expect("recorder");
        let mut metrics = Metrics::default();
        let shown = engine.clone();
        metrics.add(move |page| shown.write_metrics(page));
        let doors = doors.open(
            Arc::clone(&config),
            engine.clone(),
            recorder.clone(),
            metrics,
        );
        Self {
            directory,
            config,
            engine,
            tls,
            recorder,
            doors: Some(doors),
        }
    }

    /// The engine's metrics.
    pub fn metrics(&self) -> String {
        let mut page = Page::new(Form::Prometheus);
        self.engine.write_metrics(&mut page);
        page.finish()
    }

    /// Open doors and a served sample.
    pub async fn serving(name: &str) -> Self {
        Self::serving_changed(name, |_| {}, |_| {}).await
    }

    pub async fn serving_changed(
        name: &str,
        change: impl FnOnce(&mut Config),
        manifest: impl FnOnce(&mut Value),
    ) -> Self {
        let device = Self::start(change).await;
        device.serve(name, manifest).await;
        device
    }

    /// Serves a sample, with a changed manifest.
    pub async fn serve(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let prepared = self.engine.prepare(&self.install(name, change)).await;
        self.engine.activate(prepared.expect("prepared"));
    }

    /// Serves a sample beside the active version of its model, whose routing must want it.
    pub async fn serve_beside(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let version = self.install(name, change);
        let prepared = self.engine.prepare_beside(&version).await;
        self.engine.serve_beside(prepared.expect("prepared"));
    }

    fn install(&self, name: &str, change: impl FnOnce(&mut Value)) -> InstalledVersion {
        let directory = tempfile::tempdir_in(self.directory.path());
        let directory = directory.expect("directory").keep();
        for entry in std::fs::read_dir(sample(name)).expect("sample") {
            let entry = entry.expect("entry");
            std::fs::copy(entry.path(), directory.join(entry.file_name())).expect("copy");
        }
        let path = directory.join("manifest.json");
        let mut manifest: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("manifest")).expect("JSON");
        change(&mut manifest);
        let bytes = serde_json::to_vec(&manifest).expect("JSON");
        std::fs::write(&path, &bytes).expect("manifest");
        InstalledVersion::open(&directory, &Digest::of(&bytes)).expect("version")
    }

    pub async fn client(&self) -> Client<UnixStream> {
        Client::unix(&self.config.unix.path).await
    }

    pub async fn close(mut self) {
        if let Some(doors) = self.doors.take() {
            doors.close().await;
        }
        self.engine.shutdown().await;
    }

    /// As SIGHUP does.
    pub fn read_keys_again(&self) -> anyhow::Result<bool> {
        let doors = self.doors.as_ref().expect("open doors");
        doors.read_keys_again(&self.config)
    }

    /// Ends the doors only, as the beginning of a shutdown.
    pub fn close_doors(&mut self) -> impl Future<Output = ()> + 'static {
        self.doors.take().expect("open doors").close()
    }

    /// The process of the only model's worker.
    pub fn worker(&self) -> rustix::process::Pid {
        let pid = self.engine.models()[0].worker_pid.expect("a worker");
        rustix::process::Pid::from_raw(pid as i32).expect("a process")
    }
}

/// The sample's first golden vector: values of its input and its output.
pub fn golden(name: &str) -> (Vec<f64>, Vec<f64>) {
    let bytes = std::fs::read(sample(name).join("golden.json")).expect("golden");
    let golden: Value = serde_json::from_slice(&bytes).expect("JSON");
    let values = |tensors: &Value| -> Vec<f64> {
        let tensor = tensors
            .as_object()
            .and_then(|t| t.values().next())
            .expect("tensor");
        let data = tensor["data"].as_array().expect("data");
        data.iter().map(|v| v.as_f64().expect("number")).collect()
    };
    let vector = &golden["vectors"][0];
    (values(&vector["inputs"]), values(&vector["outputs"]))
}

pub fn floats(values: &[f64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|v| (*v as f32).to_le_bytes())
        .collect()
}

pub fn read_floats(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(4)
        .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four"))))
        .collect()
}

pub fn assert_close(answer: &[f64], expected: &[f64]) {
    assert_eq!(answer.len(), expected.len());
    for (a, b) in answer.iter().zip(expected) {
        assert!(
            (a - b).abs() <= 1e-4,
            "{answer:?} differs from {expected:?}"
        );
    }
}
