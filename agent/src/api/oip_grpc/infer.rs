//! From a message to a slot, from a slot to a message.
//!
//! The order is that of [`crate::api::oip::infer`], but for one thing: the name of the model is part of the message,
//! so a message is read before its model is known, within the device's own limit.

use std::borrow::Cow;
use std::time::Instant;

use prost::Message;

use super::messages::{
    InferOutputTensor, InferParameter, ModelInferResponse, ModelStreamInferResponse,
};
use super::request::{self, Asked, Target};
use crate::api::body::Body;
use crate::api::destination::{Destination, Pick};
use crate::api::error::ApiError;
use crate::api::grpc::{Call, framing};
use crate::api::oip::classes;
use crate::api::oip::infer::{on_own_thread, put};
use crate::api::oip::reply::Wish;
use crate::serving::{Answer, Served};
use crate::watch::inference::Inference;

/// Longer messages are read on a thread of their own.
const LONG: usize = 256 << 10;
/// The keys of `raw_output_contents` and `infer_response`: number and type of the field.
const RAW_OUTPUT_CONTENTS: u8 = 6 << 3 | 2;
const INFER_RESPONSE: u8 = 2 << 3 | 2;
/// Tells Triton's clients that no further answer to the same request comes.
const FINAL_RESPONSE: &str = "triton_final_response";

/// Answers `ModelInfer`.
pub async fn one(call: &Call, message: Body) -> Result<Vec<u8>, ApiError> {
    let reply = reply(call, call.arrival, message).await?;
    let mut out = framing::begin(reply.length());
    reply.write(&mut out);
    Ok(out)
}

/// Answers one message of `ModelStreamInfer`: its errors are answers too.
pub async fn in_stream(call: &Call, message: Body) -> Result<Vec<u8>, ApiError> {
    let id = Target::of(&message).map(|target| target.id.into_owned());
    match reply(call, Instant::now(), message).await {
        Ok(reply) => {
            let length = reply.length();
            let mut out = framing::begin(1 + prost::length_delimiter_len(length) + length);
            out.push(INFER_RESPONSE);
            write_length(length, &mut out);
            reply.write(&mut out);
            Ok(out)
        }
        Err(error) => {
            call.note(&error);
            Ok(framing::encode(&ModelStreamInferResponse {
                error_message: error.text,
                infer_response: Some(ModelInferResponse {
                    id: id.unwrap_or_default(),
                    ..ModelInferResponse::default()
                }),
            }))
        }
    }
}

/// An answer that is still in its slot.
struct Reply {
    head: ModelInferResponse,
    answer: Answer,
    outputs: Vec<Raw>,
}

/// What stands in `raw_output_contents`.
enum Raw {
    /// This output as it is.
    Slot(usize),
    /// What was made of one.
    Made(Vec<u8>),
}

async fn reply(call: &Call, arrival: Instant, body: Body) -> Result<Reply, ApiError> {
    let mut inference = call.begin();
    let answered = put_to_model(call, arrival, body, &mut inference).await;
    inference.ended(ApiError::outcome_of(&answered));
    answered
}

async fn put_to_model(
    call: &Call,
    arrival: Instant,
    mut body: Body,
    inference: &mut Inference,
) -> Result<Reply, ApiError> {
    inference.admit()?;
    let shared = &call.shared;
    let limits = &shared.config.limits;
    if let Some(awake) = &shared.awake {
        awake.note(arrival);
    }
    let (served, asked);
    (served, asked, body) = found(call, body, inference).await?;
    let Asked {
        prepared,
        typed,
        marks_final,
    } = asked;
    body.append(typed);
    let patience = call.patience_from(arrival, limits);
    let put = put(
        &served, prepared, body, patience, arrival, limits, inference,
    );
    let (answer, wish, _) = put.await?;
    Ok(Reply::new(answer, &wish, marks_final))
}

/// Finds the version that a message is for, and reads the message for it.
async fn found(
    call: &Call,
    body: Body,
    inference: &mut Inference,
) -> Result<(Served, Asked, Body), ApiError> {
    let target = Target::of(&body)?;
    let (model, version) = (target.model.into_owned(), target.version.into_owned());
    let pick = (!version.is_empty()).then_some(Pick::Version(&version));
    let engine = &call.shared.engine;
    let mut destination = Destination::new(engine, &model, pick, call.sticky_key);
    let served = destination.resolve()?;
    inference.about(served.manifest());
    let (asked, body) = prepare(&served, body).await?;
    match destination.stick(asked.prepared.key(), &served)? {
        None => Ok((served, asked, body)),
        Some(other) => {
            let (asked, body) = prepare(&other, body).await?;
            Ok((other, asked, body))
        }
    }
}

/// Reads a message for a version, on a thread of its own where it is long.
async fn prepare(served: &Served, body: Body) -> Result<(Asked, Body), ApiError> {
    if body.len() <= LONG {
        return Ok((request::prepare(served.manifest(), &body)?, body));
    }
    let manifest = served.manifest().clone();
    on_own_thread(move || Ok((request::prepare(&manifest, &body)?, body))).await
}

impl Reply {
    fn new(answer: Answer, wish: &Wish, marks_final: bool) -> Self {
        let mut described = Vec::with_capacity(wish.outputs.len());
        let mut outputs = Vec::with_capacity(wish.outputs.len());
        for wished in &wish.outputs {
            let spec = &wish.signature().outputs[wished.index];
            let given = classes::given(&answer, spec, wished);
            described.push(InferOutputTensor {
                name: spec.name.clone(),
                datatype: given.datatype.name().to_owned(),
                shape: given.shape.into_owned(),
            });
            outputs.push(match given.bytes {
                Cow::Borrowed(_) => Raw::Slot(wished.index),
                Cow::Owned(made) => Raw::Made(made),
            });
        }
        let mark = InferParameter {
            bool_param: Some(true),
        };
        let head = ModelInferResponse {
            model_name: wish.manifest.model.to_string(),
            model_version: wish.manifest.version.to_string(),
            id: wish.id.clone().unwrap_or_default(),
            parameters: marks_final
                .then(|| (FINAL_RESPONSE.to_owned(), mark))
                .into_iter()
                .collect(),
            outputs: described,
        };
        Self {
            head,
            outputs,
            answer,
        }
    }

    fn bytes<'a>(&'a self, raw: &'a Raw) -> &'a [u8] {
        match raw {
            Raw::Slot(index) => self.answer.output(*index),
            Raw::Made(bytes) => bytes,
        }
    }

    fn length(&self) -> usize {
        let raw = self.outputs.iter().map(|raw| {
            let length = self.bytes(raw).len();
            1 + prost::length_delimiter_len(length) + length
        });
        self.head.encoded_len() + raw.sum::<usize>()
    }

    fn write(&self, out: &mut Vec<u8>) {
        // Fails only where there is no room, and a vector makes room.
        let _ = self.head.encode(out);
        for raw in &self.outputs {
            let raw = self.bytes(raw);
            out.push(RAW_OUTPUT_CONTENTS);
            write_length(raw.len(), out);
            out.extend_from_slice(raw);
        }
    }
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    let _ = prost::encode_length_delimiter(length, out);
}
