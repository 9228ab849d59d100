//! One connection, from its first byte to its last.
//!
//! HTTP/1.1 with keep-alive, or HTTP/2 if the peer begins with its preface (agreed on in the TLS handshake, or
//! known beforehand). Four limits of time apply: headers, bodies (in [`super::body`]), answers (a deadline, in
//! `serving`) and idleness, which also ends a client that does not read its answer. While all places are
//! taken, idleness is allowed no longer than a header. HTTP/2 has limits of its own: requests at once, the
//! size of headers, bytes ahead of what is read, and cancelled requests ([`super::pulse`]).

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header;
use hyper::http::request::Parts;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;

use super::auth::Gate;
use super::awake::Awake;
use super::destination::{Destination, Pick, sticky_key};
use super::error::ApiError;
use super::oip::{infer, metadata, repository};
use super::outgoing::Outgoing;
use super::pulse::{Answering, Felt, Patience, Pulse, Verdict};
use super::route::Route;
use super::sparing::Sparing;
use super::trace::Trace;
use super::{body, coding, grpc, metrics, tfs};
use crate::config::Config;
use crate::serving::Engine;
use crate::watch::inference::{Caller, Inference, Recorder, Who};
use crate::watch::metrics::Metrics;

/// What every connection of a door shares.
pub struct Shared {
    pub config: Arc<Config>,
    pub engine: Engine,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
    /// For the bodies of all doors.
    pub bodies: body::Room,
    pub awake: Option<Arc<Awake>>,
    /// One permit per connection.
    pub places: Arc<Semaphore>,
    /// Log lines about who was not let in.
    pub refusals: Sparing,
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

/// HTTP/2: requests that one connection may have open at once, and the bytes of all their bodies that it may
/// send ahead.
const MAX_STREAMS: u32 = 100;
const CONNECTION_WINDOW: u32 = 1 << 20;

struct Connection {
    shared: Arc<Shared>,
    who: Who,
    gate: Gate,
    pulse: Arc<Pulse>,
    closing: watch::Receiver<Closing>,
}

/// Answers requests until either side has had enough.
pub async fn serve<S>(
    mut stream: S,
    who: Who,
    gate: Gate,
    read_ahead: ReadAhead,
    shared: Arc<Shared>,
    mut closing: watch::Receiver<Closing>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.config.limits;
    let header = Duration::from_millis(limits.header_timeout_ms);
    let (http2, ahead) = tokio::select! {
        biased;
        first = tokio::time::timeout(header, begins_http2(&mut stream)) => match first {
            Ok(Ok(first)) => first,
            _ => return tracing::debug!("connection closed before its first request"),
        },
        _ = closing.wait_for(|state| *state != Closing::Open) => return,
    };
    let pulse = Pulse::new();
    let connection = Arc::new(Connection {
        shared: Arc::clone(&shared),
        who,
        gate,
        pulse: Arc::clone(&pulse),
        closing: closing.clone(),
    });
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move {
            let answering = connection.pulse.request(http2);
            let trace = Trace::of(request.headers());
            let mut response = connection.respond(request, trace.as_ref(), answering).await;
            if let Some(trace) = trace {
                trace.tell(response.headers_mut());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let stream = TokioIo::new(Felt::new(stream, ahead, http2, Arc::clone(&pulse)));
    let watchdog = Watchdog {
        shared: &shared,
        pulse: &pulse,
        closing,
    };
    if http2 {
        let bytes = |count| u32::try_from(count).unwrap_or(u32::MAX);
        let mut http = http2::Builder::new(InSpan);
        http.max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(bytes(limits.max_header_bytes))
            .initial_stream_window_size(bytes(read_ahead.0))
            .initial_connection_window_size(CONNECTION_WINDOW);
        let work = pin!(http.serve_connection(stream, service));
        watchdog
            .over(work, http2::Connection::graceful_shutdown)
            .await;
    } else {
        let mut http = http1::Builder::new();
        http.max_header_size(limits.max_header_bytes)
            .max_buf_size(read_ahead.0.max(limits.max_header_bytes))
            // The watchdog tells headers from idleness, which this timer does not.
            .header_read_timeout(None);
        let work = pin!(http.serve_connection(stream, service));
        watchdog
            .over(work, http1::Connection::graceful_shutdown)
            .await;
    }
}

/// Runs the requests of an HTTP/2 connection, each a task of its own, in the connection's span.
#[derive(Debug, Clone, Copy)]
struct InSpan;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for InSpan {
    fn execute(&self, request: F) {
        tokio::spawn(request.in_current_span());
    }
}

/// Whether the peer speaks HTTP/2 (RFC 9113, section 3.4), and the bytes that were read to know.
async fn begins_http2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(bool, Bytes)> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut first = [0; PREFACE.len()];
    let mut read = 0;
    while read < PREFACE.len() && first[..read] == PREFACE[..read] {
        match stream.read(&mut first[read..]).await? {
            0 => break,
            count => read += count,
        }
    }
    Ok((first == PREFACE, Bytes::copy_from_slice(&first[..read])))
}

/// Ends a connection that takes too long, or whose door closes.
struct Watchdog<'a> {
    shared: &'a Shared,
    pulse: &'a Pulse,
    closing: watch::Receiver<Closing>,
}

impl Watchdog<'_> {
    /// Watches over `work` to its end; `wind_up` has it finish what has begun and no more.
    async fn over<W: Future<Output = hyper::Result<()>>>(
        mut self,
        mut work: Pin<&mut W>,
        wind_up: impl Fn(Pin<&mut W>),
    ) {
        let limits = &self.shared.config.limits;
        let header = Duration::from_millis(limits.header_timeout_ms);
        let idle = Duration::from_millis(limits.idle_timeout_ms);
        let mut alarm = pin!(tokio::time::sleep(header));
        loop {
            tokio::select! {
                biased;
                result = work.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection failed");
                    }
                    return;
                }
                () = alarm.as_mut() => {
                    let crowded = self.shared.places.available_permits() == 0;
                    let idle = if crowded { header } else { idle };
                    match self.pulse.verdict(Patience { header, idle }) {
                        Verdict::Later(time) => {
                            // Never so soon that a connection at its limit keeps the processor busy.
                            let time = time.max(Duration::from_millis(10));
                            alarm.as_mut().reset(tokio::time::Instant::now() + time);
                        }
                        over => {
                            tracing::debug!(reason = ?over, "connection closed");
                            return;
                        }
                    }
                }
                changed = self.closing.changed() => {
                    let state = *self.closing.borrow_and_update();
                    if changed.is_err() || state == Closing::Now {
                        return;
                    }
                    wind_up(work.as_mut());
                }
            }
        }
    }
}

