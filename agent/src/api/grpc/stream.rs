//! Calls of many messages: each message is answered by one, in order; a watch sends news as there are any.
//!
//! Between messages nobody waits for the device: a connection on which nothing is asked is idle and ends as any other
//! does, whatever streams are open on it. A message that cannot be answered does not end the stream where the method
//! can say so in its answer; what cannot be read as messages any more does. A stream also ends at the deadline that
//! its caller gave it, and when the doors close.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use hyper::{Response, StatusCode};

use super::framing::{self, Messages};
use super::health::{self, HealthCheckRequest, HealthCheckResponse, ServingStatus};
use super::rpc::{Rpc, Streaming};
use super::{Call, decode, reflection, status};
use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::oip_grpc::infer;
use crate::api::outgoing::Outgoing;
use crate::api::pulse::{Answering, Paused};

/// How often a watch looks for news.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

struct Exchange {
    call: Call,
    rpc: Streaming,
    messages: Messages,
    turn: Turn,
    watched: Option<(String, ServingStatus)>,
}

/// Who waits for whom.
enum Turn {
    Ours(Answering),
    Theirs(Paused),
}

/// Answers a call of many messages for as long as its caller likes.
pub fn exchange(
    call: Call,
    rpc: Streaming,
    messages: Messages,
    answering: Answering,
) -> Response<Outgoing> {
    let exchange = Exchange {
        call,
        rpc,
        messages,
        // Until the first message is there it is our turn, so that a caller who goes at once has cancelled.
        turn: Turn::Ours(answering),
        watched: None,
    };
    let frames = futures::stream::unfold(Some(exchange), |exchange| async {
        let mut exchange = exchange?;
        let next = match exchange.call.deadline() {
            None => exchange.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), exchange.next())
                .await
                .unwrap_or_else(|_| Err(exchange.call.late())),
        };
        Some(match next {
            Ok(Some(message)) => {
                let turn = match exchange.turn {
                    Turn::Ours(answering) => answering.pause(),
                    Turn::Theirs(paused) => paused,
                };
                exchange.turn = Turn::Theirs(turn);
                (Frame::data(message), Some(exchange))
            }
            Ok(None) => (exchange.end(None), None),
            Err(error) => (exchange.end(Some(error)), None),
        })
    });
    status::response(Outgoing::Stream(Box::pin(frames)))
}

impl Exchange {
    /// The next answer; `None` when the caller has no more to ask.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        if self.watched.is_some() {
            return self.news().await.map(Some);
        }
        let Some(message) = self.message().await? else {
            return Ok(None);
        };
        if let Turn::Theirs(paused) = &self.turn {
            self.turn = Turn::Ours(paused.resume());
        }
        let answer = match self.rpc {
            Streaming::Infer => infer::in_stream(&self.call, message).await?,
            Streaming::Reflection => framing::encode(&reflection::answer(decode(&message)?)),
            Streaming::HealthWatch => {
                let HealthCheckRequest { service } = decode(&message)?;
                let status = health::status(&self.call.shared.engine, &service);
                self.watched = Some((service, status));
                told(status)
            }
        };
        self.call.pack(answer).await.map(Some)
    }

    async fn message(&mut self) -> Result<Option<Body>, ApiError> {
        let shared = &self.call.shared;
        let limit = Rpc::Many(self.rpc).limit(&shared.config.limits);
        let first = matches!(self.turn, Turn::Ours(_));
        let time = Duration::from_millis(shared.config.limits.body_timeout_ms);
        let message = self.messages.next(limit, &shared.bodies);
        tokio::select! {
            biased;
            message = message => message,
            () = tokio::time::sleep(time), if first => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("no message arrived within {time:?}"),
            )),
            () = self.call.closing() => Err(shutting_down()),
        }
    }

    /// The next change of what is watched.
    async fn news(&mut self) -> Result<Bytes, ApiError> {
        loop {
            tokio::select! {
                biased;
                () = self.call.closing() => return Err(shutting_down()),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            if let Some((service, before)) = &mut self.watched {
                let now = health::status(&self.call.shared.engine, service);
                if now != *before {
                    *before = now;
                    return self.call.pack(told(now)).await;
                }
            }
        }
    }

    /// What follows the last answer.
    fn end(self, error: Option<ApiError>) -> Frame<Bytes> {
        let gone = error.as_ref().is_some_and(|error| error.gone);
        if let Turn::Ours(answering) = self.turn
            && !gone
        {
            answering.done();
        }
        Frame::trailers(match error {
            None => status::succeeded(),
            Some(error) => {
                self.call.note(&error);
                status::failed(&error)
            }
        })
    }
}

fn told(status: ServingStatus) -> Vec<u8> {
    framing::encode(&HealthCheckResponse {
        status: status.into(),
    })
}

fn shutting_down() -> ApiError {
    let text = "the agent is shutting down: begin the stream again in a moment";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(5)
}
