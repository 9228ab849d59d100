//! A device with an engine and packages made from the samples.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use edgeward_agent::config::{Config, DelegateProfile};
use edgeward_agent::serving::{Answer, Engine, ServeError, Served, StickyKey};
use edgeward_agent::watch::page::{Form, Page};
use edgeward_agent::worker::Spawner;
use edgeward_models::manifest::{DelegateChoice, GoldenVectors};
use edgeward_models::package::InstalledVersion;
use edgeward_models::{Digest, Manifest};

/// Far more than anything here takes; only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Device {
    pub engine: Engine,
    directory: tempfile::TempDir,
}

impl Device {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.tflite.library = tflite();
        config.limits.drain_timeout_ms = PATIENCE.as_millis() as u64;
        change(&mut config);
        let spawner = Spawner::new(env!("CARGO_BIN_EXE_edgeward").into()).expect("spawner");
        Self {
            engine: Engine::new(Arc::new(config), spawner),
            directory: tempfile::tempdir().expect("tempdir"),
        }
    }

    /// Installs a sample as it is.
    pub fn sample(&self, sample: &str) -> InstalledVersion {
        self.package(sample, |_, _| {})
    }

    /// Installs a changed sample. The golden file is written as changed, or left out with the manifest's entry.
    pub fn package(
        &self,
        sample: &str,
        change: impl FnOnce(&mut Manifest, &mut GoldenVectors),
    ) -> InstalledVersion {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/samples");
        self.package_of(sample, &samples.join(sample).join("model.tflite"), change)
    }

    /// The same with another model file than the sample's.
    pub fn package_of(
        &self,
        sample: &str,
        model: &Path,
        change: impl FnOnce(&mut Manifest, &mut GoldenVectors),
    ) -> InstalledVersion {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../models/samples")
            .join(sample);
        let read = |file: &str| std::fs::read(from.join(file)).expect("sample file");
        let mut manifest = Manifest::parse(&read("manifest.json")).expect("manifest");
        let mut golden = serde_json::from_slice(&read("golden.json")).expect("golden");
        change(&mut manifest, &mut golden);

        let to = tempfile::tempdir_in(self.directory.path())
            .expect("tempdir")
            .keep();
        let model = std::fs::read(model).expect("model");
        let entry = manifest.files.get_mut(&manifest.model_file);
        let entry = entry.expect("entry");
        entry.length = model.len() as u64;
        entry.sha256 = Digest::of(&model);
        std::fs::write(to.join("model.tflite"), model).expect("write");
        if let Some(name) = &manifest.golden_file {
            let bytes = serde_json::to_vec(&golden).expect("json");
            let entry = manifest.files.get_mut(name).expect("entry");
            entry.length = bytes.len() as u64;
            entry.sha256 = Digest::of(&bytes);
            std::fs::write(to.join(name.as_str()), bytes).expect("write");
        }
        let bytes = manifest.to_json();
        std::fs::write(to.join("manifest.json"), &bytes).expect("write");
        InstalledVersion::open(&to, &Digest::of(&bytes)).expect("a whole package")
    }

    /// Prepares and activates.
    pub async fn serve(&self, version: &InstalledVersion) {
        let prepared = self.engine.prepare(version).await.expect("it loads");
        self.engine.activate(prepared);
    }

    /// Prepares and serves beside the active version.
    pub async fn serve_beside(&self, version: &InstalledVersion) {
        let prepared = self.engine.prepare_beside(version).await;
        self.engine.serve_beside(prepared.expect("it loads"));
    }

    /// A batch of digits that takes a long time (see [`with_room`]), asked for beside the test.
    pub fn slow_request(&self, value: f32) -> tokio::task::JoinHandle<Result<(), ServeError>> {
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let answer = infer(&engine, "digits", &slow_batch(value), PATIENCE).await;
            answer.map(|_| ())
        })
    }

    pub fn metrics(&self) -> String {
        let mut page = Page::new(Form::Prometheus);
        self.engine.write_metrics(&mut page);
        page.finish()
    }

    /// Whether a request of digits holds a slot.
    pub fn busy(&self) -> bool {
        let text = self.metrics();
        text.contains("edgeward_worker_requests{model=\"digits\",version=\"1.0.0\"} 1")
    }

    pub fn pid(&self) -> u32 {
        self.engine.models()[0].worker_pid.expect("a worker")
    }
}

fn tflite() -> PathBuf {
    if let Some(path) = std::env::var_os("EDGEWARD_TFLITE") {
        return path.into();
    }
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../cross/lib/x86_64/libtensorflowlite_c.so");
    assert!(
        path.exists(),
        "there is no TFLite library: run cross/fetch-tflite"
    );
    path
}

