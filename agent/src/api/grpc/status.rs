//! How a call ended: the one place where gRPC's status codes are chosen.
//!
//! Errors are the same as over HTTP ([`crate::api::error`]) and are told by their code's counterpart:
//!
//! | HTTP | gRPC | what happened |
//! |---|---|---|
//! | 400, 413 | 3 `INVALID_ARGUMENT` | a wrong request, or one that is too large: the same one again is no better |
//! | 401 | 16 `UNAUTHENTICATED` | no or a wrong token |
//! | 403 | 7 `PERMISSION_DENIED` | a caller, or a call, that the device does not let in |
//! | 404 | 5 `NOT_FOUND` | unknown model, version or service |
//! | 405, 415, 501 | 12 `UNIMPLEMENTED` | a method or a compression (with `grpc-accept-encoding`) that is not here |
//! | 408, 504 | 4 `DEADLINE_EXCEEDED` | the call did not arrive, or was not answered, in time |
//! | 409 | 10 `ABORTED` | a sequence that must be begun again |
//! | 422 | 9 `FAILED_PRECONDITION` | an input that crashed the worker twice |
//! | 429 | 8 `RESOURCE_EXHAUSTED` | no free slot within the queue time (with `grpc-retry-pushback-ms`) |
//! | 503 | 14 `UNAVAILABLE` | not ready, or the worker died (with `grpc-retry-pushback-ms`) |
//! | 500 | 13 `INTERNAL` | TFLite refused to run the model |

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::api::error::ApiError;
use crate::api::outgoing::Outgoing;

/// What messages may be compressed with.
pub const KNOWN_CODINGS: HeaderValue = HeaderValue::from_static("identity, deflate, gzip");
pub const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
pub const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// The code of an error.
pub fn code(status: StatusCode) -> u16 {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => 3,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => 4,
        StatusCode::NOT_FOUND => 5,
        StatusCode::FORBIDDEN => 7,
        StatusCode::TOO_MANY_REQUESTS => 8,
        StatusCode::UNPROCESSABLE_ENTITY => 9,
        StatusCode::CONFLICT => 10,
        StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::NOT_IMPLEMENTED => 12,
        StatusCode::SERVICE_UNAVAILABLE => 14,
        StatusCode::UNAUTHORIZED => 16,
        _ => 13,
    }
}

/// What follows the last message of a call that went well.
pub fn succeeded() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

/// What ends a call that did not.
pub fn failed(error: &ApiError) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert(STATUS, code(error.status).into());
    trailers.insert(MESSAGE, percent_encoded(&error.text));
    if let Some(seconds) = error.retry_after_seconds() {
        trailers.insert(PUSHBACK, seconds.saturating_mul(1000).into());
    }
    if error.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        trailers.insert(ACCEPT_ENCODING, KNOWN_CODINGS);
    }
    trailers
}

/// The head of an answer.
pub fn response(body: Outgoing) -> Response<Outgoing> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// The whole answer to a call that failed before its first message.
pub fn refused(error: &ApiError) -> Response<Outgoing> {
    let mut response = response(Outgoing::Message {
        data: None,
        trailers: None,
    });
    response.headers_mut().extend(failed(error));
    response
}

/// A text as `grpc-message` carries it: printable ASCII, anything else by its bytes in hexadecimal.
fn percent_encoded(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_text_and_when_to_come_back() {
        let error =
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "50 % of \u{b5}s\n").retry_after(2);
        let response = refused(&error);
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["grpc-status"], "8");
        assert_eq!(headers["grpc-message"], "50 %25 of %C2%B5s%0A");
        assert_eq!(headers["grpc-retry-pushback-ms"], "2000");
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(succeeded()["grpc-status"], "0");
    }

    #[test]
    fn every_status_that_the_doors_use_has_a_code_of_its_own_meaning() {
        for (status, expected) in [
            (400, 3),
            (401, 16),
            (403, 7),
            (404, 5),
            (405, 12),
            (408, 4),
            (409, 10),
            (413, 3),
            (415, 12),
            (422, 9),
            (429, 8),
            (500, 13),
            (501, 12),
            (503, 14),
            (504, 4),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            assert_eq!(code(status), expected, "{status}");
        }
    }
}
