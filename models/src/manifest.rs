//! The manifest: everything the fleet says of one model version, in one signed JSON file.
//!
//! `fleetctl` makes it from the `.tflite` file's own tensors and signatures; people may then edit it. It is
//! a TUF target like the model file, so whoever holds a [`Manifest`] from `verify` may believe it. A
//! manifest is checked as a whole by [`Manifest::parse`]: nothing downstream repeats a check.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::{DelegateName, FileName, ModelName, Version};

mod check;
mod golden;
mod tensor;

pub use golden::{GoldenTensor, GoldenVector, GoldenVectors};
pub use tensor::{Datatype, Quantization, STRINGS_ROOM, TensorSpec, byte_size};

/// The manifest format this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The file a manifest lives in, inside a package directory and as the last part of its target name.
pub const MANIFEST_FILE: &str = "manifest.json";
/// A manifest larger than this many bytes is refused unread.
pub const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;
/// No request of a model may be larger: 1 GiB.
pub const MAX_REQUEST_BYTES: u64 = 1 << 30;
/// The longest shape: no TFLite kernel handles more dimensions.
pub const MAX_DIMENSIONS: usize = 8;

/// One immutable model version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    pub model: ModelName,
    /// For people; for protocols whose versions are integers there is `release`.
    pub version: Version,
    /// Counted up by `push`, per model; 0 until a package is pushed.
    #[serde(default)]
    pub release: u64,
    /// The `.tflite` file; one of `files`.
    pub model_file: FileName,
    /// Every file of the version but the manifest itself.
    pub files: BTreeMap<FileName, FileEntry>,
    /// The first is the default signature. Inputs and outputs stand in the interpreter's own order.
    pub signatures: Vec<Signature>,
    /// Where to run, best first; the first that loads, takes its share of nodes and reproduces the golden
    /// vectors is used.
    pub delegates: Vec<DelegateChoice>,
    /// Interpreters that answer in parallel.
    #[serde(default = "one")]
    pub instances: u32,
    /// Threads of each interpreter; the device gives fewer when it has fewer cores.
    #[serde(default = "one")]
    pub threads: u32,
    /// The most input bytes one request may bring; 0 means what the shapes need (free dimensions as 1, strings
    /// with [`STRINGS_ROOM`]).
    #[serde(default)]
    pub max_request_bytes: u64,
    /// For a model that keeps state between requests; without meaning for any other.
    #[serde(default, skip_serializing_if = "Sequences::is_default")]
    pub sequences: Sequences,
    /// How long one invoke may take before the worker counts as hung and is ended, in milliseconds.
    #[serde(default = "default_invoke_limit_ms")]
    pub invoke_limit_ms: u64,
    /// Known inputs with their answers; one of `files`, in the form of [`GoldenVectors`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_file: Option<FileName>,
    /// The oldest agent that can run this version.
    #[serde(default = "first_agent")]
    pub minimum_agent: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

fn one() -> u32 {
    1
}

/// How a model that keeps state is shared: each stream of requests, a sequence, has an interpreter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sequences {
    /// Sequences at once; each has its own copy of what the interpreter allocates.
    pub most: u32,
    /// One that was not heard of for this long gives its place to a new one, in seconds.
    pub idle_seconds: u32,
}

impl Default for Sequences {
    fn default() -> Self {
        Self {
            most: 16,
            idle_seconds: 60,
        }
    }
}

impl Sequences {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn default_invoke_limit_ms() -> u64 {
    10_000
}

fn first_agent() -> Version {
    Version::new(0, 1, 0)
}

/// Length and digest of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// In bytes.
    pub length: u64,
    pub sha256: Digest,
}

/// Named inputs and outputs of one function of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    pub name: String,
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// Whether requests could run together along the first dimension: it is free in every input and output, and
    /// none of them holds strings.
    pub fn has_free_batch(&self) -> bool {
        let free = |t: &TensorSpec| t.shape.first() == Some(&-1) && t.datatype != Datatype::Bytes;
        self.inputs.iter().chain(&self.outputs).all(free)
    }
}

/// One entry of the ordered list of delegates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateChoice {
    /// `builtin`, `xnnpack`, or a profile of the device's configuration, which names the library.
    pub delegate: DelegateName,
    /// Passed to the delegate as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The least share of the graph's nodes that the delegate must take, 0 to 1.
    #[serde(default)]
    pub least_share: f32,
    /// How far an answer may be from the golden vectors.
    #[serde(default)]
    pub tolerance: Tolerance,
}

impl DelegateChoice {
    pub fn new(delegate: DelegateName) -> Self {
        Self {
            delegate,
            options: BTreeMap::new(),
            least_share: 0.0,
            tolerance: Tolerance::default(),
        }
    }
}

/// |answer − golden| ≤ `float` · max(1, max |golden|) per floating-point tensor, and at most
/// `integer_steps` for integers; booleans must be equal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    #[serde(default = "default_float_tolerance")]
    pub float: f64,
    #[serde(default)]
    pub integer_steps: u32,
}

fn default_float_tolerance() -> f64 {
    1e-4
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            float: default_float_tolerance(),
            integer_steps: 1,
        }
    }
}

/// What is wrong with a manifest. The text names the field.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not the JSON document it should be")]
    Json(#[source] serde_json::Error),
    #[error("the manifest has format {found}; this program reads format {FORMAT}: update it")]
    Format { found: u32 },
    #[error("the manifest of {model} {version}: {problem}")]
    Invalid {
        model: ModelName,
        version: Version,
        problem: String,
    },
}

impl Manifest {
    /// Reads and checks a whole manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if head.format != FORMAT {
            return Err(ManifestError::Format { found: head.format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The JSON text that people read and edit.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// The signature that a request means when it names none.
    pub fn default_signature(&self) -> &Signature {
        &self.signatures[0]
    }

    /// Input bytes one request may bring.
    pub fn request_bytes(&self) -> u64 {
        let needed = |s: &Signature| -> u64 {
            let rooms = s.inputs.iter().map(TensorSpec::room);
            rooms.fold(0, u64::saturating_add)
        };
        let least = self.signatures.iter().map(needed).max().unwrap_or(0);
        self.max_request_bytes.max(least)
    }
}

#[cfg(test)]
mod tests;
