//! What the server and its models say about themselves over gRPC, and what they have done.

use std::time::{Duration, UNIX_EPOCH};

use edgeward_models::Manifest;
use edgeward_models::manifest::TensorSpec;

use super::messages::*;
use crate::api::error::ApiError;
use crate::api::oip::metadata;
use crate::serving::{Engine, Served, Statistics};

pub fn live() -> ServerLiveResponse {
    ServerLiveResponse { live: true }
}

pub fn ready(engine: &Engine) -> ServerReadyResponse {
    ServerReadyResponse {
        ready: metadata::unready(engine).is_empty(),
    }
}

pub fn server() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: "edgeward".to_owned(),
        version: crate::VERSION.to_owned(),
        extensions: metadata::EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// The version that a name and a version, which may be empty, mean.
pub fn resolve(engine: &Engine, name: &str, version: &str) -> Result<Served, ApiError> {
    let version = (!version.is_empty()).then_some(version);
    Ok(engine.resolve(name, version)?)
}

pub fn model_ready(engine: &Engine, request: &ModelReadyRequest) -> ModelReadyResponse {
    let served = resolve(engine, &request.name, &request.version);
    ModelReadyResponse {
        ready: served.is_ok_and(|served| served.ready()),
    }
}

pub fn model(
    engine: &Engine,
    request: &ModelMetadataRequest,
) -> Result<ModelMetadataResponse, ApiError> {
    let served = resolve(engine, &request.name, &request.version)?;
    let manifest = served.manifest();
    let signature = manifest.default_signature();
    Ok(ModelMetadataResponse {
        name: manifest.model.to_string(),
        versions: metadata::versions(engine, manifest),
        platform: metadata::PLATFORM.to_owned(),
        inputs: tensors(&signature.inputs),
        outputs: tensors(&signature.outputs),
        properties: metadata::properties(manifest),
    })
}

fn tensors(specs: &[TensorSpec]) -> Vec<TensorMetadata> {
    let tensor = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.datatype.name().to_owned(),
        shape: spec.shape.clone(),
    };
    specs.iter().map(tensor).collect()
}

pub fn config(
    engine: &Engine,
    request: &ModelConfigRequest,
) -> Result<ModelConfigResponse, ApiError> {
    let served = resolve(engine, &request.name, &request.version)?;
    let manifest: &Manifest = served.manifest();
    let signature = manifest.default_signature();
    let input = |spec: &TensorSpec| ModelInput {
        name: spec.name.clone(),
        data_type: DataType::from(spec.datatype).into(),
        dims: spec.shape.clone(),
    };
    let output = |spec: &TensorSpec| ModelOutput {
        name: spec.name.clone(),
        data_type: DataType::from(spec.datatype).into(),
        dims: spec.shape.clone(),
    };
    Ok(ModelConfigResponse {
        config: Some(ModelConfig {
            name: manifest.model.to_string(),
            platform: metadata::PLATFORM.to_owned(),
            max_batch_size: 0,
            input: signature.inputs.iter().map(input).collect(),
            output: signature.outputs.iter().map(output).collect(),
            backend: "tflite".to_owned(),
        }),
    })
}

pub fn statistics(
    engine: &Engine,
    request: &ModelStatisticsRequest,
) -> Result<ModelStatisticsResponse, ApiError> {
    let served = match (request.name.as_str(), request.version.as_str()) {
        ("", _) => {
            let models = engine.models();
            let names = models.iter().map(|served| served.model.as_str());
            // One that is being replaced this very moment may be gone.
            names
                .filter_map(|name| engine.resolve_all(name).ok())
                .flatten()
                .collect()
        }
        (name, "") => engine.resolve_all(name)?,
        (name, version) => vec![resolve(engine, name, version)?],
    };
    Ok(ModelStatisticsResponse {
        model_stats: served.iter().map(statistics_of).collect(),
    })
}

fn statistics_of(served: &Served) -> ModelStatistics {
    let manifest = served.manifest();
    let Statistics {
        succeeded,
        failed,
        invokes,
        queue,
        invoke,
        total,
        latest,
    } = served.statistics();
    let sum = |count, time: Duration| {
        Some(StatisticDuration {
            count,
            ns: nanos(time),
        })
    };
    // Taking a request in is what is left; writing an answer is not measured.
    let input = total.saturating_sub(queue + invoke);
    let latest = latest.and_then(|latest| latest.duration_since(UNIX_EPOCH).ok());
    ModelStatistics {
        name: manifest.model.to_string(),
        version: manifest.version.to_string(),
        last_inference: nanos(latest.unwrap_or_default()) / 1_000_000,
        inference_count: succeeded,
        execution_count: invokes,
        inference_stats: Some(InferStatistics {
            success: sum(succeeded, total),
            fail: sum(failed, Duration::ZERO),
            queue: sum(succeeded, queue),
            compute_input: sum(succeeded, input),
            compute_infer: sum(succeeded, invoke),
            compute_output: sum(0, Duration::ZERO),
        }),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub fn index(engine: &Engine, request: &RepositoryIndexRequest) -> RepositoryIndexResponse {
    let served = engine.versions().into_iter().map(|served| ModelIndex {
        name: served.model.to_string(),
        version: served.manifest.version.to_string(),
        state: state(served.ready).to_owned(),
        reason: served.reason.unwrap_or_default(),
    });
    let lacking = engine
        .lacking()
        .into_iter()
        .map(|(model, reason)| ModelIndex {
            name: model.to_string(),
            version: String::new(),
            state: state(false).to_owned(),
            reason,
        });
    let mut models: Vec<_> = served.chain(lacking).collect();
    models.retain(|model| !request.ready || model.state == state(true));
    RepositoryIndexResponse { models }
}

fn state(ready: bool) -> &'static str {
    if ready { "READY" } else { "UNAVAILABLE" }
}
