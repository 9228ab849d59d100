//! What Triton's clients ask about models beside the protocol's core: configuration, statistics, the repository.
//!
//! The answers are the messages of the gRPC service ([`crate::api::oip_grpc`]), written as JSON.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use super::metadata::{self, Answered};
use crate::api::body::{self, Limit};
use crate::api::coding::Coding;
use crate::api::connection::Shared;
use crate::api::error::ApiError;
use crate::api::oip_grpc::messages::{
    ModelConfigRequest, ModelStatisticsRequest, RepositoryIndexRequest,
};
use crate::api::oip_grpc::metadata as messages;
use crate::api::route::Target;
use crate::serving::Engine;

/// The question about the repository is an object of one member.
const LIMIT: Limit<'static> = Limit {
    bytes: 4 << 10,
    whose: "this question",
};

/// Of one version, of all of one model, or of all models.
pub fn statistics(engine: &Engine, target: Option<Target<'_>>) -> Answered {
    let name = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let asked = ModelStatisticsRequest {
        name: name(target.map(|target| target.model)),
        version: name(target.and_then(|target| target.version)),
    };
    json(&messages::statistics(engine, &asked)?)
}

pub fn config(engine: &Engine, target: Target<'_>) -> Answered {
    let asked = ModelConfigRequest {
        name: target.model.to_owned(),
        version: target.version.unwrap_or_default().to_owned(),
    };
    json(&messages::config(engine, &asked)?.config)
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexQuestion {
    /// Only what is ready.
    #[serde(default)]
    ready: bool,
}

/// What is served, and what should be and is not. The body may be empty.
pub async fn index(shared: &Shared, headers: &HeaderMap, incoming: &mut Incoming) -> Answered {
    body::check_transfer(headers)?;
    let coding = Coding::of_body(headers)?;
    let patience = std::time::Duration::from_millis(shared.config.limits.body_timeout_ms);
    let body = body::gather(incoming, coding, LIMIT, &shared.bodies, patience).await?;
    let text = body.head(body.len()).unwrap_or_default();
    let question: IndexQuestion = if text.iter().all(u8::is_ascii_whitespace) {
        IndexQuestion::default()
    } else {
        serde_json::from_slice(&text).map_err(|error| {
            ApiError::invalid(format!(
                "the question about the repository is nothing or {{\"ready\": true}}: {error}"
            ))
        })?
    };
    let asked = RepositoryIndexRequest {
        repository_name: String::new(),
        ready: question.ready,
    };
    json(&messages::index(&shared.engine, &asked).models)
}

/// Callers neither load nor unload.
pub fn change_refused() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "models are not loaded or unloaded by callers: a device serves what its fleet's keys signed",
    )
}

fn json(value: &impl Serialize) -> Result<Response<Full<Bytes>>, ApiError> {
    let value = serde_json::to_value(value).map_err(|error| {
        let text = format!("the answer cannot be written: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    Ok(metadata::json(StatusCode::OK, &value))
}
