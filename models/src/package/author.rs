//! A package as its author holds it: a directory with a manifest, or a bare `.tflite` file.
//!
//! fleetctl makes one for `package` and `push`. Lengths and digests always come from the files as they are
//! now: an edited file needs no edited manifest. A file that the manifest lists and that is not there is
//! refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{
    MAX_GOLDEN_BYTES, PackageError, chain, open_directory, open_file, parse_golden, problem,
    read_file,
};
use crate::digest::Digest;
use crate::durable::{self, Access};
use crate::manifest::{
    DelegateChoice, FORMAT, FileEntry, MANIFEST_FILE, MAX_MANIFEST_BYTES, MAX_REQUEST_BYTES,
    Manifest, Sequences, Signature, TensorSpec,
};
use crate::name::{DelegateName, FileName, ModelName, Version};
use crate::tflite_file;

/// The model file's name inside a package that is made from a bare `.tflite` file.
const MODEL_FILE: &str = "model.tflite";
/// The golden file's name inside such a package.
const GOLDEN_FILE: &str = "golden.json";
/// No model file may be larger: flatbuffers end at 2 GiB.
const MAX_MODEL_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// A manifest with the files it lists.
#[derive(Debug, Clone)]
pub struct Package {
    manifest: Manifest,
    files: BTreeMap<FileName, PathBuf>,
}

/// What a bare `.tflite` file does not say of itself.
#[derive(Debug, Clone, Default)]
pub struct TfliteOptions {
    /// Absent: from the file's name, `NAME-VERSION.tflite`.
    pub model: Option<ModelName>,
    /// Absent: from the file's name.
    pub version: Option<Version>,
    /// Absent: `NAME-VERSION.golden.json` beside the file, if there is one.
    pub golden: Option<PathBuf>,
    /// Empty: `xnnpack`, then `builtin`.
    pub delegates: Vec<DelegateName>,
    pub licence: Option<String>,
    pub notes: Option<String>,
}

impl Package {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where each listed file lies.
    pub fn files(&self) -> &BTreeMap<FileName, PathBuf> {
        &self.files
    }

    /// Opens a package directory. Lengths and digests in its manifest may be out of date.
    pub fn open(directory: &Path) -> Result<Self, PackageError> {
        let handle = open_directory(directory)?;
        let bytes = read_file(directory, &handle, MANIFEST_FILE, MAX_MANIFEST_BYTES)?;
        let mut manifest = Manifest::parse(&bytes).map_err(|e| problem(directory, chain(&e)))?;
        let mut files = BTreeMap::new();
        for (name, entry) in &mut manifest.files {
            let mut file = open_file(directory, &handle, name.as_str())?;
            let (sha256, length) = Digest::of_reader(&mut file)
                .map_err(|e| problem(directory, format!("cannot read {name}: {e}")))?;
            *entry = FileEntry { length, sha256 };
            files.insert(name.clone(), directory.join(name.as_str()));
        }
        if let Some(name) = &manifest.golden_file {
            let bytes = read_file(directory, &handle, name.as_str(), MAX_GOLDEN_BYTES)?;
            parse_golden(&manifest, name, &bytes).map_err(|p| problem(directory, p))?;
        }
        Ok(Self { manifest, files })
    }

    /// Makes a package from a `.tflite` file: its manifest comes from the file's own tensors and signatures.
    pub fn from_tflite(path: &Path, options: TfliteOptions) -> Result<Self, PackageError> {
        let refused = |text: String| problem(path, text);
        let bytes = read_limited(path, MAX_MODEL_BYTES)?;
        let signatures = tflite_file::signatures(&bytes).map_err(|e| refused(e.to_string()))?;
        let (model, version) = identity(path, &options).map_err(refused)?;
        let entry = |bytes: &[u8]| FileEntry {
            length: bytes.len() as u64,
            sha256: Digest::of(bytes),
        };
        let model_file = file_name(MODEL_FILE, path)?;
        let mut files = BTreeMap::from([(model_file.clone(), path.to_owned())]);
        let mut entries = BTreeMap::from([(model_file.clone(), entry(&bytes))]);
        let beside = path.with_extension("golden.json");
        let golden = options
            .golden
            .or_else(|| beside.is_file().then_some(beside));
        let mut golden_file = None;
        let mut golden_bytes = Vec::new();
        if let Some(golden) = golden {
            golden_bytes = read_limited(&golden, MAX_GOLDEN_BYTES)?;
            let name = file_name(GOLDEN_FILE, path)?;
            entries.insert(name.clone(), entry(&golden_bytes));
            files.insert(name.clone(), golden);
            golden_file = Some(name);
        }
        let manifest = Manifest {
            format: FORMAT,
            model,
            version,
            release: 0,
            model_file,
            files: entries,
            delegates: delegates(options.delegates, path)?,
            instances: 1,
            threads: 1,
            max_request_bytes: room_for_free_dimensions(&signatures),
            signatures,
            invoke_limit_ms: 10_000,
            golden_file,
            sequences: Sequences::default(),
            minimum_agent: Version::new(0, 1, 0),
            licence: options.licence,
            notes: options.notes,
        };
        manifest.check().map_err(|e| refused(chain(&e)))?;
        if let Some(name) = &manifest.golden_file {
            parse_golden(&manifest, name, &golden_bytes).map_err(refused)?;
        }
        Ok(Self { manifest, files })
    }

