//! Golden vectors: known inputs of a model with the answers that its authors saw.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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

/// Values in row-major order: numbers (booleans as 0 and 1), or strings for a tensor of strings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenTensor {
    pub shape: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strings: Vec<String>,
}
