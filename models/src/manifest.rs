//! The manifest: everything the fleet says of one model version, in one signed JSON file.
//!
//! `fleetctl` makes it from the `.tflite` file's own tensors and signatures; people may then edit it. It is
//! a TUF target like the model file, so whoever holds a [`Manifest`] from `verify` may believe it. A
//! manifest is checked as a whole by [`Manifest::parse`]: nothing downstream repeats a check.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::{DelegateName, FileName, ModelName, Version};

/// The manifest format this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The file a manifest lives in, inside a package directory and as the last part of its target name.
pub const MANIFEST_FILE: &str = "manifest.json";
/// A manifest larger than this many bytes is refused unread.
pub const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;
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
    /// The most input bytes one request may bring; 0 means what the shapes need (free dimensions as 1).
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

/// One input or output tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: Datatype,
    /// -1 is a free dimension, given by each request; a fixed one is at least 1.
    pub shape: Vec<i64>,
    /// How integers stand for real numbers, for the reader's information: values travel as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

impl TensorSpec {
    /// Bytes of one tensor with free dimensions taken as 1; `None` for strings or on overflow.
    pub fn least_bytes(&self) -> Option<u64> {
        let shape = self.shape.iter().map(|&d| d.max(1) as u64);
        byte_size(self.datatype, shape)
    }
}

/// Bytes of a dense row-major tensor; `None` for strings or when 64 bits do not hold the product.
pub fn byte_size(datatype: Datatype, shape: impl IntoIterator<Item = u64>) -> Option<u64> {
    let mut bytes = datatype.size()? as u64;
    for dimension in shape {
        bytes = bytes.checked_mul(dimension)?;
    }
    Some(bytes)
}

/// real = scale × (quantized − zero_point).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    pub scale: f32,
    pub zero_point: i64,
}

/// Element types by their Open Inference Protocol names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// Bytes of one element; `None` for strings.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
            Self::Bytes => return None,
        })
    }

    /// The protocol's name, such as `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
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

/// The golden file of a version: inputs with the answers the training side saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenVectors {
    pub vectors: Vec<GoldenVector>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenVector {
    /// The default signature if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    pub inputs: BTreeMap<String, GoldenTensor>,
    pub outputs: BTreeMap<String, GoldenTensor>,
}

/// Values in row-major order; booleans as 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenTensor {
    pub shape: Vec<u64>,
    pub data: Vec<f64>,
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
            s.inputs
                .iter()
                .map(|i| i.least_bytes().unwrap_or(0))
                .fold(0, u64::saturating_add)
        };
        let least = self.signatures.iter().map(needed).max().unwrap_or(0);
        self.max_request_bytes.max(least)
    }

    /// Checks everything that the types do not already say.
    pub fn check(&self) -> Result<(), ManifestError> {
        self.problem().map_or(Ok(()), |problem| {
            Err(ManifestError::Invalid {
                model: self.model.clone(),
                version: self.version.clone(),
                problem,
            })
        })
    }

    fn problem(&self) -> Option<String> {
        if !self.files.contains_key(&self.model_file) {
            return Some(format!("model_file {} is not among files", self.model_file));
        }
        if let Some(golden) = &self.golden_file
            && !self.files.contains_key(golden)
        {
            return Some(format!("golden_file {golden} is not among files"));
        }
        if self.files.keys().any(|f| f.as_str() == MANIFEST_FILE) {
            return Some(format!("{MANIFEST_FILE} cannot list itself among files"));
        }
        if self.signatures.is_empty() {
            return Some("signatures is empty: a model needs at least one".to_owned());
        }
        let mut names = BTreeSet::new();
        for signature in &self.signatures {
            if !names.insert(&signature.name) {
                return Some(format!("signature {:?} stands there twice", signature.name));
            }
            if let Some(problem) = signature_problem(signature) {
                return Some(format!("signature {:?}: {problem}", signature.name));
            }
        }
        if self.delegates.is_empty() {
            return Some("delegates is empty: name at least \"builtin\"".to_owned());
        }
        for choice in &self.delegates {
            let Tolerance { float, .. } = choice.tolerance;
            if !(0.0..=1.0).contains(&choice.least_share) {
                return Some(format!(
                    "delegate {}: least_share must be 0 to 1",
                    choice.delegate
                ));
            }
            if !float.is_finite() || float < 0.0 {
                return Some(format!(
                    "delegate {}: tolerance.float must be 0 or more",
                    choice.delegate
                ));
            }
            if choice
                .options
                .iter()
                .any(|(k, v)| k.contains('\0') || v.contains('\0'))
            {
                return Some(format!(
                    "delegate {}: an option holds a NUL",
                    choice.delegate
                ));
            }
        }
        if self.instances == 0 || self.instances > 64 {
            return Some("instances must be 1 to 64".to_owned());
        }
        if self.threads == 0 || self.threads > 256 {
            return Some("threads must be 1 to 256".to_owned());
        }
        if !(1..=1024).contains(&self.sequences.most) || self.sequences.idle_seconds == 0 {
            return Some(
                "sequences: most must be 1 to 1024 and idle_seconds at least 1".to_owned(),
            );
        }
        if self.invoke_limit_ms == 0 {
            return Some("invoke_limit_ms must be at least 1".to_owned());
        }
        if self.max_request_bytes > MAX_REQUEST_BYTES {
            return Some(format!(
                "max_request_bytes is over the limit of {MAX_REQUEST_BYTES}"
            ));
        }
        None
    }
}

