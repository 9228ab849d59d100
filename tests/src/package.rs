//! Model versions made ready to push: copies of the samples, edited or made larger.

use std::path::{Path, PathBuf};

use edgeward_models::manifest::{FileEntry, GoldenTensor, GoldenVectors, TensorSpec};
use edgeward_models::name::FileName;
use edgeward_models::package::TfliteOptions;
use edgeward_models::{Digest, Manifest};
use serde_json::{Value, json};

use crate::binaries;

/// A package directory of a scenario's own.
pub struct Package {
    directory: PathBuf,
    manifest: Manifest,
}

impl Package {
    /// A copy of a sample in a new directory below `parent`.
    pub fn copy_of(sample: &str, parent: &Path) -> Self {
        Self::copy_from(&binaries::sample(sample), parent)
    }

    /// A copy of this package, to be edited apart.
    pub fn copy(&self, parent: &Path) -> Self {
        Self::copy_from(&self.directory, parent)
    }

    fn copy_from(from: &Path, parent: &Path) -> Self {
        let directory = free_directory(parent);
        std::fs::create_dir_all(&directory).expect("make a directory");
        for entry in std::fs::read_dir(from).expect("read a sample") {
            let entry = entry.expect("read a sample");
            std::fs::copy(entry.path(), directory.join(entry.file_name())).expect("copy a sample");
        }
        let manifest = read_manifest(&directory);
        Self {
            directory,
            manifest,
        }
    }

    /// A package made from a bare `.tflite` file, as `fleetctl push` would.
    pub fn of_tflite(file: &Path, model: &str, parent: &Path) -> Self {
        let options = TfliteOptions {
            model: Some(model.parse().expect("a model name")),
            version: Some("1.0.0".parse().expect("a version")),
            ..TfliteOptions::default()
        };
        let made = edgeward_models::package::Package::from_tflite(file, options);
        let directory = free_directory(parent);
        made.and_then(|package| package.write(&directory))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Self {
            manifest: read_manifest(&directory),
            directory,
        }
    }

    /// Replaces or adds a file.
    #[must_use]
    pub fn with_file(mut self, name: &FileName, bytes: &[u8]) -> Self {
        std::fs::write(self.directory.join(name.as_str()), bytes).expect("write a file");
        let entry = FileEntry {
            length: bytes.len() as u64,
            sha256: Digest::of(bytes),
        };
        self.manifest.files.insert(name.clone(), entry);
        self.write();
        self
    }

    #[must_use]
    pub fn with_model(self, bytes: &[u8]) -> Self {
        let name = self.manifest.model_file.clone();
        self.with_file(&name, bytes)
    }

    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut Manifest)) -> Self {
        change(&mut self.manifest);
        self.write();
        self
    }

    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.edit(|m| m.version = version.parse().expect("a version"))
    }

    /// Makes the model file larger by bytes that no compression shrinks. They lie behind the flatbuffer,
    /// where TFLite does not look; `seed` decides them, so that two versions can share or not share them.
    #[must_use]
    pub fn padded(mut self, bytes: usize, seed: u64) -> Self {
        let path = self.model_path();
        let mut model = std::fs::read(&path).expect("read a model");
        // Flatbuffers want their size to be a multiple of their largest alignment.
        model.resize(model.len().next_multiple_of(16), 0);
        model.extend(noise(seed).take(bytes.next_multiple_of(16)));
        std::fs::write(&path, &model).expect("write a model");
        let entry = self.manifest.files.get_mut(&self.manifest.model_file);
        let entry = entry.expect("the model's entry");
        entry.length = model.len() as u64;
        entry.sha256 = Digest::of(&model);
        self.write();
        self
    }

    /// Takes over the golden vectors of another sample.
    #[must_use]
    pub fn with_golden_of(mut self, sample: &str) -> Self {
        let golden = std::fs::read(binaries::sample(sample).join("golden.json")).expect("read");
        std::fs::write(self.directory.join("golden.json"), &golden).expect("write");
        let name = "golden.json".parse().expect("a name");
        let entry = self.manifest.files.get_mut(&name).expect("an entry");
        entry.length = golden.len() as u64;
        entry.sha256 = Digest::of(&golden);
        self.write();
        self
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn path(&self) -> &Path {
        &self.directory
    }

    pub fn model_path(&self) -> PathBuf {
        self.directory.join(self.manifest.model_file.as_str())
    }

    fn write(&self) {
        std::fs::write(
            self.directory.join("manifest.json"),
            self.manifest.to_json(),
        )
        .expect("write a manifest");
    }
}

fn free_directory(parent: &Path) -> PathBuf {
    (0..)
        .map(|i| parent.join(format!("package-{i}")))
        .find(|path| !path.exists())
        .expect("a free name")
}

/// Reproducible bytes without a pattern (xorshift64*).
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::from_fn(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        Some((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8)
    })
}

fn read_manifest(directory: &Path) -> Manifest {
    let bytes = std::fs::read(directory.join("manifest.json")).expect("read a manifest");
    Manifest::parse(&bytes).expect("a manifest")
}

/// A question with its known answer, from a sample's golden vectors.
pub struct Known {
    /// The body of an infer request with JSON tensors.
    pub request: Value,
    outputs: Vec<(String, GoldenTensor)>,
}

/// The `index`-th golden vector of a sample.
pub fn known(sample: &str, index: usize) -> Known {
    let directory = binaries::sample(sample);
    let manifest = read_manifest(&directory);
    let golden = std::fs::read(directory.join("golden.json")).expect("read golden vectors");
    let golden: GoldenVectors = serde_json::from_slice(&golden).expect("golden vectors");
    let vector = golden.vectors[index].clone();
    let specification = |name: &str| -> &TensorSpec {
        let inputs = &manifest.default_signature().inputs;
        inputs.iter().find(|i| i.name == name).expect("an input")
    };
    let inputs: Vec<Value> = vector
        .inputs
        .iter()
        .map(|(name, tensor)| {
            let datatype = specification(name).datatype.name();
            let data: Vec<Value> = tensor.data.iter().map(|v| number(datatype, *v)).collect();
            json!({"name": name, "shape": tensor.shape, "datatype": datatype, "data": data})
        })
        .collect();
    Known {
        request: json!({ "inputs": inputs }),
        outputs: vector.outputs.into_iter().collect(),
    }
}

fn number(datatype: &str, value: f64) -> Value {
    match datatype {
        "BOOL" => json!(value != 0.0),
        "FP16" | "FP32" | "FP64" => json!(value),
        _ => json!(value as i64),
    }
}

impl Known {
    /// Compares an infer answer with the known outputs.
    pub fn check(&self, answer: &Value) -> Result<(), String> {
        for (name, expected) in &self.outputs {
            let outputs = answer["outputs"].as_array().ok_or("no outputs")?;
            let output = outputs.iter().find(|o| o["name"] == json!(name));
            let output = output.ok_or_else(|| format!("no output {name}"))?;
            if output["shape"] != json!(expected.shape) {
                return Err(format!("output {name} has shape {}", output["shape"]));
            }
            let data = output["data"].as_array().ok_or("no data")?;
            let largest = expected.data.iter().fold(1.0_f64, |a, b| a.max(b.abs()));
            for (a, b) in data.iter().zip(&expected.data) {
                let a = a.as_f64().ok_or("not a number")?;
                if (a - b).abs() > 1e-5 * largest {
                    return Err(format!("output {name}: {a} instead of {b}"));
                }
            }
        }
        Ok(())
    }
}
