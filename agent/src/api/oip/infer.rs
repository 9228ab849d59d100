//! POST …/infer: from a body to a slot, from a slot to an answer.
//!
//! The order bounds what a caller can cost: headers, then the model (404 before a body is read), then the
//! body within its limits, then its JSON, then names, datatypes, shapes and sizes against the signature,
//! and only then a slot. Values go straight into the slot: binary ones are copied once, JSON ones parsed in
//! place. Dropping the future (the caller hung up) gives the slot back and cancels what has not begun.
//!
//! `Inference-Header-Content-Length` says where the JSON ends and the binary tensors begin; 0 means that
//! the whole body is the one input of a model with one input and at most one free dimension, and every
//! output comes back binary. `Edgeward-Timeout-Ms` sets the deadline, as the parameter `timeout` does (in
//! microseconds); the shorter one counts, from the arrival of the headers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeward_models::manifest::{Datatype, Signature, TensorSpec, byte_size};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};

use super::reply::{self, HEADER_LENGTH, Wish, names};
use super::request::{Content, InferRequest};
use crate::api::body::{self, Body};
use crate::api::error::ApiError;
use crate::api::numbers;
use crate::config::Limits;
use crate::serving::{Request, Served, check_shape};

/// Milliseconds that the caller gives the whole request.
pub const TIMEOUT_HEADER: &str = "edgeward-timeout-ms";

/// Parsing more JSON than this, or copying more bytes than [`LONG_COPY`], happens on a thread of its own:
/// other callers share ours.
const LONG_JSON: usize = 256 << 10;
const LONG_COPY: usize = 8 << 20;

/// Answers one request that arrived at `arrival`.
pub async fn infer(
    served: Served,
    limits: &Limits,
    arrival: Instant,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Response<Full<Bytes>>, ApiError> {
    if let Some(coding) = headers.get(hyper::header::CONTENT_ENCODING)
        && coding != "identity"
    {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "compressed bodies are not taken: send it without Content-Encoding",
        ));
    }
    let json_length = number_header(headers, HEADER_LENGTH)?;
    let asked = asked_timeout(headers, limits)?;
    let patience = Duration::from_millis(limits.body_timeout_ms);
    let body_time = asked.map_or(patience, |asked| asked.min(patience));
    let body = body::gather(incoming, limits.max_body_bytes, body_time)
        .await
        .map_err(|error| match asked {
            // The caller's own deadline, not ours, cut the body off.
            Some(asked) if error.status == StatusCode::REQUEST_TIMEOUT && asked < patience => {
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, error.text)
            }
            _ => error,
        })?;

    let prepared = prepare(&served, &body, json_length)?;
    let timeout = match (asked, prepared.timeout) {
        (None, None) => limits.default_deadline(),
        (a, b) => {
            let timeout = a.into_iter().chain(b).min().unwrap_or_default();
            within_limit(timeout, limits)?
        }
    };
    let deadline = arrival + timeout;
    let request = served
        .begin(prepared.signature, prepared.bytes, deadline)
        .await?;
    let request = fill(request, prepared.fills, prepared.json, body).await?;
    let answer = request.infer().await?;

    let signature = &served.manifest().signatures[prepared.signature];
    if !reply::is_long(&answer, &prepared.wish) {
        return reply::build(&answer, signature, &prepared.wish);
    }
    let signature = signature.clone();
    on_own_thread(move || reply::build(&answer, &signature, &prepared.wish)).await
}

/// A header that holds a whole number.
fn number_header(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let number = value
        .to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok());
    match (number, values.next()) {
        (Some(number), None) => Ok(Some(number)),
        (None, _) => Err(ApiError::invalid(format!(
            "the header {name} must be a whole number of at least 0"
        ))),
        (_, Some(_)) => Err(ApiError::invalid(format!(
            "the header {name} stands there twice"
        ))),
    }
}

fn asked_timeout(headers: &HeaderMap, limits: &Limits) -> Result<Option<Duration>, ApiError> {
    let Some(millis) = number_header(headers, TIMEOUT_HEADER)? else {
        return Ok(None);
    };
    if millis == 0 {
        return Err(ApiError::invalid(format!(
            "the header {TIMEOUT_HEADER} must be at least 1"
        )));
    }
    within_limit(Duration::from_millis(millis), limits).map(Some)
}

fn within_limit(timeout: Duration, limits: &Limits) -> Result<Duration, ApiError> {
    if timeout > limits.max_deadline() {
        return Err(ApiError::invalid(format!(
            "a timeout of {timeout:?} is longer than this device allows ({:?})",
            limits.max_deadline()
        )));
    }
    Ok(timeout)
}

/// A request that fits its model, before it has a slot.
struct Prepared {
    /// Index into the manifest.
    signature: usize,
    /// Of all inputs.
    bytes: usize,
    /// In the signature's order.
    fills: Vec<Fill>,
    json: Bytes,
    timeout: Option<Duration>,
    wish: Wish,
}

