//! `PredictRequest` and `PredictResponse`: tensors, read where they lie and written once.
//!
//! `tensor_content` stays in the body until it is copied into the slot. Typed values are written in the same binary
//! form behind it; where there are fewer than the shape has, the last one stands for those that are missing (and zero,
//! or the empty string, if there is none).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use edgeward_models::Manifest;
use edgeward_models::manifest::{Datatype, MAX_DIMENSIONS, TensorSpec};
use prost::Message;

use super::messages::{DataType, ModelSpec, TensorShapeProto};
use super::signature;
use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::grpc::values::{Out, floats, integers, string};
use crate::api::oip::infer::{Prepared, checked};
use crate::api::oip::request::{Content, InferRequest, Input, Output, at_most};
use crate::api::protobuf::{Reader, Value, wrong_type};
use crate::serving::check_shape;
use crate::strings;

/// Which model a `PredictRequest` is for.
pub fn model_spec(body: &Body) -> Result<ModelSpec, ApiError> {
    let mut spec = ModelSpec::default();
    let mut reader = Reader::new(body);
    while let Some((number, value)) = reader.field()? {
        if number == 1 {
            let bytes = value.long()?.bytes();
            spec.merge(&*bytes).map_err(|_| wrong_type())?;
        }
    }
    Ok(spec)
}

/// Reads a `PredictRequest` for the model of `manifest`. The values that came typed belong behind the body.
pub fn prepare(
    manifest: &Arc<Manifest>,
    spec: &ModelSpec,
    body: &Body,
) -> Result<(Prepared, Vec<u8>), ApiError> {
    let wanted = signature(Some(&spec.signature_name), manifest);
    let mut signatures = manifest.signatures.iter();
    let known = signatures.find(|signature| Some(signature.name.as_str()) == wanted);
    let known = known.unwrap_or_else(|| manifest.default_signature());
    let mut request = InferRequest {
        signature: wanted.map(Cow::Borrowed),
        binary_by_default: true,
        ..InferRequest::default()
    };
    let mut typed = Vec::new();
    let mut reader = Reader::new(body);
    while let Some((number, value)) = reader.field()? {
        match number {
            2 => {
                at_most(request.inputs.len(), "inputs")?;
                let mut entry = value.long()?;
                let (mut name, mut tensor) = (Cow::Borrowed(""), None);
                while let Some((number, value)) = entry.field()? {
                    match number {
                        1 => name = value.text()?,
                        2 => tensor = Some(value.long()?),
                        _ => {}
                    }
                }
                let spec = known.inputs.iter().find(|spec| spec.name == name);
                let input = match tensor {
                    Some(tensor) => read(&name, tensor, spec, body.len(), manifest, &mut typed),
                    None => Err(ApiError::invalid("it has no tensor")),
                };
                let (datatype, shape, content) = input.map_err(|mut error| {
                    error.text = format!("input {name:?}: {}", error.text);
                    error
                })?;
                // The last of two entries with one name counts.
                request.inputs.retain(|input| input.name != name);
                request.inputs.push(Input {
                    name,
                    datatype: datatype.into(),
                    shape,
                    content,
                });
            }
            3 => {
                at_most(request.outputs.len(), "outputs")?;
                request.outputs.push(Output::named(value.text()?));
            }
            _ => {}
        }
    }
    Ok((checked(manifest, request, Bytes::new())?, typed))
}

/// Reads a `TensorProto`: its datatype, its shape and where its values are.
fn read(
    name: &str,
    mut tensor: Reader<'_>,
    spec: Option<&TensorSpec>,
    behind: usize,
    manifest: &Manifest,
    typed: &mut Vec<u8>,
) -> Result<(&'static str, Vec<i64>, Content), ApiError> {
    let all = tensor.clone();
    let mut datatype = None;
    let mut shape = Vec::new();
    let mut content = 0..0;
    while let Some((number, value)) = tensor.field()? {
        match number {
            1 => {
                let number = i32::try_from(value.number()?).unwrap_or(-1);
                let known = DataType::try_from(number).ok().and_then(DataType::datatype);
                datatype = Some(known.ok_or_else(|| {
                    ApiError::invalid(format!("its datatype, number {number}, is not known here"))
                })?);
            }
            2 => shape = read_shape(value.long()?)?,
            4 => content = value.long()?.range(),
            _ => {}
        }
    }
    let datatype = datatype.ok_or_else(|| ApiError::invalid("it has no dtype"))?;
    if !content.is_empty() {
        return Ok((datatype.name(), shape, Content::Binary(content)));
    }
    let start = typed.len();
    // A tensor that the model does not want is refused for that, without its values.
    if let Some(spec) = spec.filter(|spec| spec.name == name && spec.datatype == datatype) {
        check_shape(spec, &shape)?;
        let mut out = Out::new(typed, manifest);
        let last = append(datatype, all, &mut out)?;
        fill_up(datatype, &shape, start, last, &mut out)?;
    }
    let place = behind + start..behind + typed.len();
    Ok((datatype.name(), shape, Content::Binary(place)))
}

fn read_shape(mut reader: Reader<'_>) -> Result<Vec<i64>, ApiError> {
    let mut shape = Vec::with_capacity(4);
    while let Some((number, value)) = reader.field()? {
        match number {
            2 if shape.len() == MAX_DIMENSIONS => {
                let text = format!("its shape has more than {MAX_DIMENSIONS} dimensions");
                return Err(ApiError::invalid(text));
            }
            2 => {
                let mut dimension = value.long()?;
                let mut size = 0;
                while let Some((number, value)) = dimension.field()? {
                    if number == 1 {
                        size = value.number()?.cast_signed();
                    }
                }
                if size < 0 {
                    return Err(ApiError::invalid(format!("{size} is no dimension")));
                }
                shape.push(size);
            }
            3 if value.clone().number()? != 0 => {
                return Err(ApiError::invalid("its shape is not known"));
            }
            _ => {}
        }
    }
    Ok(shape)
}

