//! The answer to an infer request: outputs as JSON, as binary, or mixed.
//!
//! JSON cannot write NaN, infinities and bytes that are no text. An output that holds one and was not asked for in
//! binary form is answered 422, with a text that says so: an invented `null` or an unreadable token would be worse.

use std::sync::Arc;

use bytes::Bytes;
use edgeward_models::Manifest;
use edgeward_models::manifest::{Signature, TensorSpec};
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::classes::{self, Given};
use super::request::InferRequest;
use crate::api::error::ApiError;
use crate::api::numbers;
use crate::worker::Answer;

/// Where the JSON of a binary message ends (the extension's own header).
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// What the caller wants back.
#[derive(Debug, Clone)]
pub struct Wish {
    pub manifest: Arc<Manifest>,
    /// Index into the manifest.
    pub signature: usize,
    pub id: Option<String>,
    pub outputs: Vec<Wished>,
}

/// An output that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wished {
    /// Into the signature's outputs.
    pub index: usize,
    pub binary: bool,
    /// Only so many of its largest values, as text ([`super::classes`]).
    pub classes: Option<usize>,
}

impl Wished {
    pub const fn whole(index: usize, binary: bool) -> Self {
        Self {
            index,
            binary,
            classes: None,
        }
    }
}

impl Wish {
    pub fn signature(&self) -> &Signature {
        &self.manifest.signatures[self.signature]
    }
}

/// Which outputs of the signature a request wants, and how.
pub fn wished_outputs(
    request: &InferRequest<'_>,
    signature: &Signature,
) -> Result<Vec<Wished>, ApiError> {
    if request.outputs.is_empty() {
        return Ok((0..signature.outputs.len())
            .map(|index| Wished::whole(index, request.binary_by_default))
            .collect());
    }
    let mut wished: Vec<Wished> = Vec::with_capacity(request.outputs.len());
    for output in &request.outputs {
        let Some(index) = signature.outputs.iter().position(|o| o.name == output.name) else {
            return Err(ApiError::invalid(format!(
                "output {:?} is not one of this model's: {}",
                output.name,
                names(&signature.outputs)
            )));
        };
        if wished.iter().any(|seen| seen.index == index) {
            return Err(ApiError::invalid(format!(
                "output {:?} is asked for twice",
                output.name
            )));
        }
        let datatype = signature.outputs[index].datatype;
        if output.classes.is_some() && !classes::are_ordered(datatype) {
            return Err(ApiError::invalid(format!(
                "output {:?}: parameter classification is for numbers, and this is {}",
                output.name,
                datatype.name()
            )));
        }
        wished.push(Wished {
            index,
            binary: output.binary.unwrap_or(request.binary_by_default),
            classes: output.classes,
        });
    }
    Ok(wished)
}

/// Tensor names for an error text.
pub fn names(tensors: &[TensorSpec]) -> String {
    let names: Vec<_> = tensors.iter().map(|t| format!("{:?}", t.name)).collect();
    names.join(", ")
}

/// Whether so many values become text that other requests should not wait for it.
pub fn is_long(answer: &Answer, wish: &Wish) -> bool {
    const LONG: usize = 128 << 10;
    let json = wish.outputs.iter().filter(|wished| !wished.binary);
    json.map(|wished| answer.output(wished.index).len())
        .sum::<usize>()
        > LONG
}

/// Builds the whole answer.
pub fn build(answer: &Answer, wish: &Wish) -> Result<Response<Full<Bytes>>, ApiError> {
    let signature = wish.signature();
    let outputs = wish.outputs.iter().map(|wished| {
        let spec = &signature.outputs[wished.index];
        Tensor {
            name: &spec.name,
            given: classes::given(answer, spec, wished),
            binary: wished.binary,
        }
    });
    let (message, json_length) = message(wish, &outputs.collect::<Vec<_>>())?;
    let mut response = Response::new(Full::new(Bytes::from(message)));
    let headers = response.headers_mut();
    match json_length {
        None => {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        Some(length) => {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/octet-stream"),
            );
            headers.insert(HEADER_LENGTH, HeaderValue::from(length));
        }
    }
    Ok(response)
}

struct Tensor<'a> {
    name: &'a str,
    given: Given<'a>,
    binary: bool,
}