/// How one input gets into its place.
#[derive(Debug, PartialEq)]
struct Fill {
    name: String,
    datatype: Datatype,
    shape: Vec<i64>,
    /// Binary: a place in the whole body.
    content: Content,
}

fn prepare(served: &Served, body: &Body, json_length: Option<u64>) -> Result<Prepared, ApiError> {
    let manifest = served.manifest();
    let wish = |id, outputs| Wish {
        model: manifest.model.to_string(),
        version: manifest.version.to_string(),
        id,
        outputs,
    };
    if json_length == Some(0) {
        let signature = manifest.default_signature();
        let fill = raw_input(signature, body.len())?;
        let outputs = (0..signature.outputs.len()).map(|index| (index, true));
        return Ok(Prepared {
            signature: 0,
            bytes: body.len(),
            fills: vec![fill],
            json: Bytes::new(),
            timeout: None,
            wish: wish(None, outputs.collect()),
        });
    }
    let json_length = match json_length {
        None => body.len(),
        Some(length) => usize::try_from(length)
            .ok()
            .filter(|length| *length <= body.len())
            .ok_or_else(|| {
                ApiError::invalid(format!(
                    "the header {HEADER_LENGTH} says {length}, and the body has {} bytes",
                    body.len()
                ))
            })?,
    };
    let json = body.head(json_length).unwrap_or_default();
    let request = InferRequest::parse(&json, body.len() - json_length)?;
    let index = match &request.signature {
        None => 0,
        Some(name) => {
            let found = manifest.signatures.iter().position(|s| s.name == *name);
            found.ok_or_else(|| {
                let known: Vec<_> = manifest
                    .signatures
                    .iter()
                    .map(|s| s.name.as_str())
                    .collect();
                ApiError::invalid(format!(
                    "parameter signature_name: this model has no {name:?} but {}",
                    known.join(", ")
                ))
            })?
        }
    };
    let signature = &manifest.signatures[index];
    let outputs = reply::wished_outputs(&request, signature)?;
    let (fills, bytes) = match_inputs(&request, signature, json_length)?;
    let timeout = request.timeout;
    let wish = wish(request.id.map(|id| id.into_owned()), outputs);
    Ok(Prepared {
        signature: index,
        bytes,
        fills,
        json,
        timeout,
        wish,
    })
}

/// Finds each input of the signature in the request and checks it; returns the bytes of all.
fn match_inputs(
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
            name: name.clone(),
            datatype: spec.datatype,
            shape: input.shape.clone(),
            content,
        });
    }
    Ok((fills, total))
}

fn refuse_unsupported(spec: &TensorSpec) -> Result<(), ApiError> {
    match spec.datatype {
        Datatype::Fp16 | Datatype::Bytes => Err(ApiError::invalid(format!(
            "input {:?}: {} is not supported by this server",
            spec.name,
            spec.datatype.name()
        ))),
        _ => Ok(()),
    }
}

/// The raw form: the body is the input.
fn raw_input(signature: &Signature, length: usize) -> Result<Fill, ApiError> {
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
        name: name.clone(),
        datatype: spec.datatype,
        shape,
        content: Content::Binary(0..length),
    })
}

/// Brings all inputs into the slot.
async fn fill(
    mut request: Request,
    fills: Vec<Fill>,
    json: Bytes,
    body: Body,
) -> Result<Request, ApiError> {
    let any_json = fills.iter().any(|f| matches!(f.content, Content::Json(_)));
    if !(any_json && json.len() > LONG_JSON) && body.len() <= LONG_COPY {
        fill_now(&mut request, &fills, &json, &body)?;
        return Ok(request);
    }
    on_own_thread(move || {
        fill_now(&mut request, &fills, &json, &body)?;
        Ok(request)
    })
    .await
}

fn fill_now(
    request: &mut Request,
    fills: &[Fill],
    json: &[u8],
    body: &Body,
) -> Result<(), ApiError> {
    for fill in fills {
        let place = request.input(&fill.shape)?;
        match &fill.content {
            Content::Json(range) => {
                let text = json.get(range.clone()).unwrap_or_default();
                numbers::read(fill.datatype, text, place).map_err(|error| {
                    ApiError::invalid(format!(
                        "input {:?} ({} {:?}): {error}",
                        fill.name,
                        fill.datatype.name(),
                        fill.shape
                    ))
                })?;
            }
            Content::Binary(range) => {
                if range.len() != place.len() || !body.copy_to(range.start, place) {
                    return Err(ApiError::invalid(format!(
                        "input {:?}: the body does not hold its bytes",
                        fill.name
                    )));
                }
            }
        }
    }
    Ok(())
}

async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request could not be worked on",
        ))
    })
}