/// No request of a model may be larger: 1 GiB.
pub const MAX_REQUEST_BYTES: u64 = 1 << 30;

fn signature_problem(signature: &Signature) -> Option<String> {
    if signature.inputs.is_empty() || signature.outputs.is_empty() {
        return Some("needs at least one input and one output".to_owned());
    }
    for (kind, tensors) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        let mut names = BTreeSet::new();
        for tensor in tensors {
            if tensor.name.is_empty() || !names.insert(&tensor.name) {
                return Some(format!(
                    "{kind} name {:?} is empty or stands there twice",
                    tensor.name
                ));
            }
            if tensor.shape.len() > MAX_DIMENSIONS {
                return Some(format!(
                    "{kind} {}: more than {MAX_DIMENSIONS} dimensions",
                    tensor.name
                ));
            }
            if tensor
                .shape
                .iter()
                .any(|&d| d == 0 || d < -1 || d > i64::from(i32::MAX))
            {
                return Some(format!(
                    "{kind} {}: a dimension must be -1 or at least 1",
                    tensor.name
                ));
            }
            let bytes = tensor.least_bytes();
            if tensor.datatype != Datatype::Bytes && bytes.is_none_or(|b| b > MAX_REQUEST_BYTES) {
                return Some(format!(
                    "{kind} {}: larger than {MAX_REQUEST_BYTES} bytes",
                    tensor.name
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn sample() -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/samples/digits-1.0.0/manifest.json"
        );
        serde_json::from_slice(&std::fs::read(path).expect("sample")).expect("json")
    }

    fn refusal(edit: impl FnOnce(&mut Value)) -> String {
        let mut manifest = sample();
        edit(&mut manifest);
        let error =
            Manifest::parse(&serde_json::to_vec(&manifest).expect("json")).expect_err("was taken");
        std::error::Error::source(&error)
            .map_or(error.to_string(), |source| format!("{error}: {source}"))
    }

    #[test]
    fn a_sample_survives_being_written_and_read() {
        let bytes = serde_json::to_vec(&sample()).expect("json");
        let manifest = Manifest::parse(&bytes).expect("sample");
        assert_eq!(manifest.request_bytes(), 8192);
        assert_eq!(
            Manifest::parse(&manifest.to_json()).expect("again"),
            manifest
        );
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 14] = [
            (|m| m["format"] = json!(2), "format 2"),
            (|m| m["model"] = json!("../digits"), "model name"),
            (
                |m| m["model_file"] = json!("other.tflite"),
                "model_file other.tflite",
            ),
            (
                |m| m["golden_file"] = json!("none.json"),
                "golden_file none.json",
            ),
            (|m| m["signatures"] = json!([]), "signatures"),
            (|m| m["delegates"] = json!([]), "delegates"),
            (
                |m| m["delegates"][0]["least_share"] = json!(1.5),
                "least_share",
            ),
            (|m| m["instances"] = json!(0), "instances"),
            (|m| m["sequences"] = json!({"most": 0}), "sequences"),
            (|m| m["sequences"] = json!({"idle_seconds": 0}), "sequences"),
            (
                |m| m["signatures"][0]["inputs"][0]["shape"] = json!([0, 8]),
                "image",
            ),
            (
                |m| m["signatures"][0]["inputs"][0]["shape"] = json!([1 << 30, 1 << 30]),
                "image",
            ),
            (
                |m| m["signatures"][0]["outputs"][0]["name"] = json!(""),
                "output",
            ),
            (|m| m["surprise"] = json!(1), "surprise"),
        ];
        for (edit, expected) in cases {
            let text = refusal(edit);
            assert!(
                text.contains(expected),
                "{text:?} does not name {expected:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