/// The body, and where its JSON ends if something follows.
fn message(wish: &Wish, outputs: &[Tensor<'_>]) -> Result<(Vec<u8>, Option<usize>), ApiError> {
    let binary_bytes = |t: &Tensor<'_>| {
        if t.binary {
            t.given.bytes.len()
        } else {
            t.given.bytes.len() * 3
        }
    };
    let mut out = Vec::with_capacity(256 + outputs.iter().map(binary_bytes).sum::<usize>());
    out.extend_from_slice(b"{\"model_name\":");
    push_json(&mut out, &wish.manifest.model);
    out.extend_from_slice(b",\"model_version\":");
    push_json(&mut out, &wish.manifest.version);
    if let Some(id) = &wish.id {
        out.extend_from_slice(b",\"id\":");
        push_json(&mut out, id);
    }
    out.extend_from_slice(b",\"outputs\":[");
    for (position, output) in outputs.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"name\":");
        push_json(&mut out, output.name);
        out.extend_from_slice(b",\"datatype\":");
        push_json(&mut out, output.given.datatype.name());
        out.extend_from_slice(b",\"shape\":");
        push_json(&mut out, &output.given.shape);
        if output.binary {
            out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            push_json(&mut out, &output.given.bytes.len());
            out.extend_from_slice(b"}}");
        } else {
            out.extend_from_slice(b",\"data\":");
            let Given {
                datatype, bytes, ..
            } = &output.given;
            numbers::write(*datatype, bytes, &mut out).map_err(|error| {
                ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    format!(
                        "output {:?}: {error}, which JSON cannot write: ask for it with \
                         \"parameters\":{{\"binary_data\":true}}",
                        output.name
                    ),
                )
            })?;
            out.push(b'}');
        }
    }
    out.extend_from_slice(b"]}");
    let any_binary = outputs.iter().any(|output| output.binary);
    let json_length = any_binary.then_some(out.len());
    for output in outputs.iter().filter(|output| output.binary) {
        out.extend_from_slice(&output.given.bytes);
    }
    Ok((out, json_length))
}

/// Writing into memory does not fail, and the values here are strings, numbers and lists of them.
fn push_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeward_models::manifest::Datatype;

    fn spec(name: &str, datatype: Datatype) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: vec![2],
            quantization: None,
        }
    }

    fn wish(id: Option<&str>) -> Wish {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../models/samples/digits-1.0.0/manifest.json"
        );
        let manifest = Manifest::parse(&std::fs::read(path).expect("sample")).expect("manifest");
        Wish {
            manifest: Arc::new(manifest),
            signature: 0,
            id: id.map(str::to_owned),
            outputs: Vec::new(),
        }
    }

    fn tensor<'a>(
        spec: &'a TensorSpec,
        shape: &'a [i64],
        bytes: &'a [u8],
        binary: bool,
    ) -> Tensor<'a> {
        let given = Given {
            datatype: spec.datatype,
            shape: shape.into(),
            bytes: bytes.into(),
        };
        Tensor {
            name: &spec.name,
            given,
            binary,
        }
    }

    #[test]
    fn binary_and_json_outputs_share_one_message() {
        let bytes: Vec<u8> = [0.5f32, -1.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let (float, int) = (spec("p\"q", Datatype::Fp32), spec("n", Datatype::Int8));
        let tensor = |spec, bytes, binary| tensor(spec, &[2], bytes, binary);
        let outputs = [
            tensor(&float, &bytes[..], false),
            tensor(&int, &[1, 0xff], true),
        ];
        let (body, json_length) = message(&wish(Some("a\nb")), &outputs).expect("message");
        let json_length = json_length.expect("binary");
        assert_eq!(&body[json_length..], [1, 0xff]);
        let json: serde_json::Value = serde_json::from_slice(&body[..json_length]).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({"model_name": "digits", "model_version": "1.0.0", "id": "a\nb", "outputs": [
                {"name": "p\"q", "datatype": "FP32", "shape": [2], "data": [0.5, -1.0]},
                {"name": "n", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}},
            ]})
        );
        let (body, json_length) = message(&wish(None), &outputs[..1]).expect("message");
        assert_eq!(json_length, None);
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert!(json.get("id").is_none());
    }

    #[test]
    fn a_nan_is_refused_as_json_and_sent_as_binary() {
        let float = spec("p", Datatype::Fp32);
        let bytes = f32::NAN.to_le_bytes();
        let tensor = |binary| tensor(&float, &[1], &bytes, binary);
        let error = message(&wish(None), &[tensor(false)]).expect_err("NaN");
        assert_eq!(error.status, 422);
        assert!(error.text.contains("output \"p\"") && error.text.contains("binary_data"));
        assert!(message(&wish(None), &[tensor(true)]).is_ok());
    }
}
