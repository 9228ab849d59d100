//! POST …/infer: from a body to a slot, from a slot to an answer.
//!
//! The order bounds what a caller can cost: headers, then the model (404 before a body is read), then the
//! body within its limits, then its JSON, then names, datatypes, shapes and sizes against the signature,
//! and only then a slot. Values go straight into the slot: binary ones are copied once, JSON ones parsed in
//! place. Dropping the future (the caller hung up) gives the slot back and cancels what has not begun.
//!
//! `Inference-Header-Content-Length` says where the JSON ends and the binary tensors begin; 0 means that
//! the whole body is the one input of a model with one input and at most one free dimension (its one string, where
//! the input is BYTES), and every output comes back binary. `Edgeward-Timeout-Ms` sets the deadline, as the parameter `timeout` does (in
//! microseconds); the shorter one counts, from the arrival of the headers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeward_models::Manifest;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};

use super::inputs::{self, Fill, Source};
use super::reply::{self, HEADER_LENGTH, Wish, Wished};
use super::request::InferRequest;
use crate::api::body::{self, Body};
use crate::api::coding::Coding;
use crate::api::connection::Shared;
use crate::api::destination::{self, Destination};
use crate::api::error::ApiError;
use crate::config::Limits;
use crate::serving::{Answer, Request, Sequence, ServeError, Served, StickyKey};
use crate::watch::inference::Inference;

/// Milliseconds that the caller gives the whole request.
pub const TIMEOUT_HEADER: &str = "edgeward-timeout-ms";

/// Parsing more JSON than this, or copying more bytes than [`LONG_COPY`], happens on a thread of its own:
/// other callers share ours.
pub const LONG_JSON: usize = 256 << 10;
const LONG_COPY: usize = 8 << 20;

/// Answers one request that arrived at `arrival`.
pub async fn infer(
    mut destination: Destination<'_>,
    shared: &Shared,
    arrival: Instant,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    inference: &mut Inference,
) -> Result<Response<Full<Bytes>>, ApiError> {
    inference.admit()?;
    let limits = &shared.config.limits;
    let json_length = number_header(headers, HEADER_LENGTH)?;
    let resolve = || destination.resolve();
    let found = gathered(resolve, shared, headers, incoming, inference).await?;
    let (mut served, body, asked) = found;
    let time = asked.unwrap_or(limits.default_deadline());
    let prepare = |served: &Served, body| {
        let manifest = Arc::clone(served.manifest());
        on_time(arrival, time, prepare_in_turn(manifest, body, json_length))
    };
    let (mut prepared, mut body) = prepare(&served, body).await?;
    if let Some(other) = destination.stick(prepared.key(), &served)? {
        served = other;
        (prepared, body) = prepare(&served, body).await?;
    }
    let put = put(&served, prepared, body, asked, arrival, limits, inference);
    let (answer, wish, timeout) = put.await?;
    if !reply::is_long(&answer, &wish) {
        return reply::build(&answer, &wish);
    }
    let built = on_own_thread(move || reply::build(&answer, &wish));
    on_time(arrival, timeout, built).await
}

/// Reads the whole body of a request: the version that it is for, the body, and the time that its headers give it.
pub async fn gathered(
    resolve: impl Fn() -> Result<Served, ApiError>,
    shared: &Shared,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    inference: &mut Inference,
) -> Result<(Served, Body, Option<Duration>), ApiError> {
    let limits = &shared.config.limits;
    // Asked twice: an unknown model is told before its body is read, and a slow body does not keep a version
    // alive that was replaced meanwhile.
    let most = {
        let served = resolve()?;
        inference.about(served.manifest());
        most_body_bytes(served.manifest())
    };
    let limit = if most < limits.max_body_bytes {
        body::Limit {
            bytes: most,
            whose: "this model",
        }
    } else {
        body::Limit {
            bytes: limits.max_body_bytes,
            whose: "this device",
        }
    };
    body::check_transfer(headers)?;
    let coding = Coding::of_body(headers)?;
    let asked = asked_timeout(headers, limits)?;
    let patience = Duration::from_millis(limits.body_timeout_ms);
    let body_time = asked.map_or(patience, |asked| asked.min(patience));
    let body = body::gather(incoming, coding, limit, &shared.bodies, body_time)
        .await
        .map_err(|error| match asked {
            // The caller's own deadline, not ours, cut the body off.
            Some(asked) if error.status == StatusCode::REQUEST_TIMEOUT && asked < patience => {
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, error.text)
            }
            _ => error,
        })?;

    Ok((resolve()?, body, asked))
}

/// Puts a prepared request to its version; also tells the time that it was given in all. `asked`: what its headers
/// give it.
pub async fn put(
    served: &Served,
    prepared: Prepared,
    body: Body,
    asked: Option<Duration>,
    arrival: Instant,
    limits: &Limits,
    inference: &mut Inference,
) -> Result<(Answer, Wish, Duration), ApiError> {
    let Prepared {
        json,
        timeout,
        bytes,
        fills,
        wish,
        sequence,
        sticky_key: _,
    } = prepared;
    inference.about(served.manifest());
    inference.read(wish.id.as_deref(), body.len());
    let timeout = match asked.into_iter().chain(timeout).min() {
        None => limits.default_deadline(),
        Some(timeout) => within_limit(timeout, limits)?,
    };
    let request = served
        .begin_in(sequence.as_ref(), wish.signature, bytes, arrival + timeout)
        .await?;
    let filled = fill(request, fills, json, body, &wish);
    let (request, fills) = on_time(arrival, timeout, filled).await?;
    let answer = request.infer().await.map_err(|error| match error {
        // The one thing that differs from requests that the golden vectors proved to work.
        ServeError::Failed { model, reason } if inputs::has_free_dimensions(wish.signature()) => {
            ApiError::invalid(format!(
                "model {model} does not run with {}: {reason}",
                inputs::shapes(wish.signature(), &fills)
            ))
        }
        error => error.into(),
    })?;
    let outputs = wish.outputs.iter();
    let bytes = outputs
        .map(|wished| answer.output(wished.index).len())
        .sum();
    inference.answered(answer.share_of_invoke(), bytes);
    Ok((answer, wish, timeout))
}

