//! gRPC on the doors that HTTP has: the same sockets, ports and connections, told apart by their content type.
//!
//! | service | methods |
//! |---|---|
//! | `inference.GRPCInferenceService` | the Open Inference Protocol ([`crate::api::oip_grpc`]) |
//! | `tensorflow.serving.PredictionService`, `.ModelService` | TensorFlow Serving's ([`crate::api::tfs`]) |
//! | `grpc.health.v1.Health` | `Check`, `Watch` ([`health`]) |
//! | `grpc.reflection.v1` and `v1alpha`, `.ServerReflection` | `ServerReflectionInfo` ([`reflection`]) |
//!
//! A call is an HTTP/2 request like any other: the same gate (`authorization: Bearer …` as metadata), the same
//! limits of time, of bytes and of what all bodies may take together, the same slots and errors ([`status`] has the
//! table of codes). `grpc-timeout` bounds the whole call. Messages may be compressed (gzip, deflate, zstd: `grpc-encoding`);
//! an answer is when the call's own messages were, since every client says that it could read one.
//!
//! Messages without tensors are `prost`'s; for those with tensors see [`crate::api::protobuf`].

#[cfg(test)]
mod definitions;
pub mod framing;
mod health;
mod reflection;
mod rpc;
pub mod status;
mod stream;
pub mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode, Version};
use prost::Message;
use tokio::sync::watch;

use self::framing::{Messages, PREFIX};
use self::rpc::{Rpc, Unary};
use super::body::{Body, Limit};
use super::coding::{self, Coding};
use super::connection::{Closing, Shared};
use super::destination::sticky_key;
use super::error::ApiError;
use super::oip::infer::on_own_thread;
use super::oip_grpc;
use super::outgoing::Outgoing;
use super::pulse::Answering;
use super::tfs;
use crate::config::Limits;
use crate::serving::{ServeError, StickyKey};
use crate::watch::inference::{Caller, Inference};

/// The limit of messages without tensors.
pub const SMALL: Limit<'static> = Limit {
    bytes: 64 << 10,
    whose: "this method",
};

const TIMEOUT: &str = "grpc-timeout";

