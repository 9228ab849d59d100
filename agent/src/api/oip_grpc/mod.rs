//! The Open Inference Protocol (v2) over gRPC, with those of Triton's extensions that are there:
//! `inference.GRPCInferenceService`.
//!
//! | method | answer |
//! |---|---|
//! | `ServerLive`, `ServerReady`, `ModelReady` | as the health paths of [`crate::api::oip`]; a model that is not known is not ready |
//! | `ServerMetadata`, `ModelMetadata` | name, version, extensions; versions, inputs, outputs |
//! | `ModelInfer` | the answer ([`infer`]); outputs always come in `raw_output_contents` |
//! | `ModelStreamInfer` | the same for each message of a stream, one after the other; an error is an answer's `error_message` (with the request's `id`) and does not end the stream |
//! | `ModelConfig` | what perf tools ask for: tensors, `max_batch_size` 0 (shapes are whole) |
//! | `ModelStatistics` | since the version was loaded, of one model or of all |
//! | `RepositoryIndex` | what is served, and what should be and is not |
//! | `RepositoryModelLoad`, `RepositoryModelUnload` | `PERMISSION_DENIED`: what a device serves is what its fleet's keys signed |
//!
//! A version is named as over HTTP: the semantic version, the release number or a label; none means the active one. Parameters
//! are those of [`crate::api::oip::request`], and a parameter that is not known is refused by name. Shared memory,
//! tracing and log settings are not here.

pub mod infer;
pub mod messages;
pub mod metadata;
pub mod request;

use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::grpc::{Call, decode, framing};
use crate::api::oip::repository::change_refused;

/// A method that asks one message and is answered by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelInfer,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
    RepositoryModelLoad,
    RepositoryModelUnload,
}

impl Method {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ServerLive" => Self::ServerLive,
            "ServerReady" => Self::ServerReady,
            "ModelReady" => Self::ModelReady,
            "ServerMetadata" => Self::ServerMetadata,
            "ModelMetadata" => Self::ModelMetadata,
            "ModelInfer" => Self::ModelInfer,
            "ModelConfig" => Self::ModelConfig,
            "ModelStatistics" => Self::ModelStatistics,
            "RepositoryIndex" => Self::RepositoryIndex,
            "RepositoryModelLoad" => Self::RepositoryModelLoad,
            "RepositoryModelUnload" => Self::RepositoryModelUnload,
            _ => return None,
        })
    }
}

/// Answers one call.
pub async fn answer(call: &Call, method: Method, message: Body) -> Result<Vec<u8>, ApiError> {
    let engine = &call.shared.engine;
    Ok(match method {
        Method::ModelInfer => return infer::one(call, message).await,
        Method::ServerLive => framing::encode(&metadata::live()),
        Method::ServerReady => framing::encode(&metadata::ready(engine)),
        Method::ServerMetadata => framing::encode(&metadata::server()),
        Method::ModelReady => framing::encode(&metadata::model_ready(engine, &decode(&message)?)),
        Method::ModelMetadata => framing::encode(&metadata::model(engine, &decode(&message)?)?),
        Method::ModelConfig => framing::encode(&metadata::config(engine, &decode(&message)?)?),
        Method::ModelStatistics => {
            framing::encode(&metadata::statistics(engine, &decode(&message)?)?)
        }
        Method::RepositoryIndex => framing::encode(&metadata::index(engine, &decode(&message)?)),
        Method::RepositoryModelLoad | Method::RepositoryModelUnload => {
            return Err(change_refused());
        }
    })
}
