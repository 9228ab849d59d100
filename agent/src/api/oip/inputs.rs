//! The inputs of a request against the model's signature: names, datatypes, shapes and sizes first, then the
//! values, straight into the slot.
//!
//! Strings are as long as they are: those in JSON are decoded before there is a slot, binary ones (each with its
//! length) are believed to be as many bytes as the header says, and checked when they lie in the slot.
//!
//! Every refusal names the tensor and what was expected of it.

use std::ops::Range;

use edgeward_models::manifest::{Datatype, Signature, TensorSpec, byte_size};

use super::reply::{HEADER_LENGTH, names};
use super::request::{Content, InferRequest};
use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::numbers;
use crate::serving::{Request, check_shape};
use crate::strings;

/// How one input gets into its place.
#[derive(Debug, PartialEq)]
pub struct Fill {
    pub shape: Vec<i64>,
    pub bytes: usize,
    pub source: Source,
}

/// Where the values of an input come from.
#[derive(Debug, PartialEq)]
pub enum Source {
    /// This place of the JSON text.
    Json(Range<usize>),
    /// This place of the whole body.
    Binary(Range<usize>),
    /// Strings that stood in the JSON.
    Strings(Vec<u8>),
    /// One string, which is this place of the whole body.
    OneString(Range<usize>),
}

/// Finds each input of the signature in the request, which was read from `json`, and checks it; returns the bytes
/// of all.
pub fn matched(
    request: &InferRequest<'_>,
    signature: &Signature,
    json: &[u8],
) -> Result<(Vec<Fill>, usize), ApiError> {
    for (index, input) in request.inputs.iter().enumerate() {
        if !signature.inputs.iter().any(|spec| spec.name == input.name) {
            return Err(ApiError::invalid(format!(
                "input {:?} is not one of this model's: {}",
                input.name,
                names(&signature.inputs)
            )));
        }
        if request.inputs[..index].iter().any(|i| i.name == input.name) {
            return Err(ApiError::invalid(format!(
                "input {:?} stands there twice",
                input.name
            )));
        }
    }
    let mut fills = Vec::with_capacity(signature.inputs.len());
    let mut total = 0usize;
    for spec in &signature.inputs {
        let name = &spec.name;
        let expected = spec.datatype.name();
        let Some(input) = request.inputs.iter().find(|input| input.name == *name) else {
            return Err(ApiError::invalid(format!(
                "input {name:?} is missing: expected {expected} {:?}",
                spec.shape
            )));
        };
        if input.datatype != expected {
            return Err(ApiError::invalid(format!(
                "input {name:?}: its datatype is {:?}, expected {expected}",
                input.datatype
            )));
        }
        let needed = check_shape(spec, &input.shape)?;
        let fill = match &input.content {
            Content::Json(range) => from_json(spec, &input.shape, needed, json, range.clone()),
            Content::Binary(range) => {
                let bytes = range.len();
                let (start, end) = (json.len() + range.start, json.len() + range.end);
                match needed {
                    Some(needed) if needed != bytes as u64 => Err(ApiError::invalid(format!(
                        "input {name:?}: it has {bytes} bytes of binary data, expected {needed} for {expected} {:?}",
                        input.shape
                    ))),
                    _ => Ok(Fill {
                        shape: input.shape.clone(),
                        bytes,
                        source: Source::Binary(start..end),
                    }),
                }
            }
        }?;
        total = total
            .checked_add(fill.bytes)
            .ok_or_else(|| ApiError::invalid(format!("input {name:?}: its shape is absurd")))?;
        fills.push(fill);
    }
    Ok((fills, total))
}

/// An input whose values stand in the JSON. `needed`: its bytes, but for strings.
fn from_json(
    spec: &TensorSpec,
    shape: &[i64],
    needed: Option<u64>,
    json: &[u8],
    range: Range<usize>,
) -> Result<Fill, ApiError> {
    let absurd = || ApiError::invalid(format!("input {:?}: its shape is absurd", spec.name));
    let (bytes, source) = match needed {
        Some(bytes) => (
            usize::try_from(bytes).map_err(|_| absurd())?,
            Source::Json(range),
        ),
        None => {
            let count = shape
                .iter()
                .try_fold(1usize, |all, &d| all.checked_mul(usize::try_from(d).ok()?));
            let text = json.get(range).unwrap_or_default();
            let strings = numbers::read_strings(text, count.ok_or_else(absurd)?);
            let strings = strings.map_err(|error| wrong_data(spec, shape, &error))?;
            (strings.len(), Source::Strings(strings))
        }
    };
    Ok(Fill {
        shape: shape.to_vec(),
        bytes,
        source,
    })
}

