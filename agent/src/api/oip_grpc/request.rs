//! `ModelInferRequest`, read where it lies.
//!
//! Values come raw (`raw_input_contents`, one for each input, in order) or typed (`contents` of each input), never
//! both in one request. Raw ones stay in the body until they are copied into the slot; typed ones are written in the
//! same binary form behind it, so that from here on nothing knows the difference. Typed ones cost no more memory than
//! the model's largest request, whatever a message claims.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use edgeward_models::Manifest;
use edgeward_models::manifest::{Datatype, MAX_DIMENSIONS};

use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::grpc::values::{Out, floats, integers, string};
use crate::api::json::Scalar;
use crate::api::oip::infer::{Prepared, checked};
use crate::api::oip::request::{
    Content, InferRequest, Input, MAX_ID_BYTES, Output, at_most, tensor_parameter_refused,
};
use crate::api::protobuf::{Reader, Value};
use crate::serving::{Sequence, SequenceId};

/// Triton's clients ask with it for an answer that says whether it is the last one to its request.
const FINAL_RESPONSE: &str = "triton_enable_empty_final_response";

/// Which model a request is for, and what its answer will be called.
#[derive(Debug, Default, PartialEq)]
pub struct Target<'a> {
    pub model: Cow<'a, str>,
    pub version: Cow<'a, str>,
    pub id: Cow<'a, str>,
}

impl<'a> Target<'a> {
    pub fn of(body: &'a Body) -> Result<Self, ApiError> {
        let mut target = Self::default();
        let mut reader = Reader::new(body);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => target.model = value.text()?,
                2 => target.version = value.text()?,
                3 => target.id = value.text()?,
                _ => {}
            }
        }
        if target.id.len() > MAX_ID_BYTES {
            let text = format!("id is longer than {MAX_ID_BYTES} bytes");
            return Err(ApiError::invalid(text));
        }
        Ok(target)
    }
}

/// A request that fits its model.
pub struct Asked {
    pub prepared: Prepared,
    /// The values that came typed, in binary: they belong behind the body.
    pub typed: Vec<u8>,
    /// The answer must say that it is the last one.
    pub marks_final: bool,
}

/// An input as it stands in the message.
struct Tensor<'a> {
    input: Input<'a>,
    contents: Option<Reader<'a>>,
    /// KServe's clients repeat here how long its raw contents are.
    raw_bytes: Option<u64>,
}

/// Reads a request for the model of `manifest`.
pub fn prepare(manifest: &Arc<Manifest>, body: &Body) -> Result<Asked, ApiError> {
    let mut request = InferRequest {
        binary_by_default: true,
        ..InferRequest::default()
    };
    let mut sequence = Sequence {
        id: SequenceId::Number(0),
        start: false,
        end: false,
    };
    let mut tensors: Vec<Tensor<'_>> = Vec::new();
    let mut raw: Vec<Range<usize>> = Vec::new();
    let mut marks_final = false;
    let mut reader = Reader::new(body);
    while let Some((number, value)) = reader.field()? {
        match number {
            3 => request.id = Some(value.text()?).filter(|id| !id.is_empty()),
            4 => {
                let (key, value) = parameter(value.long()?)?;
                if key == FINAL_RESPONSE {
                    marks_final = value.as_bool().unwrap_or(false);
                } else {
                    request.parameter(&key, value, &mut sequence)?;
                }
            }
            5 => {
                at_most(tensors.len(), "inputs")?;
                tensors.push(tensor(value.long()?)?);
            }
            6 => {
                at_most(request.outputs.len(), "outputs")?;
                request.outputs.push(output(value.long()?)?);
            }
            7 => {
                at_most(raw.len(), "raw_input_contents")?;
                raw.push(value.long()?.range());
            }
            _ => {}
        }
    }
    request.in_sequence(sequence)?;
    let mut typed = Vec::new();
    if raw.is_empty() {
        for mut tensor in tensors {
            let start = body.len() + typed.len();
            if let Some(contents) = tensor.contents
                && let Some(datatype) = datatype_of(&tensor.input, manifest)
            {
                let name = &tensor.input.name;
                let mut out = Out::new(&mut typed, manifest);
                append(datatype, contents, &mut out).map_err(|mut error| {
                    error.text = format!("input {name:?}: {}", error.text);
                    error
                })?;
            }
            tensor.input.content = Content::Binary(start..body.len() + typed.len());
            request.inputs.push(tensor.input);
        }
    } else {
        if raw.len() != tensors.len() {
            return Err(ApiError::invalid(format!(
                "there are {} inputs and {} raw_input_contents: each input needs one",
                tensors.len(),
                raw.len()
            )));
        }
        for (mut tensor, range) in tensors.into_iter().zip(raw) {
            if tensor.contents.is_some_and(|contents| !contents.is_empty()) {
                return Err(ApiError::invalid(format!(
                    "input {:?}: it has contents, and there are raw_input_contents too: one or the other",
                    tensor.input.name
                )));
            }
            if let Some(said) = tensor.raw_bytes
                && said != range.len() as u64
            {
                return Err(ApiError::invalid(format!(
                    "input {:?}: its binary_data_size is {said}, and its raw_input_contents have {} bytes",
                    tensor.input.name,
                    range.len()
                )));
            }
            tensor.input.content = Content::Binary(range);
            request.inputs.push(tensor.input);
        }
    }
    Ok(Asked {
        prepared: checked(manifest, request, Bytes::new())?,
        typed,
        marks_final,
    })
}

/// What the model wants under this name, if it is what the request says. (If not, it is refused for that.)
fn datatype_of(input: &Input<'_>, manifest: &Manifest) -> Option<Datatype> {
    let mut specs = manifest.signatures.iter().flat_map(|s| &s.inputs);
    specs
        .find(|spec| spec.name == input.name && spec.datatype.name() == input.datatype)
        .map(|spec| spec.datatype)
}