/// More than any reasonable request for this model: JSON takes up to a dozen bytes per byte of a tensor.
fn most_body_bytes(manifest: &Manifest) -> u64 {
    const JSON_PER_BYTE: u64 = 16;
    const HEADER: u64 = 64 << 10;
    manifest
        .request_bytes()
        .saturating_mul(JSON_PER_BYTE)
        .saturating_add(HEADER)
}

/// What may wait for a thread of its own is given up at the deadline like anything else.
pub async fn on_time<T>(
    arrival: Instant,
    timeout: Duration,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let deadline = (arrival + timeout).into();
    let late = ServeError::Deadline(timeout.as_millis() as u64);
    let done = tokio::time::timeout_at(deadline, work).await;
    done.unwrap_or_else(|_| Err(late.into()))
}

/// A header that holds a whole number.
pub fn number_header(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, ApiError> {
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
pub struct Prepared {
    pub json: Bytes,
    timeout: Option<Duration>,
    /// Of all inputs.
    pub bytes: usize,
    /// In the signature's order.
    pub fills: Vec<Fill>,
    pub wish: Wish,
    sequence: Option<Sequence>,
    sticky_key: Option<StickyKey>,
}

impl Prepared {
    /// What requests with it stick together by.
    pub fn key(&self) -> Option<StickyKey> {
        let sequence = || self.sequence.as_ref().map(destination::sequence_key);
        self.sticky_key.or_else(sequence)
    }
}

/// [`prepare`], on a thread of its own where there is much JSON.
async fn prepare_in_turn(
    manifest: Arc<Manifest>,
    body: Body,
    json_length: Option<u64>,
) -> Result<(Prepared, Body), ApiError> {
    let json = json_length.unwrap_or(u64::MAX).min(body.len() as u64);
    if json <= LONG_JSON as u64 {
        return Ok((prepare(&manifest, &body, json_length)?, body));
    }
    on_own_thread(move || Ok((prepare(&manifest, &body, json_length)?, body))).await
}

/// Reads a whole body for the model of `manifest`. `json_length`: where its JSON ends, if a header says so.
pub fn prepare(
    manifest: &Arc<Manifest>,
    body: &Body,
    json_length: Option<u64>,
) -> Result<Prepared, ApiError> {
    if json_length == Some(0) {
        let signature = manifest.default_signature();
        let fill = inputs::raw(signature, body.len())?;
        let outputs = (0..signature.outputs.len()).map(|index| Wished::whole(index, true));
        return Ok(Prepared {
            json: Bytes::new(),
            timeout: None,
            bytes: fill.bytes,
            fills: vec![fill],
            wish: Wish {
                manifest: Arc::clone(manifest),
                signature: 0,
                id: None,
                outputs: outputs.collect(),
            },
            sequence: None,
            sticky_key: None,
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
    checked(manifest, request, json.clone())
}

/// A request that was read from `json`, against the model of `manifest`. Its binary parts follow the JSON.
pub fn checked(
    manifest: &Arc<Manifest>,
    request: InferRequest<'_>,
    json: Bytes,
) -> Result<Prepared, ApiError> {
    if let Some(name) = &request.model
        && *name != manifest.model.as_str()
    {
        return Err(ApiError::invalid(format!(
            "model_name is {name:?}, and the path says {:?}",
            manifest.model.as_str()
        )));
    }
    let index = match &request.signature {
        None => 0,
        Some(name) => {
            let found = manifest.signatures.iter().position(|s| s.name == *name);
            found.ok_or_else(|| {
                let known = manifest.signatures.iter().map(|s| s.name.as_str());
                ApiError::invalid(format!(
                    "parameter signature_name: this model has no {name:?} but {}",
                    known.collect::<Vec<_>>().join(", ")
                ))
            })?
        }
    };
    let signature = &manifest.signatures[index];
    let outputs = reply::wished_outputs(&request, signature)?;
    let (fills, bytes) = inputs::matched(&request, signature, &json)?;
    let timeout = request.timeout;
    let (sequence, sticky_key) = (request.sequence, request.sticky_key);
    let wish = Wish {
        manifest: Arc::clone(manifest),
        signature: index,
        id: request.id.map(Cow::into_owned),
        outputs,
    };
    Ok(Prepared {
        json,
        timeout,
        bytes,
        fills,
        wish,
        sequence,
        sticky_key,
    })
}

/// Brings all inputs into the slot.
async fn fill(
    mut request: Request,
    fills: Vec<Fill>,
    json: Bytes,
    body: Body,
    wish: &Wish,
) -> Result<(Request, Vec<Fill>), ApiError> {
    let any_json = fills.iter().any(|f| matches!(f.source, Source::Json(_)));
    if !(any_json && json.len() > LONG_JSON) && body.len() <= LONG_COPY {
        inputs::write(&mut request, wish.signature(), &fills, &json, &body)?;
        return Ok((request, fills));
    }
    let wish = wish.clone();
    on_own_thread(move || {
        inputs::write(&mut request, wish.signature(), &fills, &json, &body)?;
        Ok((request, fills))
    })
    .await
}

pub async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request could not be worked on",
        ))
    })
}
