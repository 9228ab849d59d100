//! The inputs of a request against the model's signature: names, datatypes, shapes and sizes first, then the
//! values, straight into the slot.
//!
//! Every refusal names the tensor and what was expected of it.

use edgeward_models::manifest::{Datatype, Signature, TensorSpec, byte_size};

use super::reply::{HEADER_LENGTH, names};
use super::request::{Content, InferRequest};
use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::numbers;
use crate::serving::{Request, check_shape};

/// How one input gets into its place.
#[derive(Debug, PartialEq)]
pub struct Fill {
    pub shape: Vec<i64>,
    /// JSON: a place in the JSON text. Binary: a place in the whole body.
    pub content: Content,
}

/// Finds each input of the signature in the request and checks it; returns the bytes of all.
pub fn matched(
    request: &InferRequest<'_>,
    signature: &Signature,
    json_length: usize,
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
        refuse_unsupported(spec)?;
        let bytes = check_shape(spec, &input.shape)?;
        let content = match &input.content {
            Content::Json(range) => Content::Json(range.clone()),
            Content::Binary(range) if range.len() as u64 == bytes => {
                Content::Binary(json_length + range.start..json_length + range.end)
            }
            Content::Binary(range) => {
                return Err(ApiError::invalid(format!(
                    "input {name:?}: binary_data_size is {}, expected {bytes} for {expected} {:?}",
                    range.len(),
                    input.shape
                )));
            }
        };
        total = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| total.checked_add(bytes))
            .ok_or_else(|| ApiError::invalid(format!("input {name:?}: its shape is absurd")))?;
        fills.push(Fill {
            shape: input.shape.clone(),
            content,
        });
    }
    Ok((fills, total))
}

fn refuse_unsupported(spec: &TensorSpec) -> Result<(), ApiError> {
    match spec.datatype {
        Datatype::Bytes => Err(ApiError::invalid(format!(
            "input {:?}: {} is not supported by this server",
            spec.name,
            spec.datatype.name()
        ))),
        _ => Ok(()),
    }
}

/// The raw form: the body is the input.
pub fn raw(signature: &Signature, length: usize) -> Result<Fill, ApiError> {
    let [spec] = signature.inputs.as_slice() else {
        return Err(ApiError::invalid(format!(
            "a raw body ({HEADER_LENGTH}: 0) is for models with one input; this one has {}",
            names(&signature.inputs)
        )));
    };
    refuse_unsupported(spec)?;
    let name = &spec.name;
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
        content: Content::Binary(0..length),
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
        let place = request.input(&fill.shape)?;
        match &fill.content {
            Content::Json(range) => {
                let text = json.get(range.clone()).unwrap_or_default();
                numbers::read(spec.datatype, text, place).map_err(|error| {
                    ApiError::invalid(format!(
                        "input {:?} ({} {:?}): {error}",
                        spec.name,
                        spec.datatype.name(),
                        fill.shape
                    ))
                })?;
            }
            Content::Binary(range) => {
                if range.len() != place.len() || !body.copy_to(range.start, place) {
                    return Err(ApiError::invalid(format!(
                        "input {:?}: the body does not hold its bytes",
                        spec.name
                    )));
                }
            }
        }
    }
    Ok(())
}