/// Writes the typed values in the binary form of `datatype`; says how many there were.
fn append(
    datatype: Datatype,
    mut tensor: Reader<'_>,
    out: &mut Out<'_>,
) -> Result<usize, ApiError> {
    let name = datatype.name();
    let start = out.written();
    let mut texts = 0;
    while let Some((number, value)) = tensor.field()? {
        match (number, datatype) {
            (5, Datatype::Fp32) => match value {
                Value::Fixed32(value) => out.push(&value)?,
                value => floats(value, size_of::<f32>(), out)?,
            },
            (6, Datatype::Fp64) => match value {
                Value::Fixed64(value) => out.push(&value)?,
                value => floats(value, size_of::<f64>(), out)?,
            },
            (7, Datatype::Int8) => {
                integers(value, name, out, |v| i8::try_from(v).map(i8::to_le_bytes))?
            }
            (7, Datatype::Int16) => {
                integers(value, name, out, |v| i16::try_from(v).map(i16::to_le_bytes))?
            }
            (7, Datatype::Int32) => {
                integers(value, name, out, |v| i32::try_from(v).map(i32::to_le_bytes))?
            }
            (7, Datatype::Uint8) => {
                integers(value, name, out, |v| u8::try_from(v).map(u8::to_le_bytes))?
            }
            (7 | 13, Datatype::Uint16) | (13, Datatype::Fp16) => {
                integers(value, name, out, |v| u16::try_from(v).map(u16::to_le_bytes))?;
            }
            (8, Datatype::Bytes) => {
                string(value, out)?;
                texts += 1;
            }
            (10, Datatype::Int64) | (17, Datatype::Uint64) => {
                value.numbers(|value| out.push(&value.to_le_bytes()))?;
            }
            (11, Datatype::Bool) => value.numbers(|value| out.push(&[u8::from(value != 0)]))?,
            (16, Datatype::Uint32) => {
                integers(value, name, out, |v| u32::try_from(v).map(u32::to_le_bytes))?
            }
            (5..=17, _) => {
                return Err(ApiError::invalid(format!(
                    "its values are in the field of another datatype than {name}"
                )));
            }
            _ => {}
        }
    }
    Ok(match datatype.size() {
        Some(size) => (out.written() - start) / size,
        None => texts,
    })
}

/// Repeats the last of the values, which begin at `start` and are `count`, until there are as many as the shape has.
fn fill_up(
    datatype: Datatype,
    shape: &[i64],
    start: usize,
    count: usize,
    out: &mut Out<'_>,
) -> Result<(), ApiError> {
    let expected = shape.iter().try_fold(1usize, |all, dimension| {
        all.checked_mul(usize::try_from(*dimension).ok()?)
    });
    let expected = expected.ok_or_else(|| ApiError::invalid("its shape is absurd"))?;
    if count > expected {
        let text = format!("it has {count} values, and its shape has {expected}");
        return Err(ApiError::invalid(text));
    }
    let last = match datatype.size() {
        Some(size) if count == 0 => vec![0; size],
        Some(size) => out.since(out.written() - size).to_vec(),
        None => {
            let last = strings::elements(out.since(start)).last();
            let text = last.and_then(Result::ok).unwrap_or_default();
            [&(text.len() as u32).to_le_bytes(), text].concat()
        }
    };
    for _ in count..expected {
        out.push(&last)?;
    }
    Ok(())
}

/// The beginning of a `TensorProto`.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(enumeration = "DataType", tag = "1")]
    pub dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub tensor_shape: Option<TensorShapeProto>,
}

/// The keys of fields: number and type.
const TENSOR_CONTENT: u8 = 4 << 3 | 2;
const STRING_VAL: u8 = 8 << 3 | 2;
const KEY: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3 | 2;
const OUTPUTS: u8 = 1 << 3 | 2;

/// Writes an output as an entry of a `PredictResponse`.
pub fn write(spec: &TensorSpec, shape: &[i64], values: &[u8], out: &mut Vec<u8>) {
    let head = TensorProto {
        dtype: DataType::from(spec.datatype).into(),
        tensor_shape: Some(shape.into()),
    };
    let is_string = spec.datatype == Datatype::Bytes;
    let texts = || strings::elements(values).map(Result::unwrap_or_default);
    let values_length = match is_string {
        true => texts().map(|text| field_length(text.len())).sum(),
        false => field_length(values.len()),
    };
    let tensor = head.encoded_len() + values_length;
    let name = spec.name.as_bytes();
    begin_field(
        OUTPUTS,
        field_length(name.len()) + field_length(tensor),
        out,
    );
    begin_field(KEY, name.len(), out);
    out.extend_from_slice(name);
    begin_field(VALUE, tensor, out);
    // Fails only where there is no room, and a vector makes room.
    let _ = head.encode(out);
    if is_string {
        for text in texts() {
            begin_field(STRING_VAL, text.len(), out);
            out.extend_from_slice(text);
        }
    } else {
        begin_field(TENSOR_CONTENT, values.len(), out);
        out.extend_from_slice(values);
    }
}

/// The bytes of a field that is `length` bytes long.
fn field_length(length: usize) -> usize {
    1 + prost::length_delimiter_len(length) + length
}

fn begin_field(key: u8, length: usize, out: &mut Vec<u8>) {
    out.push(key);
    let _ = prost::encode_length_delimiter(length, out);
}
