//! `PredictionService` and `ModelService` over gRPC.

use hyper::StatusCode;
use prost::Message;

use super::messages::{
    Any, GetModelMetadataRequest, GetModelMetadataResponse, GetModelStatusRequest,
    GetModelStatusResponse, Int64Value, ModelSpec,
};
use super::{number, status, tensor};
use crate::api::body::Body;
use crate::api::destination::{Destination, Pick};
use crate::api::error::ApiError;
use crate::api::grpc::{Call, decode, framing};
use crate::api::oip::infer::{on_own_thread, put};
use crate::serving::{Engine, Served};
use crate::watch::inference::Inference;

/// Longer messages are read on a thread of their own.
const LONG: usize = 256 << 10;
const SIGNATURE_DEF: &str = "signature_def";
const SIGNATURE_DEF_MAP: &str = "type.googleapis.com/tensorflow.serving.SignatureDefMap";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Predict,
    GetModelMetadata,
    GetModelStatus,
    HandleReloadConfigRequest,
}

/// Answers one call.
pub async fn answer(call: &Call, method: Method, message: Body) -> Result<Vec<u8>, ApiError> {
    let engine = &call.shared.engine;
    Ok(match method {
        Method::Predict => {
            let mut inference = call.begin();
            let answered = predict(call, message, &mut inference).await;
            inference.ended(ApiError::outcome_of(&answered));
            return answered;
        }
        Method::GetModelMetadata => framing::encode(&metadata(engine, decode(&message)?)?),
        Method::GetModelStatus => {
            let request: GetModelStatusRequest = decode(&message)?;
            let spec = request.model_spec.unwrap_or_default();
            let versions = asked(&spec, |pick| super::resolve_all(engine, &spec.name, pick))?;
            framing::encode(&GetModelStatusResponse {
                model_version_status: versions.iter().map(status::message).collect(),
            })
        }
        Method::HandleReloadConfigRequest => {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "callers do not choose what is served: a device serves what its fleet's keys signed",
            ));
        }
    })
}

fn resolve(engine: &Engine, spec: &ModelSpec) -> Result<Served, ApiError> {
    asked(spec, |pick| super::resolve(engine, &spec.name, pick))
}

/// What a specification says of the version, for `resolve`.
fn asked<T>(
    spec: &ModelSpec,
    resolve: impl FnOnce(Option<Pick<'_>>) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let version = spec
        .version
        .as_ref()
        .map(|version| version.value.to_string());
    let label = (!spec.version_label.is_empty()).then_some(Pick::Label(&spec.version_label));
    resolve(version.as_deref().map(Pick::Version).or(label))
}

/// The version that answered.
fn answered_by(served: &Served, signature_name: &str) -> ModelSpec {
    let manifest = served.manifest();
    ModelSpec {
        name: manifest.model.to_string(),
        version: Some(Int64Value {
            value: number(manifest),
        }),
        signature_name: signature_name.to_owned(),
        version_label: String::new(),
    }
}

fn metadata(
    engine: &Engine,
    request: GetModelMetadataRequest,
) -> Result<GetModelMetadataResponse, ApiError> {
    let served = resolve(engine, &request.model_spec.unwrap_or_default())?;
    if request.metadata_field.is_empty() {
        let text = format!("metadata_field must name what is wanted: {SIGNATURE_DEF:?} is known");
        return Err(ApiError::invalid(text));
    }
    let mut fields = request.metadata_field.iter();
    if let Some(unknown) = fields.find(|field| *field != SIGNATURE_DEF) {
        return Err(ApiError::invalid(format!(
            "metadata_field {unknown:?} is not known here, but {SIGNATURE_DEF:?}"
        )));
    }
    let map = Any {
        type_url: SIGNATURE_DEF_MAP.to_owned(),
        value: status::signature_map(served.manifest()).encode_to_vec(),
    };
    Ok(GetModelMetadataResponse {
        model_spec: Some(answered_by(&served, "")),
        metadata: [(SIGNATURE_DEF.to_owned(), map)].into(),
    })
}

async fn predict(
    call: &Call,
    mut body: Body,
    inference: &mut Inference,
) -> Result<Vec<u8>, ApiError> {
    inference.admit()?;
    let shared = &call.shared;
    let limits = &shared.config.limits;
    if let Some(awake) = &shared.awake {
        awake.note(call.arrival);
    }
    let spec = tensor::model_spec(&body)?;
    let served = asked(&spec, |pick| {
        let pick = super::named(pick);
        Destination::new(&shared.engine, &spec.name, pick, call.sticky_key).resolve()
    })?;
    inference.about(served.manifest());
    let read;
    (read, body) = if body.len() > LONG {
        let manifest = served.manifest().clone();
        on_own_thread(move || Ok((tensor::prepare(&manifest, &spec, &body)?, body))).await?
    } else {
        (tensor::prepare(served.manifest(), &spec, &body)?, body)
    };
    let (prepared, typed) = read;
    body.append(typed);
    let patience = call.patience_within(limits);
    let arrival = call.arrival;
    let put = put(
        &served, prepared, body, patience, arrival, limits, inference,
    );
    let (answer, wish, _) = put.await?;
    let signature = wish.signature();
    let values: usize = wish
        .outputs
        .iter()
        .map(|wished| answer.output(wished.index).len())
        .sum();
    let mut out = framing::begin(values + 256);
    for index in wish.outputs.iter().map(|wished| wished.index) {
        let spec = &signature.outputs[index];
        tensor::write(spec, answer.shape(index), answer.output(index), &mut out);
    }
    let answered = Answered {
        model_spec: Some(answered_by(&served, &signature.name)),
    };
    // Fails only where there is no room, and a vector makes room.
    let _ = answered.encode(&mut out);
    Ok(out)
}

/// What follows the outputs in a `PredictResponse`.
#[derive(Clone, PartialEq, Message)]
struct Answered {
    #[prost(message, optional, tag = "2")]
    model_spec: Option<ModelSpec>,
}