fn wrong_data(spec: &TensorSpec, shape: &[i64], error: &numbers::DataError) -> ApiError {
    ApiError::invalid(format!(
        "input {:?} ({} {shape:?}): {error}",
        spec.name,
        spec.datatype.name()
    ))
}

/// The raw form: the body is the input, or its one string.
pub fn raw(signature: &Signature, length: usize) -> Result<Fill, ApiError> {
    let [spec] = signature.inputs.as_slice() else {
        return Err(ApiError::invalid(format!(
            "a raw body ({HEADER_LENGTH}: 0) is for models with one input; this one has {}",
            names(&signature.inputs)
        )));
    };
    let name = &spec.name;
    if spec.datatype == Datatype::Bytes {
        return one_string(spec, length);
    }
    let datatype = spec.datatype.name();
    let free = spec.shape.iter().filter(|d| **d < 0).count();
    if free > 1 {
        return Err(ApiError::invalid(format!(
            "input {name:?}: {:?} has {free} free dimensions, so a raw body ({HEADER_LENGTH}: 0) does not \
             say its shape",
            spec.shape
        )));
    }
    let fixed = spec.shape.iter().filter(|d| **d >= 0).map(|d| *d as u64);
    let unit = byte_size(spec.datatype, fixed).filter(|unit| *unit > 0);
    let count = unit
        .map(|unit| (length as u64 / unit, length as u64 % unit))
        .filter(|(count, rest)| *rest == 0 && *count > 0 && (free == 1 || *count == 1))
        .and_then(|(count, _)| i64::try_from(count).ok());
    let Some(count) = count else {
        return Err(ApiError::invalid(format!(
            "input {name:?}: the raw body has {length} bytes, expected {}{} for {datatype} {:?}",
            if free == 1 { "a multiple of " } else { "" },
            unit.unwrap_or_default(),
            spec.shape
        )));
    };
    let shape: Vec<i64> = spec
        .shape
        .iter()
        .map(|d| if *d < 0 { count } else { *d })
        .collect();
    check_shape(spec, &shape)?;
    Ok(Fill {
        shape,
        bytes: length,
        source: Source::Binary(0..length),
    })
}

/// A raw body for strings is one of them, without its length.
fn one_string(spec: &TensorSpec, length: usize) -> Result<Fill, ApiError> {
    let shape: Vec<i64> = spec.shape.iter().map(|d| (*d).max(1)).collect();
    let bytes = length.checked_add(strings::LENGTH);
    let bytes = bytes.filter(|_| u32::try_from(length).is_ok() && shape.iter().all(|d| *d == 1));
    let Some(bytes) = bytes else {
        return Err(ApiError::invalid(format!(
            "input {:?}: a raw body ({HEADER_LENGTH}: 0) is one string, and BYTES {:?} are more",
            spec.name, spec.shape
        )));
    };
    Ok(Fill {
        shape,
        bytes,
        source: Source::OneString(0..length),
    })
}

pub fn has_free_dimensions(signature: &Signature) -> bool {
    signature.inputs.iter().any(|spec| spec.shape.contains(&-1))
}

/// The shapes of a request, for an error text.
pub fn shapes(signature: &Signature, fills: &[Fill]) -> String {
    let inputs = signature.inputs.iter().zip(fills);
    let shapes: Vec<_> = inputs
        .map(|(spec, fill)| format!("input {:?} {:?}", spec.name, fill.shape))
        .collect();
    shapes.join(", ")
}

/// Brings all inputs into the slot of a request.
pub fn write(
    request: &mut Request,
    signature: &Signature,
    fills: &[Fill],
    json: &[u8],
    body: &Body,
) -> Result<(), ApiError> {
    for (spec, fill) in signature.inputs.iter().zip(fills) {
        let place = request.input(&fill.shape, fill.bytes)?;
        let missing = || {
            ApiError::invalid(format!(
                "input {:?}: the body does not hold its bytes",
                spec.name
            ))
        };
        match &fill.source {
            Source::Json(range) => {
                let text = json.get(range.clone()).unwrap_or_default();
                numbers::read(spec.datatype, text, place)
                    .map_err(|error| wrong_data(spec, &fill.shape, &error))?;
            }
            Source::Strings(strings) => place.copy_from_slice(strings),
            Source::Binary(range) => {
                if range.len() != place.len() || !body.copy_to(range.start, place) {
                    return Err(missing());
                }
            }
            Source::OneString(range) => {
                let (length, text) = place.split_at_mut(strings::LENGTH);
                length.copy_from_slice(&(range.len() as u32).to_le_bytes());
                if range.len() != text.len() || !body.copy_to(range.start, text) {
                    return Err(missing());
                }
            }
        }
    }
    Ok(())
}
