//! What a `.tflite` file says of itself: tensors and signatures, read from the flatbuffer without TFLite.
//!
//! fleetctl calls it to make a manifest. The file is foreign: every offset is checked before it is followed,
//! every list is bounded, and any bytes at all give an answer or an error. Only the few tables that name
//! inputs and outputs are read; whether the graph can run is for a worker to find out.

use std::collections::BTreeSet;

use crate::manifest::{Datatype, MAX_DIMENSIONS, Quantization, Signature, TensorSpec};

mod flatbuffer;

use flatbuffer::{Buffer, Table};

/// The four bytes that name the format, at offset 4.
const IDENTIFIER: &[u8; 4] = b"TFL3";
/// The schema version inside the file; there has been no other since 2017.
const SCHEMA_VERSION: u32 = 3;
/// The name of the signature of a file that has none.
pub const DEFAULT_SIGNATURE: &str = "serving_default";
/// The operator that names a variable which lives as long as its interpreter.
const VAR_HANDLE: u32 = 142;
/// More signatures than this are refused.
const MAX_SIGNATURES: usize = 64;
/// More inputs or outputs of one graph than this are refused.
const MAX_TENSORS: usize = 1024;
/// Longer names are refused.
const MAX_TENSOR_NAME_BYTES: usize = 1024;

/// Field numbers of the tables read here (TFLite schema, version 3).
mod field {
    pub const MODEL_VERSION: usize = 0;
    pub const MODEL_OPERATOR_CODES: usize = 1;
    pub const MODEL_SUBGRAPHS: usize = 2;
    pub const MODEL_SIGNATURES: usize = 7;
    pub const GRAPH_TENSORS: usize = 0;
    pub const GRAPH_INPUTS: usize = 1;
    pub const GRAPH_OUTPUTS: usize = 2;
    pub const CODE_BUILTIN: usize = 3;
    pub const TENSOR_SHAPE: usize = 0;
    pub const TENSOR_TYPE: usize = 1;
    pub const TENSOR_NAME: usize = 3;
    pub const TENSOR_QUANTIZATION: usize = 4;
    pub const TENSOR_IS_VARIABLE: usize = 5;
    pub const TENSOR_SHAPE_SIGNATURE: usize = 7;
    pub const QUANTIZATION_SCALE: usize = 2;
    pub const QUANTIZATION_ZERO_POINT: usize = 3;
    pub const SIGNATURE_INPUTS: usize = 0;
    pub const SIGNATURE_OUTPUTS: usize = 1;
    pub const SIGNATURE_KEY: usize = 2;
    pub const SIGNATURE_GRAPH: usize = 4;
    pub const MAP_NAME: usize = 0;
    pub const MAP_TENSOR: usize = 1;
}

#[derive(Debug, thiserror::Error)]
pub enum TfliteFileError {
    #[error("not a TFLite model: {0}")]
    NotTflite(String),
    #[error("tensor {tensor}: {problem}")]
    Tensor { tensor: String, problem: String },
}

fn not_tflite(problem: impl Into<String>) -> TfliteFileError {
    TfliteFileError::NotTflite(problem.into())
}

/// Signatures with inputs and outputs in the interpreter's order. A file without signatures gets one named
/// `serving_default` from its main graph's tensors. Free dimensions (`shape_signature`) are -1.
pub fn signatures(bytes: &[u8]) -> Result<Vec<Signature>, TfliteFileError> {
    let model = model(bytes)?;
    let graphs = model.tables(field::MODEL_SUBGRAPHS)?;
    let graph = |index: usize| {
        graphs
            .get(index)?
            .ok_or_else(|| not_tflite(format!("it has no graph number {index}")))
    };
    let declared = model.tables(field::MODEL_SIGNATURES)?;
    if declared.len() > MAX_SIGNATURES {
        return Err(not_tflite(format!(
            "it has more than {MAX_SIGNATURES} signatures"
        )));
    }
    if declared.len() == 0 {
        let graph = graph(0)?;
        return Ok(vec![Signature {
            name: DEFAULT_SIGNATURE.to_owned(),
            inputs: tensors(&graph, field::GRAPH_INPUTS, "input", Vec::new())?,
            outputs: tensors(&graph, field::GRAPH_OUTPUTS, "output", Vec::new())?,
        }]);
    }
    let mut signatures = Vec::with_capacity(declared.len());
    for position in 0..declared.len() {
        let Some(signature) = declared.get(position)? else {
            continue;
        };
        let name = match signature.text(field::SIGNATURE_KEY, MAX_TENSOR_NAME_BYTES)? {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => DEFAULT_SIGNATURE.to_owned(),
        };
        let graph = graph(signature.u32(field::SIGNATURE_GRAPH)?.unwrap_or(0) as usize)?;
        let named = |field| names(&signature, field);
        signatures.push(Signature {
            inputs: tensors(
                &graph,
                field::GRAPH_INPUTS,
                "input",
                named(field::SIGNATURE_INPUTS)?,
            )?,
            outputs: tensors(
                &graph,
                field::GRAPH_OUTPUTS,
                "output",
                named(field::SIGNATURE_OUTPUTS)?,
            )?,
            name,
        });
    }
    Ok(signatures)
}