impl Connection {
    /// Answers one request; never fails, errors are answers too.
    async fn respond(
        &self,
        request: Request<Incoming>,
        trace: Option<&Trace>,
        answering: Answering,
    ) -> Response<Outgoing> {
        let arrival = Instant::now();
        let (parts, mut incoming) = request.into_parts();
        let grpc = grpc::is_call(&parts);
        let token = match self.gate.admit(&parts.headers) {
            Ok(token) => token,
            Err(error) => {
                if let Some(left_out) = self.shared.refusals.line() {
                    let status = error.status.as_u16();
                    tracing::warn!(status, left_out, "request refused: {}", error.text);
                }
                if grpc {
                    answering.done();
                    return grpc::status::refused(&error);
                }
                return refuse(error, &parts, &mut incoming, answering).await;
            }
        };
        let path = parts.uri.path();
        let span = match trace {
            None => tracing::debug_span!("request", path, token),
            // Somebody wants to find its lines.
            Some(Trace {
                trace_id,
                parent_id,
                span_id,
                ..
            }) => tracing::info_span!("request", path, token, trace_id, parent_id, span_id),
        };
        if grpc {
            let (shared, closing) = (Arc::clone(&self.shared), self.closing.clone());
            let caller = self.caller(token);
            return grpc::answer(
                shared, caller, closing, &parts, incoming, arrival, answering,
            )
            .instrument(span)
            .await;
        }
        let answer = self.answer(&parts, &mut incoming, arrival, token);
        let result = answer.instrument(span.clone()).await;
        match result {
            Ok(response) => {
                tracing::debug!(parent: &span, status = response.status().as_u16(), "answered");
                let response = coding::pack(response, &parts.headers).await;
                answering.done();
                response.map(Outgoing::from)
            }
            Err(error) => {
                let status = error.status.as_u16();
                if error.status.is_server_error() {
                    tracing::warn!(parent: &span, status, "not answered: {}", error.text);
                } else {
                    tracing::debug!(parent: &span, status, "not answered: {}", error.text);
                }
                refuse(error, &parts, &mut incoming, answering).await
            }
        }
    }

