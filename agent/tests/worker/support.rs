//! What the worker tests share: sample packages, a spawner of the real binary, golden vectors as bytes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use edgeward_agent::config::{DelegateProfile, Sandbox};
use edgeward_agent::worker::{Answer, Spawner, Worker, WorkerError, WorkerSpec};
use edgeward_models::Manifest;
use edgeward_models::manifest::{
    Datatype, DelegateChoice, GoldenTensor, GoldenVectors, TensorSpec,
};

pub const MINUTE: Duration = Duration::from_secs(60);

/// The TFLite library that all tests use.
pub fn library() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cross/lib/x86_64");
    let path = std::env::var_os("EDGEWARD_TFLITE")
        .map_or_else(|| root.join("libtensorflowlite_c.so"), PathBuf::from);
    let found = path.is_file();
    assert!(
        found,
        "no TFLite library at {path:?}: run cross/fetch-tflite"
    );
    path
}

pub fn spawner() -> Spawner {
    Spawner::new(env!("CARGO_BIN_EXE_edgeward").into()).expect("spawner")
}

/// One of `models/samples`.
pub struct Sample {
    pub manifest: Manifest,
    pub directory: PathBuf,
    pub golden: GoldenVectors,
}

pub fn sample(name: &str) -> Sample {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/samples");
    let directory = samples.join(name);
    let read = |file: &str| std::fs::read(directory.join(file)).expect(file);
    Sample {
        manifest: Manifest::parse(&read("manifest.json")).expect("manifest"),
        golden: serde_json::from_slice(&read("golden.json")).expect("golden vectors"),
        directory,
    }
}

impl Sample {
    pub fn spec(&self, delegate: &str) -> WorkerSpec {
        WorkerSpec {
            manifest: Arc::new(self.manifest.clone()),
            model_path: self.directory.join("model.tflite"),
            delegate: DelegateChoice::new(delegate.parse().expect("name")),
            profile: None,
            cache: None,
            library: library(),
            instances: 1,
            threads: 1,
            batching: None,
            slots: 4,
            request_bytes: self.manifest.request_bytes() as usize,
            memory_limit_bytes: 1 << 30,
            load_timeout: MINUTE,
            proving_invoke_limit: None,
            sandbox: Sandbox::Enforced,
        }
    }

    /// The inputs of a golden vector, repeated `times` along the first dimension: shapes and bytes.
    pub fn inputs(&self, vector: usize, times: usize) -> Vec<(Vec<i64>, Vec<u8>)> {
        let signature = self.manifest.default_signature();
        let given = &self.golden.vectors[vector].inputs;
        let input = |spec: &TensorSpec| {
            let tensor = &given[&spec.name];
            let mut shape: Vec<i64> = tensor.shape.iter().map(|&d| d as i64).collect();
            if times > 1 {
                shape[0] *= times as i64;
            }
            (shape, bytes(spec, tensor).repeat(times))
        };
        signature.inputs.iter().map(input).collect()
    }

    /// Asserts that an answer is `times` times the golden one.
    pub fn assert_golden(&self, answer: &Answer, vector: usize, times: usize) {
        for (index, spec) in self.manifest.default_signature().outputs.iter().enumerate() {
            let golden = &self.golden.vectors[vector].outputs[&spec.name];
            let values = values(spec, answer.output(index));
            assert_eq!(values.len(), golden.data.len() * times, "{}", spec.name);
            assert_eq!(
                answer.shape(index)[0],
                golden.shape[0] as i64 * times as i64
            );
            let tolerance = if spec.datatype == Datatype::Fp32 {
                1e-5
            } else {
                1.0
            };
            for (at, value) in values.iter().enumerate() {
                let wanted = golden.data[at % golden.data.len()];
                assert!(
                    (value - wanted).abs() <= tolerance,
                    "{} {}: {value} instead of {wanted}",
                    self.manifest.model,
                    spec.name
                );
            }
        }
    }
}

pub fn bytes(spec: &TensorSpec, tensor: &GoldenTensor) -> Vec<u8> {
    let each = |value: &f64| match spec.datatype {
        Datatype::Fp32 => (*value as f32).to_le_bytes().to_vec(),
        Datatype::Int8 => (*value as i8).to_le_bytes().to_vec(),
        other => panic!("no sample has {other:?}"),
    };
    tensor.data.iter().flat_map(each).collect()
}

fn values(spec: &TensorSpec, bytes: &[u8]) -> Vec<f64> {
    match spec.datatype {
        Datatype::Fp32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")).into())
            .collect(),
        Datatype::Int8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
        other => panic!("no sample has {other:?}"),
    }
}

/// Leases a slot, fills it and invokes.
pub async fn infer(
    worker: &Worker,
    inputs: &[(Vec<i64>, Vec<u8>)],
    deadline: Duration,
) -> Result<Answer, WorkerError> {
    let total = inputs.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut slot = worker.lease(total, deadline).await?;
    for (shape, bytes) in inputs {
        slot.input(shape, bytes.len())?.copy_from_slice(bytes);
    }
    slot.invoke(0, Instant::now() + deadline).await
}

/// A delegate library of our own in C, compiled once, told by its options what to do.
pub fn plugin(options: &[(&str, &str)]) -> DelegateProfile {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = LIBRARY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("directory");
        let library = directory.path().join("libplugin.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/plugin.c");
        let compiled = Command::new("cc")
            .args([
                "-std=gnu11",
                "-O1",
                "-shared",
                "-fPIC",
                "-pthread",
                "-Wall",
                "-Werror",
                "-o",
            ])
            .args([&library, &source])
            .status()
            .expect("a C compiler named cc");
        assert!(compiled.success(), "plugin.c does not compile");
        (directory, library)
    });
    let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    DelegateProfile {
        library: library.clone(),
        read: Vec::new(),
        devices: Vec::new(),
        options: options.iter().map(own).collect(),
        opens_files_late: false,
        cache: None,
    }
}

/// A worker of the digits sample on our plugin.
pub async fn start_plugin(options: &[(&str, &str)]) -> Result<Worker, WorkerError> {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    spec.profile = Some(plugin(options));
    Worker::start(&spawner(), spec).await
}

/// The text of a failed start.
pub async fn refusal(spec: WorkerSpec) -> String {
    match Worker::start(&spawner(), spec).await {
        Ok(_) => panic!("it started"),
        Err(WorkerError::Refused(reason)) => reason,
        Err(other) => panic!("not refused but: {other}"),
    }
}

/// Polls until `done`, at most half a minute.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + MINUTE / 2;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