fn model(bytes: &[u8]) -> Result<Table<'_>, TfliteFileError> {
    if bytes.len() < 8 || &bytes[4..8] != IDENTIFIER {
        return Err(not_tflite("the file does not carry the identifier TFL3"));
    }
    let model = Buffer::new(bytes).root()?;
    let version = model.u32(field::MODEL_VERSION)?.unwrap_or(0);
    if version != SCHEMA_VERSION {
        return Err(not_tflite(format!(
            "it has schema version {version}, not {SCHEMA_VERSION}"
        )));
    }
    Ok(model)
}

/// Whether one answer may depend on the questions before it: the graph has variables of its own, as resources
/// or as tensors that outlive an invoke.
pub fn keeps_state(bytes: &[u8]) -> Result<bool, TfliteFileError> {
    let model = model(bytes)?;
    let codes = model.tables(field::MODEL_OPERATOR_CODES)?;
    for position in 0..codes.len() {
        let code = codes.get(position)?;
        if let Some(code) = code
            && code.u32(field::CODE_BUILTIN)? == Some(VAR_HANDLE)
        {
            return Ok(true);
        }
    }
    let graphs = model.tables(field::MODEL_SUBGRAPHS)?;
    for graph in 0..graphs.len() {
        let Some(graph) = graphs.get(graph)? else {
            continue;
        };
        let tensors = graph.tables(field::GRAPH_TENSORS)?;
        for position in 0..tensors.len() {
            let tensor = tensors.get(position)?;
            if let Some(tensor) = tensor
                && tensor.i8(field::TENSOR_IS_VARIABLE)?.unwrap_or(0) != 0
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The names that a signature gives to tensors of its graph, with their indexes.
fn names(signature: &Table<'_>, field: usize) -> Result<Vec<(u32, String)>, TfliteFileError> {
    let entries = signature.tables(field)?;
    if entries.len() > MAX_TENSORS {
        return Err(not_tflite(format!(
            "a signature names more than {MAX_TENSORS} tensors"
        )));
    }
    let mut names = Vec::with_capacity(entries.len());
    for position in 0..entries.len() {
        let Some(entry) = entries.get(position)? else {
            continue;
        };
        let name = entry
            .text(field::MAP_NAME, MAX_TENSOR_NAME_BYTES)?
            .unwrap_or_default();
        names.push((entry.u32(field::MAP_TENSOR)?.unwrap_or(0), name.to_owned()));
    }
    Ok(names)
}

/// The inputs or outputs of a graph, in its own order. `names` are the signature's; a tensor that it does
/// not name, or a nameless one, goes by its own name or its position.
fn tensors(
    graph: &Table<'_>,
    list: usize,
    kind: &str,
    mut names: Vec<(u32, String)>,
) -> Result<Vec<TensorSpec>, TfliteFileError> {
    let all = graph.tables(field::GRAPH_TENSORS)?;
    let indexes = graph.numbers(list)?;
    if indexes.len() > MAX_TENSORS {
        return Err(not_tflite(format!(
            "a graph has more than {MAX_TENSORS} {kind}s"
        )));
    }
    let mut taken = BTreeSet::new();
    let mut specs = Vec::with_capacity(indexes.len());
    for (position, &index) in indexes.iter().enumerate() {
        let index = i32::from_le_bytes(index);
        let tensor = match usize::try_from(index) {
            Ok(index) => all.get(index)?,
            Err(_) => None,
        };
        let Some(tensor) = tensor else {
            return Err(not_tflite(format!(
                "{kind} {position} is tensor {index}, which is not there"
            )));
        };
        let given = names
            .iter()
            .position(|(named, _)| i64::from(*named) == i64::from(index));
        let name = match given {
            Some(place) => names.remove(place).1,
            None => tensor
                .text(field::TENSOR_NAME, MAX_TENSOR_NAME_BYTES)?
                .unwrap_or_default()
                .to_owned(),
        };
        let name = if name.is_empty() || taken.contains(&name) {
            format!("{kind}_{position}")
        } else {
            name
        };
        specs.push(spec(&tensor, name.clone())?);
        taken.insert(name);
    }
    if let Some((index, name)) = names.into_iter().next() {
        return Err(TfliteFileError::Tensor {
            tensor: name,
            problem: format!(
                "the signature says {kind} is tensor {index}, which is no {kind} of its graph"
            ),
        });
    }
    Ok(specs)
}

fn spec(tensor: &Table<'_>, name: String) -> Result<TensorSpec, TfliteFileError> {
    let refused = |problem: String| TfliteFileError::Tensor {
        tensor: name.clone(),
        problem,
    };
    let datatype = datatype(tensor.i8(field::TENSOR_TYPE)?.unwrap_or(0)).map_err(&refused)?;
    let fixed = tensor.numbers(field::TENSOR_SHAPE)?;
    let free = tensor.numbers(field::TENSOR_SHAPE_SIGNATURE)?;
    // Writers leave the signature out where it would say nothing new.
    let shape = if free.len() == fixed.len() {
        free
    } else {
        fixed
    };
    if shape.len() > MAX_DIMENSIONS {
        return Err(refused(format!(
            "has {} dimensions; at most {MAX_DIMENSIONS} are served",
            shape.len()
        )));
    }
    let shape: Vec<i32> = shape.iter().map(|&d| i32::from_le_bytes(d)).collect();
    if let Some(wrong) = shape.iter().find(|&&d| d == 0 || d < -1) {
        return Err(refused(format!("has a dimension of {wrong}")));
    }
    Ok(TensorSpec {
        datatype,
        shape: shape.into_iter().map(i64::from).collect(),
        quantization: quantization(tensor)?,
        name,
    })
}

/// Per-tensor quantization; per-channel does not occur at a model's edge.
fn quantization(tensor: &Table<'_>) -> Result<Option<Quantization>, TfliteFileError> {
    let Some(table) = tensor.table(field::TENSOR_QUANTIZATION)? else {
        return Ok(None);
    };
    let scale = table.numbers(field::QUANTIZATION_SCALE)?;
    let zero_point = table.numbers(field::QUANTIZATION_ZERO_POINT)?;
    let (&[scale], &[zero_point]) = (scale, zero_point) else {
        return Ok(None);
    };
    let scale = f32::from_le_bytes(scale);
    let zero_point = i64::from_le_bytes(zero_point);
    Ok((scale.is_finite() && scale > 0.0).then_some(Quantization { scale, zero_point }))
}

/// TFLite's element types that a request can carry.
fn datatype(number: i8) -> Result<Datatype, String> {
    Ok(match number {
        0 => Datatype::Fp32,
        1 => Datatype::Fp16,
        2 => Datatype::Int32,
        3 => Datatype::Uint8,
        4 => Datatype::Int64,
        5 => Datatype::Bytes,
        6 => Datatype::Bool,
        7 => Datatype::Int16,
        9 => Datatype::Int8,
        10 => Datatype::Fp64,
        12 => Datatype::Uint64,
        15 => Datatype::Uint32,
        16 => Datatype::Uint16,
        other => {
            let name = match other {
                8 => "complex64",
                11 => "complex128",
                13 => "resource",
                14 => "variant",
                17 => "int4",
                18 => "bfloat16",
                _ => "unknown",
            };
            return Err(format!(
                "has element type {name} ({other}), which no request can carry; \
                 convert the model with inputs and outputs of a plain type"
            ));
        }
    })
}

#[cfg(test)]
mod tests;