    /// Who asks: the token, if that opened the gate.
    fn caller(&self, token: Option<&str>) -> Arc<Caller> {
        let Who { kind, name } = &self.who;
        let (kind, name) = token.map_or((*kind, name.as_str()), |token| ("token", token));
        self.shared.recorder.caller(kind, name)
    }

    fn begin(&self, token: Option<&str>) -> Inference {
        self.shared.recorder.begin(self.caller(token))
    }

    async fn answer(
        &self,
        parts: &Parts,
        incoming: &mut Incoming,
        arrival: Instant,
        token: Option<&str>,
    ) -> Result<Response<Full<Bytes>>, ApiError> {
        let engine = &self.shared.engine;
        let resolve = |target: super::route::Target<'_>| {
            engine
                .resolve(target.model, target.version)
                .map_err(ApiError::from)
        };
        match Route::of(&parts.method, parts.uri.path())? {
            Route::Infer(target) => {
                if let Some(awake) = &self.shared.awake {
                    awake.note(arrival);
                }
                let pick = target.version.map(Pick::Version);
                let key = sticky_key(&parts.headers)?;
                let to = Destination::new(engine, target.model, pick, key);
                let (shared, headers) = (&self.shared, &parts.headers);
                let mut inference = self.begin(token);
                let answered =
                    infer::infer(to, shared, arrival, headers, incoming, &mut inference).await;
                inference.ended(ApiError::outcome_of(&answered));
                answered
            }
            Route::Tensorflow(asked) => {
                let begin = || self.begin(token);
                tfs::respond(
                    &self.shared,
                    asked,
                    arrival,
                    &parts.headers,
                    incoming,
                    begin,
                )
                .await
            }
            Route::Server => metadata::server(),
            Route::Live => metadata::live(),
            Route::Ready => metadata::ready(engine),
            Route::Models => metadata::models(engine),
            Route::Model(target) => metadata::model(engine, &resolve(target)?),
            Route::ModelReady(target) => metadata::model_ready(engine, &resolve(target)?),
            Route::Config(target) => repository::config(engine, target),
            Route::Statistics(target) => repository::statistics(engine, target),
            Route::RepositoryIndex => {
                repository::index(&self.shared, &parts.headers, incoming).await
            }
            Route::RepositoryChange => Err(repository::change_refused()),
            Route::Metrics => Ok(metrics::answer(&self.shared.metrics, &parts.headers)),
        }
    }
}

/// Sends an error after the rest of the body, so that clients that write first get to read it. Over HTTP/2 the
/// rest of one body is in nobody's way.
async fn refuse(
    mut error: ApiError,
    parts: &Parts,
    incoming: &mut Incoming,
    answering: Answering,
) -> Response<Outgoing> {
    let asks_first = parts.headers.contains_key(header::EXPECT);
    error.close = parts.version != Version::HTTP_2
        && (!body::discard(incoming, asks_first).await || error.close);
    if !error.gone {
        answering.done();
    }
    error.into_response().map(Outgoing::from)
}
