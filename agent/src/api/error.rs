//! The one error shape, `{"error": "…"}`, and the one place where status codes are chosen.
//!
//! | what happened | status |
//! |---|---|
//! | a wrong request: JSON, tensor name, datatype, shape, number of elements, parameter | 400 |
//! | no or a wrong token, no client certificate | 401 |
//! | a local user that the configuration does not let in | 403 |
//! | unknown path, model, version or label | 404 |
//! | wrong method (with `Allow`) | 405 |
//! | the body did not arrive in time | 408 |
//! | the body, or the tensors in it, are larger than allowed | 413 |
//! | a compression (`Content-Encoding`) other than gzip, deflate and zstd, with `Accept-Encoding` | 415 |
//! | well-formed, and yet no answer: an input that crashed the worker twice, NaN or infinity asked for as JSON | 422 |
//! | no free slot within the queue time, or the caller asks faster than it may (with `Retry-After`) | 429 |
//! | more headers than allowed | 431 |
//! | TFLite refused to run the model: with shapes that the request chose 400, otherwise | 500 |
//! | not ready, or the worker died while it ran the request (with `Retry-After`) | 503 |
//! | the deadline passed | 504 |
//!
//! What is so broken that no request can be made out of it is 400, 414 or 431 in the same shape
//! ([`super::refusal`]), and the connection ends. Over HTTP/2 the library may reset the stream instead.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::json::JsonError;
use crate::serving::{Outcome, ServeError};
use crate::watch::inference::TooFast;

/// An answer that is not the one asked for.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub text: String,
    /// One more header: `Retry-After`, `Allow`, `Accept-Encoding` or `WWW-Authenticate`.
    header: Option<(header::HeaderName, HeaderValue)>,
    /// The connection is of no further use (a body was left unread, the peer is not let in).
    pub close: bool,
    /// The caller has gone and reads no answer.
    pub gone: bool,
    /// What `serving` says that it was.
    outcome: Option<Outcome>,
}

impl ApiError {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            header: None,
            close: false,
            gone: false,
            outcome: None,
        }
    }

    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub fn method(allowed: &'static str) -> Self {
        let text = format!("this path takes {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, text)
            .with_header(header::ALLOW, HeaderValue::from_static(allowed))
    }

    pub fn unauthenticated(text: impl Into<String>) -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"edgeward\"");
        Self::new(StatusCode::UNAUTHORIZED, text).with_header(header::WWW_AUTHENTICATE, challenge)
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// When the same request may be tried again.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let (name, value) = self.header.as_ref()?;
        let seconds = (name == header::RETRY_AFTER).then_some(value)?;
        seconds.to_str().ok()?.parse().ok()
    }

    pub fn with_header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    pub fn gone(mut self) -> Self {
        self.gone = true;
        self.close = true;
        self
    }

    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub fn outcome_of<T>(answered: &Result<T, Self>) -> Outcome {
        match answered {
            Ok(_) => Outcome::Succeeded,
            Err(error) => error.outcome(),
        }
    }

    /// What this is for statistics and the audit log.
    fn outcome(&self) -> Outcome {
        match (self.outcome, self.status) {
            _ if self.gone => Outcome::Cancelled,
            (Some(outcome), _) => outcome,
            (None, StatusCode::TOO_MANY_REQUESTS) => Outcome::Overloaded,
            (None, StatusCode::SERVICE_UNAVAILABLE) => Outcome::NotReady,
            (None, StatusCode::GATEWAY_TIMEOUT) => Outcome::Deadline,
            (None, status) if status.is_server_error() => Outcome::Failed,
            (None, _) => Outcome::Invalid,
        }
    }

    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(body(&self.text))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The body of every error.
pub fn body(text: &str) -> String {
    serde_json::json!({ "error": text }).to_string()
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<TooFast> for ApiError {
    fn from(error: TooFast) -> Self {
        let seconds = error.retry_after.as_secs_f64().ceil().max(1.0) as u64;
        Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()).retry_after(seconds)
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> Self {
        let text = error.to_string();
        let outcome = Some(Outcome::of(&error));
        let answer = match error {
            ServeError::UnknownModel(_)
            | ServeError::UnknownVersion { .. }
            | ServeError::UnknownLabel { .. } => Self::not_found(text),
            ServeError::Invalid(_) => Self::invalid(text),
            ServeError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text),
            ServeError::SequenceLost { .. } => Self::new(StatusCode::CONFLICT, text),
            ServeError::Overloaded {
                retry_after_seconds,
                ..
            }
            | ServeError::SequencesFull {
                retry_after_seconds,
                ..
            } => Self::new(StatusCode::TOO_MANY_REQUESTS, text)
                .retry_after(retry_after_seconds.max(1)),
            ServeError::NotReady {
                retry_after_seconds,
                ..
            } => Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
                .retry_after(retry_after_seconds.max(1)),
            ServeError::Deadline(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, text),
            // Perhaps another request's doing, and the worker comes back: trying again is right, and an
            // input that crashes it twice is refused as `Poison`.
            ServeError::Crashed { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1)
            }
            ServeError::Poison { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, text),
            ServeError::Failed { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, text),
        };
        Self { outcome, ..answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_and_restarts_tell_when_to_come_back() {
        let model: edgeward_models::ModelName = "digits".parse().expect("name");
        let overloaded = ApiError::from(ServeError::Overloaded {
            model: model.clone(),
            retry_after_seconds: 0,
        });
        let response = overloaded.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        let not_ready = ApiError::from(ServeError::NotReady {
            model,
            reason: "restarting".to_owned(),
            retry_after_seconds: 7,
        });
        let response = not_ready.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