    /// Writes the package as a directory that a person can edit and `push` takes. The directory must not
    /// exist, or be empty.
    pub fn write(&self, directory: &Path) -> Result<(), PackageError> {
        let failed = |e: durable::DurableError| problem(directory, chain(&e));
        durable::create_directory(directory).map_err(failed)?;
        let mut present = std::fs::read_dir(directory)
            .map_err(|e| problem(directory, format!("cannot list the directory: {e}")))?;
        if present.next().is_some() {
            return Err(problem(directory, "is not empty; name a new directory"));
        }
        for (name, path) in &self.files {
            let bytes = read_limited(path, MAX_MODEL_BYTES)?;
            durable::write(&directory.join(name.as_str()), &bytes, Access::Anyone)
                .map_err(failed)?;
        }
        // Last: a directory without a manifest is no package.
        durable::write(
            &directory.join(MANIFEST_FILE),
            &self.manifest.to_json(),
            Access::Anyone,
        )
        .map_err(failed)
    }

    /// What looks wrong but is not refused: the manifest and the model file's own tensors do not agree.
    /// A device decides in the end; saying it early spares a refused rollout.
    pub fn doubts(&self) -> Vec<String> {
        let Some(path) = self.files.get(&self.manifest.model_file) else {
            return Vec::new();
        };
        let own = read_limited(path, MAX_MODEL_BYTES)
            .map_err(|e| e.problem)
            .and_then(|bytes| tflite_file::signatures(&bytes).map_err(|e| e.to_string()));
        match own {
            Err(text) => vec![format!("{}: {text}", self.manifest.model_file)],
            Ok(own) => self
                .manifest
                .signatures
                .iter()
                .filter_map(|s| signature_doubt(s, &own))
                .collect(),
        }
    }
}

fn signature_doubt(signature: &Signature, own: &[Signature]) -> Option<String> {
    let name = &signature.name;
    let Some(found) = own.iter().find(|s| s.name == *name) else {
        return Some(format!("the model file has no signature {name:?}"));
    };
    for (kind, stated, real) in [
        ("input", &signature.inputs, &found.inputs),
        ("output", &signature.outputs, &found.outputs),
    ] {
        if stated.len() != real.len() {
            return Some(format!(
                "signature {name:?} has {} {kind}s in the manifest and {} in the model file",
                stated.len(),
                real.len()
            ));
        }
        for (stated, real) in stated.iter().zip(real) {
            if stated.datatype != real.datatype || stated.shape.len() != real.shape.len() {
                return Some(format!(
                    "signature {name:?}: {kind} {:?} is {} {:?} in the manifest and {} {:?} in the model file",
                    stated.name,
                    stated.datatype.name(),
                    stated.shape,
                    real.datatype.name(),
                    real.shape
                ));
            }
        }
    }
    None
}

/// Name and version, given or from `NAME-VERSION.tflite`.
fn identity(path: &Path, options: &TfliteOptions) -> Result<(ModelName, Version), String> {
    if let (Some(model), Some(version)) = (&options.model, &options.version) {
        return Ok((model.clone(), version.clone()));
    }
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    let (name, version) = split_stem(stem).ok_or_else(|| {
        "the file is not named NAME-VERSION.tflite (such as digits-2.0.0.tflite); give --name and --version"
            .to_owned()
    })?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => name
            .parse()
            .map_err(|e| format!("the file's name holds no model name: {e}"))?,
    };
    Ok((model, options.version.clone().unwrap_or(version)))
}

/// Splits at the first dash behind which a version stands: `net-v2-1.0.0-rc.1` is `net-v2`, `1.0.0-rc.1`.
fn split_stem(stem: &str) -> Option<(&str, Version)> {
    stem.match_indices('-').find_map(|(at, _)| {
        let version = stem[at + 1..].parse().ok()?;
        Some((&stem[..at], version))
    })
}

/// Room for requests whose free dimensions are larger than 1, which is what they are for: thirty-two times the
/// least, and no less than 256 KiB (four seconds of sound). 0, "what the shapes need", where no dimension is free.
fn room_for_free_dimensions(signatures: &[Signature]) -> u64 {
    let room = |signature: &Signature| -> u64 {
        if !signature
            .inputs
            .iter()
            .any(|input| input.shape.contains(&-1))
        {
            return 0;
        }
        let least = signature.inputs.iter().map(TensorSpec::room);
        least
            .fold(0, u64::saturating_add)
            .saturating_mul(32)
            .max(256 << 10)
    };
    signatures
        .iter()
        .map(room)
        .max()
        .unwrap_or(0)
        .min(MAX_REQUEST_BYTES)
}

fn delegates(names: Vec<DelegateName>, path: &Path) -> Result<Vec<DelegateChoice>, PackageError> {
    if !names.is_empty() {
        return Ok(names.into_iter().map(DelegateChoice::new).collect());
    }
    [DelegateName::XNNPACK, DelegateName::BUILTIN]
        .into_iter()
        .map(|name| name.parse().map(DelegateChoice::new))
        .collect::<Result<_, _>>()
        .map_err(|e: crate::name::NameError| problem(path, e.to_string()))
}

fn file_name(text: &str, path: &Path) -> Result<FileName, PackageError> {
    text.parse()
        .map_err(|e: crate::name::NameError| problem(path, e.to_string()))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, PackageError> {
    match durable::read(path, limit) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(problem(path, "is missing")),
        Err(e) => Err(problem(path, chain(&e))),
    }
}
