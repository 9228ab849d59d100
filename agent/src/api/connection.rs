//! One connection, from its first byte to its last.
//!
//! HTTP/1.1 with keep-alive. Four limits of time apply: headers, bodies (in [`super::body`]), answers (a
//! deadline, in `serving`) and idleness, which also ends a client that does not read its answer. While all
//! places are taken, idleness is allowed no longer than a header.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;

use super::auth::Gate;
use super::body;
use super::error::ApiError;
use super::oip::{infer, metadata};
use super::pulse::{Felt, Patience, Pulse, Verdict};
use super::route::Route;
use crate::config::Config;
use crate::serving::Engine;

/// What every connection of a door shares.
pub struct Shared {
    pub config: Arc<Config>,
    pub engine: Engine,
    /// One permit per connection.
    pub places: Arc<Semaphore>,
}

/// How the doors end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    Open,
    /// Finish what has begun, then close.
    Draining,
    Now,
}

/// Bytes that one connection may have us keep unread: of headers that do not end, or of a body between two
/// looks at it. A client on the network, not yet known, gets less.
#[derive(Debug, Clone, Copy)]
pub struct ReadAhead(pub usize);

impl ReadAhead {
    pub const LOCAL: Self = Self(256 << 10);
    pub const NETWORK: Self = Self(64 << 10);
}

struct Connection {
    shared: Arc<Shared>,
    gate: Gate,
    pulse: Arc<Pulse>,
}

/// Answers requests until either side has had enough.
pub async fn serve<S>(
    stream: S,
    gate: Gate,
    read_ahead: ReadAhead,
    shared: Arc<Shared>,
    mut closing: watch::Receiver<Closing>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.config.limits;
    let header = Duration::from_millis(limits.header_timeout_ms);
    let idle = Duration::from_millis(limits.idle_timeout_ms);
    let pulse = Pulse::new();
    let connection = Arc::new(Connection {
        shared: Arc::clone(&shared),
        gate,
        pulse: Arc::clone(&pulse),
    });
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move {
            connection.pulse.request_began();
            let response = connection.respond(request).await;
            connection.pulse.request_ended();
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_header_size(limits.max_header_bytes)
        .max_buf_size(read_ahead.0.max(limits.max_header_bytes))
        // The watchdog below tells headers from idleness, which this timer does not.
        .header_read_timeout(None);
    let stream = TokioIo::new(Felt::new(stream, Arc::clone(&pulse)));
    let mut work = pin!(http.serve_connection(stream, service));
    let mut watchdog = pin!(tokio::time::sleep(header));
    loop {
        tokio::select! {
            biased;
            result = work.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection failed");
                }
                return;
            }
            () = watchdog.as_mut() => {
                let crowded = shared.places.available_permits() == 0;
                let idle = if crowded { header } else { idle };
                match pulse.verdict(Patience { header, idle }) {
                    Verdict::Later(time) => {
                        // Never so soon that a connection at its limit keeps the processor busy.
                        let time = time.max(Duration::from_millis(10));
                        watchdog.as_mut().reset(tokio::time::Instant::now() + time);
                    }
                    over => {
                        tracing::debug!(reason = ?over, "connection closed");
                        return;
                    }
                }
            }
            changed = closing.changed() => {
                let state = *closing.borrow_and_update();
                if changed.is_err() || state == Closing::Now {
                    return;
                }
                work.as_mut().graceful_shutdown();
            }
        }
    }
}

impl Connection {
    /// Answers one request; never fails, errors are answers too.
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let arrival = Instant::now();
        let (parts, mut incoming) = request.into_parts();
        let token = match self.gate.admit(&parts.headers) {
            Ok(token) => token,
            Err(error) => {
                tracing::warn!(
                    status = error.status.as_u16(),
                    "request refused: {}",
                    error.text
                );
                return refuse(error, &mut incoming).await;
            }
        };
        let span = tracing::debug_span!("request", path = parts.uri.path(), token);
        let answer = self.answer(&parts, &mut incoming, arrival);
        let result = answer.instrument(span.clone()).await;
        match result {
            Ok(response) => {
                tracing::debug!(parent: &span, status = response.status().as_u16(), "answered");
                response
            }
            Err(error) => {
                let status = error.status.as_u16();
                if error.status.is_server_error() {
                    tracing::warn!(parent: &span, status, "not answered: {}", error.text);
                } else {
                    tracing::debug!(parent: &span, status, "not answered: {}", error.text);
                }
                refuse(error, &mut incoming).await
            }
        }
    }

    async fn answer(
        &self,
        parts: &hyper::http::request::Parts,
        incoming: &mut Incoming,
        arrival: Instant,
    ) -> Result<Response<Full<Bytes>>, ApiError> {
        let engine = &self.shared.engine;
        let resolve = |target: super::route::Target<'_>| {
            engine
                .resolve(target.model, target.version)
                .map_err(ApiError::from)
        };
        match Route::of(&parts.method, parts.uri.path())? {
            Route::Infer(target) => {
                let limits = &self.shared.config.limits;
                let resolve = || resolve(target);
                infer::infer(resolve, limits, arrival, &parts.headers, incoming).await
            }
            Route::Server => metadata::server(),
            Route::Live => metadata::live(),
            Route::Ready => metadata::ready(engine),
            Route::Models => metadata::models(engine),
            Route::Model(target) => metadata::model(&resolve(target)?),
            Route::ModelReady(target) => metadata::model_ready(engine, &resolve(target)?),
            Route::Metrics => {
                let mut response = Response::new(Full::new(Bytes::from(engine.metrics_text())));
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
                );
                Ok(response)
            }
        }
    }
}

/// Sends an error after the rest of the body, so that clients that write first get to read it.
async fn refuse(mut error: ApiError, incoming: &mut Incoming) -> Response<Full<Bytes>> {
    error.close |= !body::discard(incoming).await;
    error.into_response()
}
