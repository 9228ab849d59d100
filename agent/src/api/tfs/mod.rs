//! TensorFlow Serving's own protocol, for its clients: REST under `/v1/models` and, over gRPC,
//! `tensorflow.serving.PredictionService` and `ModelService`.
//!
//! | path | answer |
//! |---|---|
//! | GET `/v1/models/M[/versions/V\|/labels/L]` | the version's state, or those of all that are served: `AVAILABLE`, or `LOADING` while its worker is not there |
//! | GET `/v1/models/M[/versions/V\|/labels/L]/metadata` | signatures with their tensors |
//! | POST `/v1/models/M[/versions/V\|/labels/L]:predict` | `instances` (a value or an object for each row) → `predictions`; `inputs` (a value, or an object of whole tensors) → `outputs` |
//! | POST `…:classify`, `…:regress` | `examples` with their features (and a `context` for all) → `results` |
//!
//! | gRPC | |
//! |---|---|
//! | `PredictionService` | `Predict` (values as `tensor_content` or typed, the last typed one repeated; answers as `tensor_content`, strings as `string_val`), `GetModelMetadata` |
//! | `ModelService` | `GetModelStatus`; `HandleReloadConfigRequest` is refused, since versions are the fleet's |
//!
//! **Versions** are numbers here: a version's number is its release, which `fleetctl` counts up with each push (the
//! model's metadata and `fleetctl status` tell it); 0 names none, as clients of OpenVINO Model Server send
//! it; a path may also name the semantic version. **Labels** are those of the model's routing; one that there is
//! not is answered 404. A request that names none goes where [`crate::api::destination`] says; over HTTP the
//! header `Edgeward-Model-Version` tells which version answered. **Signatures**: without `signature_name`, or with `serving_default` where no signature is called so, the
//! model's first one is meant.
//!
//! What differs from TensorFlow Serving: NaN and infinities are no JSON and refused as over [`crate::api::oip`] (422
//! in an answer; gRPC carries them); a malformed path is 404, not 400; rows of different lengths, members that are
//! not known and numbers outside their datatype are refused by name. A list of scores without classes is labelled
//! with its indices. `Classify` and `Regress` over gRPC and `MultiInference` are not there.

mod grpc;
mod messages;
mod reply;
pub mod request;
pub mod route;
pub mod shape;
mod status;
pub mod tensor;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use edgeward_models::Manifest;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Response};

use self::request::{Form, prepare};
use self::route::{Asked, Question};
use super::connection::Shared;
use super::destination::{Destination, Pick, sticky_key};
use super::error::ApiError;
use super::oip::infer::{LONG_JSON, gathered, on_own_thread, on_time, put};
use super::oip::reply::is_long;
use crate::serving::{Engine, Served};
use crate::watch::inference::Inference;

pub use self::grpc::{Method, answer};

/// Which version answered.
const VERSION_HEADER: &str = "edgeward-model-version";

/// The signature that everybody asks for.
const DEFAULT_SIGNATURE: &str = "serving_default";

/// What a request says of the version: 0 is none, as clients of OpenVINO Model Server send it.
fn named(pick: Option<Pick<'_>>) -> Option<Pick<'_>> {
    let zero = |pick: &Pick<'_>| matches!(pick, Pick::Version(v) if v.bytes().all(|b| b == b'0'));
    pick.filter(|pick| !zero(pick))
}

/// The version that a question about a model itself means.
fn resolve(engine: &Engine, model: &str, pick: Option<Pick<'_>>) -> Result<Served, ApiError> {
    Ok(match named(pick) {
        None => engine.resolve(model, None)?,
        Some(Pick::Version(version)) => engine.resolve(model, Some(version))?,
        Some(Pick::Label(label)) => engine.resolve_label(model, label)?,
    })
}

/// The versions that a question about the state of a model means: those that are served, unless it names one.
fn resolve_all(
    engine: &Engine,
    model: &str,
    pick: Option<Pick<'_>>,
) -> Result<Vec<Served>, ApiError> {
    match pick {
        None => Ok(engine.resolve_all(model)?),
        pick => Ok(vec![resolve(engine, model, pick)?]),
    }
}

/// The number of a version.
fn number(manifest: &Manifest) -> i64 {
    i64::try_from(manifest.release).unwrap_or(i64::MAX)
}

/// The name of a signature as the model knows it. `None`: its first.
fn signature<'a>(asked: Option<&'a str>, manifest: &Manifest) -> Option<&'a str> {
    let known = |name: &str| manifest.signatures.iter().any(|s| s.name == name);
    asked.filter(|name| !name.is_empty() && (*name != DEFAULT_SIGNATURE || known(name)))
}

/// Answers one request over HTTP. `begin`: for one that is an inference.
pub async fn respond(
    shared: &Shared,
    asked: Asked<'_>,
    arrival: Instant,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    begin: impl FnOnce() -> Inference,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let resolve = || resolve(&shared.engine, asked.model, asked.pick);
    let form = match asked.question {
        Question::Status => {
            let versions = resolve_all(&shared.engine, asked.model, asked.pick)?;
            return Ok(status::json(&versions));
        }
        Question::Metadata => return Ok(status::metadata_json(&resolve()?)),
        Question::Predict => Form::Predict,
        Question::Classify => Form::Classify,
        Question::Regress => Form::Regress,
    };
    let key = sticky_key(headers)?;
    let destination = Destination::new(&shared.engine, asked.model, named(asked.pick), key);
    let mut inference = begin();
    let answered = infer(
        || destination.resolve(),
        form,
        shared,
        arrival,
        headers,
        incoming,
        &mut inference,
    )
    .await;
    inference.ended(ApiError::outcome_of(&answered));
    answered
}

async fn infer(
    resolve: impl Fn() -> Result<Served, ApiError>,
    form: Form,
    shared: &Shared,
    arrival: Instant,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    inference: &mut Inference,
) -> Result<Response<Full<Bytes>>, ApiError> {
    inference.admit()?;
    if let Some(awake) = &shared.awake {
        awake.note(arrival);
    }
    let limits = &shared.config.limits;
    let (served, body, given) = gathered(resolve, shared, headers, incoming, inference).await?;
    let manifest = Arc::clone(served.manifest());
    let reading = async move {
        if body.len() > LONG_JSON {
            on_own_thread(move || prepare(&manifest, body, form)).await
        } else {
            prepare(&manifest, body, form)
        }
    };
    let time = given.unwrap_or(limits.default_deadline());
    let (prepared, body, form) = on_time(arrival, time, reading).await?;
    let put = put(&served, prepared, body, given, arrival, limits, inference);
    let (answer, wish, timeout) = put.await?;
    let built = if is_long(&answer, &wish) {
        let built = on_own_thread(move || reply::build(&answer, &wish, form));
        on_time(arrival, timeout, built).await
    } else {
        reply::build(&answer, &wish, form)
    };
    let mut response = built?;
    // The protocol has no place for it in an answer.
    if let Ok(version) = HeaderValue::try_from(served.manifest().version.to_string()) {
        response.headers_mut().insert(VERSION_HEADER, version);
    }
    Ok(response)
}