/// An entry of a map of parameters.
fn parameter(mut entry: Reader<'_>) -> Result<(Cow<'_, str>, Scalar<'_>), ApiError> {
    let mut key = Cow::Borrowed("");
    let mut value = Scalar::Null;
    while let Some((number, field)) = entry.field()? {
        match number {
            1 => key = field.text()?,
            2 => {
                let mut choice = field.long()?;
                while let Some((number, field)) = choice.field()? {
                    value = match number {
                        1 => Scalar::Bool(field.number()? != 0),
                        // No parameter takes a negative number, or one with a fraction: neither is any value.
                        2 => u64::try_from(field.number()?.cast_signed())
                            .map_or(Scalar::Null, Scalar::Whole),
                        3 => Scalar::Text(field.text()?),
                        4 => Scalar::Null,
                        5 => Scalar::Whole(field.number()?),
                        _ => continue,
                    }
                }
            }
            _ => {}
        }
    }
    Ok((key, value))
}

fn tensor(mut reader: Reader<'_>) -> Result<Tensor<'_>, ApiError> {
    let mut input = Input {
        name: Cow::Borrowed(""),
        datatype: Cow::Borrowed(""),
        shape: Vec::with_capacity(4),
        content: Content::Binary(0..0),
    };
    let mut contents = None;
    let mut raw_bytes = None;
    // What is wrong is told with the tensor's name, which may stand further on.
    let mut problem: Option<String> = None;
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => input.name = value.text()?,
            2 => input.datatype = value.text()?,
            3 => value.numbers(|dimension| {
                let dimension = dimension.cast_signed();
                if dimension < 0 {
                    problem.get_or_insert_with(|| format!("{dimension} is no dimension"));
                } else if input.shape.len() == MAX_DIMENSIONS {
                    problem.get_or_insert_with(|| {
                        format!("its shape has more than {MAX_DIMENSIONS} dimensions")
                    });
                } else {
                    input.shape.push(dimension);
                }
                Ok(())
            })?,
            4 => {
                let (key, value) = parameter(value.long()?)?;
                match value.as_u64() {
                    Some(bytes) if key == "binary_data_size" => raw_bytes = Some(bytes),
                    _ => {
                        problem.get_or_insert_with(|| tensor_parameter_refused(&key));
                    }
                }
            }
            5 if contents.is_some() => {
                problem.get_or_insert_with(|| "its contents stand there twice".to_owned());
            }
            5 => contents = Some(value.long()?),
            _ => {}
        }
    }
    match problem {
        Some(problem) => Err(ApiError::invalid(format!(
            "input {:?}: {problem}",
            input.name
        ))),
        None => Ok(Tensor {
            input,
            contents,
            raw_bytes,
        }),
    }
}

fn output(mut reader: Reader<'_>) -> Result<Output<'_>, ApiError> {
    let mut output = Output::named(Cow::Borrowed(""));
    let mut problem = None;
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => output.name = value.text()?,
            2 => {
                let (key, value) = parameter(value.long()?)?;
                if let Err(wrong) = output.parameter(&key, &value) {
                    problem.get_or_insert(wrong);
                }
            }
            _ => {}
        }
    }
    // Every answer is binary here, whatever is wished.
    output.binary = None;
    match problem {
        Some(problem) => Err(ApiError::invalid(format!(
            "output {:?}: {problem}",
            output.name
        ))),
        None => Ok(output),
    }
}

/// Writes `InferTensorContents` in the binary form of `datatype`.
fn append(datatype: Datatype, mut contents: Reader<'_>, out: &mut Out<'_>) -> Result<(), ApiError> {
    let name = datatype.name();
    while let Some((number, value)) = contents.field()? {
        match (number, datatype) {
            (_, Datatype::Fp16) => {
                let text = "FP16 has no typed contents: send it as raw_input_contents";
                return Err(ApiError::invalid(text));
            }
            (1, Datatype::Bool) => value.numbers(|value| out.push(&[u8::from(value != 0)]))?,
            (2, Datatype::Int8) => {
                integers(value, name, out, |v| i8::try_from(v).map(i8::to_le_bytes))?
            }
            (2, Datatype::Int16) => {
                integers(value, name, out, |v| i16::try_from(v).map(i16::to_le_bytes))?
            }
            (2, Datatype::Int32) => {
                integers(value, name, out, |v| i32::try_from(v).map(i32::to_le_bytes))?
            }
            (4, Datatype::Uint8) => {
                integers(value, name, out, |v| u8::try_from(v).map(u8::to_le_bytes))?
            }
            (4, Datatype::Uint16) => {
                integers(value, name, out, |v| u16::try_from(v).map(u16::to_le_bytes))?
            }
            (4, Datatype::Uint32) => {
                integers(value, name, out, |v| u32::try_from(v).map(u32::to_le_bytes))?
            }
            (3, Datatype::Int64) | (5, Datatype::Uint64) => {
                value.numbers(|value| out.push(&value.to_le_bytes()))?;
            }
            (6, Datatype::Fp32) => match value {
                Value::Fixed32(value) => out.push(&value)?,
                value => floats(value, size_of::<f32>(), out)?,
            },
            (7, Datatype::Fp64) => match value {
                Value::Fixed64(value) => out.push(&value)?,
                value => floats(value, size_of::<f64>(), out)?,
            },
            (8, Datatype::Bytes) => {
                string(value, out)?;
            }
            (1..=8, _) => {
                return Err(ApiError::invalid(format!(
                    "its values are in the contents of another datatype than {name}"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}