/// Whether a request is a gRPC call.
pub fn is_call(parts: &Parts) -> bool {
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let rest = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    parts.version == Version::HTTP_2
        && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What belongs to a call as a whole.
pub struct Call {
    pub shared: Arc<Shared>,
    caller: Arc<Caller>,
    pub arrival: Instant,
    /// The time that its caller gives it.
    pub patience: Option<Duration>,
    /// What its requests that name no version stick together by.
    pub sticky_key: Option<StickyKey>,
    closing: watch::Receiver<Closing>,
    /// Of the messages that come, and of those that go.
    coding: Option<Coding>,
    answers: Option<Coding>,
}

/// Answers one call; never fails, errors are answers too.
pub async fn answer(
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    closing: watch::Receiver<Closing>,
    parts: &Parts,
    incoming: Incoming,
    arrival: Instant,
    answering: Answering,
) -> Response<Outgoing> {
    let call = Call::new(shared, caller, closing, &parts.headers, arrival);
    let found = call.and_then(|call| Ok((call, Rpc::of(&parts.method, parts.uri.path())?)));
    let (call, rpc) = match found {
        Ok(found) => found,
        Err(error) => {
            answering.done();
            return status::refused(&error);
        }
    };
    let answers = call.answers;
    let mut messages = Messages::new(incoming, call.coding);
    let mut response = match rpc {
        Rpc::Many(rpc) => stream::exchange(call, rpc, messages, answering),
        Rpc::One(rpc) => match call.one(rpc, &mut messages).await {
            Ok(message) => {
                answering.done();
                status::response(Outgoing::Message {
                    data: Some(message),
                    trailers: Some(status::succeeded()),
                })
            }
            Err(error) => {
                call.note(&error);
                if !error.gone {
                    answering.done();
                }
                return status::refused(&error);
            }
        },
    };
    if let Some(coding) = answers {
        let name = HeaderValue::from_static(coding.name());
        response.headers_mut().insert(status::ENCODING, name);
    }
    response
}

impl Call {
    fn new(
        shared: Arc<Shared>,
        caller: Arc<Caller>,
        closing: watch::Receiver<Closing>,
        headers: &HeaderMap,
        arrival: Instant,
    ) -> Result<Self, ApiError> {
        let coding = match headers.get(status::ENCODING) {
            None => None,
            Some(name) if name.as_bytes() == b"identity" => None,
            Some(name) => Some(named(name.to_str().unwrap_or("?"))?),
        };
        // Read by the side that knows the word, should the other one not.
        let accepted = headers
            .get(status::ACCEPT_ENCODING)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let accepts =
            |coding: &Coding| accepted.split(',').any(|name| name.trim() == coding.name());
        Ok(Self {
            shared,
            caller,
            arrival,
            patience: headers.get(TIMEOUT).map(patience).transpose()?,
            sticky_key: sticky_key(headers)?,
            closing,
            coding,
            answers: coding.filter(accepts),
        })
    }

    /// An inference that this call asks for.
    pub fn begin(&self) -> Inference {
        self.shared.recorder.begin(self.caller.clone())
    }

    /// When the caller's patience ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.arrival.checked_add(self.patience?)
    }

    /// The caller's patience is no wish: it may be longer than this device lets anyone wait.
    pub fn patience_within(&self, limits: &Limits) -> Option<Duration> {
        self.patience_from(self.arrival, limits)
    }

    /// The same for a message that came later than the call.
    pub fn patience_from(&self, arrival: Instant, limits: &Limits) -> Option<Duration> {
        let left = self.deadline()?.saturating_duration_since(arrival);
        Some(left.clamp(Duration::from_nanos(1), limits.max_deadline()))
    }

    fn late(&self) -> ApiError {
        let patience = self.patience.unwrap_or_default();
        ServeError::Deadline(patience.as_millis() as u64).into()
    }

    /// Waits until the doors close.
    async fn closing(&self) {
        let mut closing = self.closing.clone();
        let _ = closing.wait_for(|state| *state != Closing::Open).await;
    }

    async fn one(&self, rpc: Unary, messages: &mut Messages) -> Result<Bytes, ApiError> {
        let limits = &self.shared.config.limits;
        let time = Duration::from_millis(limits.body_timeout_ms);
        let time = self.patience.map_or(time, |patience| patience.min(time));
        let message = messages.only(Rpc::One(rpc).limit(limits), &self.shared.bodies);
        let message = tokio::time::timeout(time, message).await;
        let message = message.unwrap_or_else(|_| {
            let text = format!("the message did not arrive within {time:?}");
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text))
        })?;
        let answer = match rpc {
            Unary::HealthCheck => {
                let engine = &self.shared.engine;
                framing::encode(&health::check(engine, &decode(&message)?)?)
            }
            Unary::Inference(method) => oip_grpc::answer(self, method, message).await?,
            Unary::Tensorflow(method) => tfs::answer(self, method, message).await?,
        };
        self.pack(answer).await
    }

    /// Makes a message ready to be sent.
    async fn pack(&self, message: Vec<u8>) -> Result<Bytes, ApiError> {
        let length = message.len() - PREFIX;
        let Some(coding) = self.answers.filter(|_| length as u64 >= coding::WORTHWHILE) else {
            return framing::seal(message, false);
        };
        let pack = move || {
            let packed = coding.packed(&message[PREFIX..]).ok();
            match packed.filter(|packed| packed.len() < length) {
                None => framing::seal(message, false),
                Some(packed) => {
                    let mut message = framing::begin(packed.len());
                    message.extend_from_slice(&packed);
                    framing::seal(message, true)
                }
            }
        };
        if length as u64 > coding::LONG {
            on_own_thread(pack).await
        } else {
            pack()
        }
    }

    /// Says in the log why a call was not answered.
    pub fn note(&self, error: &ApiError) {
        let code = status::code(error.status);
        if error.status.is_server_error() {
            tracing::warn!(code, "not answered: {}", error.text);
        } else {
            tracing::debug!(code, "not answered: {}", error.text);
        }
    }
}

/// Reads a message without tensors.
pub fn decode<M: Message + Default>(message: &Body) -> Result<M, ApiError> {
    M::decode(message.joined()).map_err(|error| {
        let text = format!("the message is not the protobuf that this method takes: {error}");
        ApiError::invalid(text)
    })
}

fn named(name: &str) -> Result<Coding, ApiError> {
    Coding::named(name).ok_or_else(|| {
        let text =
            format!("messages compressed with {name:?} are not taken: gzip, deflate and zstd are");
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
    })
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn patience(value: &HeaderValue) -> Result<Duration, ApiError> {
    let wrong = || {
        ApiError::invalid(format!(
            "{TIMEOUT} must be at most eight digits and one of the units H, M, S, m, u and n"
        ))
    };
    let text = value.to_str().map_err(|_| wrong())?;
    let unit = text.len().saturating_sub(1);
    let (digits, unit) = text.split_at_checked(unit).ok_or_else(wrong)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_all_its_units_or_refused() {
        let read = |text: &str| patience(&HeaderValue::from_str(text).expect("value"));
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("10m", Duration::from_millis(10)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(read(text).expect(text), expected);
        }
        for wrong in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "123456789S",
            "1 S",
            "1.5S",
            "+1S",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_http2_with_grpcs_content_type_is_a_call() {
        let parts = |version, content_type: &str| {
            let request = hyper::Request::post("/x/y")
                .version(version)
                .header("content-type", content_type);
            request.body(()).expect("request").into_parts().0
        };
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
        ] {
            assert!(is_call(&parts(Version::HTTP_2, content_type)));
            assert!(!is_call(&parts(Version::HTTP_11, content_type)));
        }
        for content_type in [
            "application/grpc-web",
            "application/json",
            "application/grp",
        ] {
            assert!(!is_call(&parts(Version::HTTP_2, content_type)));
        }
    }
}