/// A profile named `npu` of the plugin that takes every node and computes nothing.
pub fn idle_npu(config: &mut Config, options: &[(&str, &str)]) {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = LIBRARY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("tempdir");
        let library = directory.path().join("libnpu.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/plugin.c");
        let compiled = std::process::Command::new("cc")
            .args(["-D_GNU_SOURCE", "-shared", "-fPIC", "-pthread", "-o"])
            .args([&library, &source])
            .status()
            .expect("a C compiler named cc");
        assert!(compiled.success(), "plugin.c does not compile");
        (directory, library)
    });
    let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    let profile = DelegateProfile {
        library: library.clone(),
        read: Vec::new(),
        devices: Vec::new(),
        options: options.iter().map(own).collect(),
        opens_files_late: false,
        cache: None,
    };
    config
        .delegates
        .insert("npu".parse().expect("name"), profile);
}

pub fn choice(delegate: &str) -> DelegateChoice {
    DelegateChoice::new(delegate.parse().expect("name"))
}

pub fn without_golden(manifest: &mut Manifest) {
    if let Some(golden) = manifest.golden_file.take() {
        manifest.files.remove(&golden);
    }
}

/// The first golden vector's input and answer of a sample.
pub fn golden(sample: &str) -> (Vec<f32>, Vec<f32>) {
    let path = format!(
        "{}/../models/samples/{sample}/golden.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let golden: GoldenVectors =
        serde_json::from_slice(&std::fs::read(path).expect("golden")).expect("golden");
    let vector = &golden.vectors[0];
    let first = |tensors: &std::collections::BTreeMap<String, _>| -> Vec<f32> {
        let tensor: &edgeward_models::manifest::GoldenTensor =
            tensors.values().next().expect("tensor");
        tensor.data.iter().map(|&v| v as f32).collect()
    };
    (first(&vector.inputs), first(&vector.outputs))
}

/// A batch of inputs through the ordinary path.
pub async fn infer(
    engine: &Engine,
    model: &str,
    batch: &[u8],
    deadline: Duration,
) -> Result<Answer, ServeError> {
    infer_version(engine, model, None, batch, deadline).await
}

/// The same for a named version.
async fn infer_version(
    engine: &Engine,
    model: &str,
    version: Option<&str>,
    batch: &[u8],
    deadline: Duration,
) -> Result<Answer, ServeError> {
    put(&engine.resolve(model, version)?, batch, deadline).await
}

/// The same for the version that a key means.
pub async fn ask_by_key(
    engine: &Engine,
    model: &str,
    key: StickyKey,
    input: &[f32],
) -> Result<Vec<f32>, ServeError> {
    let served = engine.choose(model, key)?;
    let answer = put(&served, &bytes(input), PATIENCE).await?;
    Ok(floats(answer.output(0)))
}

async fn put(served: &Served, batch: &[u8], deadline: Duration) -> Result<Answer, ServeError> {
    let spec = &served.manifest().signatures[0].inputs[0];
    let mut shape = spec.shape.clone();
    let one: i64 = shape[1..].iter().product();
    shape[0] = batch.len() as i64 / (one * 4);
    let deadline = Instant::now() + deadline;
    let mut request = served.begin(0, batch.len(), deadline).await?;
    request.input(&shape, batch.len())?.copy_from_slice(batch);
    request.infer().await
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Images of one value, for [`with_room`].
pub fn slow_batch(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(64 * SLOW_IMAGES)
}

/// One image, and the answer as numbers.
pub async fn ask(engine: &Engine, model: &str, input: &[f32]) -> Result<Vec<f32>, ServeError> {
    ask_version(engine, model, None, input).await
}

/// The same of a named version.
pub async fn ask_version(
    engine: &Engine,
    model: &str,
    version: Option<&str>,
    input: &[f32],
) -> Result<Vec<f32>, ServeError> {
    let answer = infer_version(engine, model, version, &bytes(input), PATIENCE).await?;
    Ok(floats(answer.output(0)))
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    let (chunks, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    chunks
        .iter()
        .map(|&chunk| f32::from_le_bytes(chunk))
        .collect()
}

pub fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4)
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended.
    stat.rsplit(')').next().is_some_and(|rest| {
        let state = rest.trim_start().chars().next();
        state.is_some_and(|s| s != 'Z')
    })
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

/// Digits with room for a batch that takes a long time: a request that runs when a test wants one.
pub const SLOW_IMAGES: usize = 100_000;

pub fn with_room(manifest: &mut Manifest) {
    manifest.delegates = vec![choice("builtin")];
    manifest.max_request_bytes = (SLOW_IMAGES * 64 * 4) as u64;
    // A machine that does much else at the same time must not end the worker.
    manifest.invoke_limit_ms = PATIENCE.as_millis() as u64;
}
