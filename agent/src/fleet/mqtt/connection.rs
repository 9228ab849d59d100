//! One connection in use: publishing, subscribing, and reading one retained topic.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, SubscribeReasonCode};
use tokio::sync::{Notify, Semaphore, oneshot};
use tracing::debug;

use super::{LinkError, OPERATION_TIMEOUT, OPERATIONS, Settings, Shared};
use crate::fleet::routes::Routes;

/// What a packet holds beside topic and payload.
const PACKET_OVERHEAD: usize = 32;

pub(super) struct Connection {
    pub(super) client: AsyncClient,
    routes: Mutex<Routes>,
    operations: Semaphore,
    pub(super) ready: Notify,
    /// The smaller of ours and the broker's.
    max_packet_bytes: AtomicU32,
}

impl Connection {
    pub(super) fn new(client: AsyncClient, max_packet_bytes: u32) -> Self {
        Self {
            client,
            routes: Mutex::default(),
            operations: Semaphore::new(OPERATIONS),
            ready: Notify::new(),
            max_packet_bytes: AtomicU32::new(max_packet_bytes),
        }
    }

    pub(super) fn routes(&self) -> MutexGuard<'_, Routes> {
        // A panic under the lock leaves at worst a waiter that is never answered, which its timeout ends.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn incoming(&self, packet: Packet, shared: &Shared) {
        match packet {
            Packet::ConnAck(ack) => {
                let broker = ack.properties.and_then(|p| p.max_packet_size);
                self.max_packet_bytes
                    .fetch_min(broker.unwrap_or(u32::MAX), Ordering::Relaxed);
                self.ready.notify_one();
            }
            Packet::PubAck(ack) => self.routes().publish_acknowledged(ack.pkid, ack.reason),
            Packet::SubAck(ack) => {
                let code = ack.return_codes.first().copied();
                let code = code.unwrap_or(SubscribeReasonCode::Unspecified);
                self.routes().subscribe_acknowledged(ack.pkid, code);
            }
            Packet::Publish(message) => {
                let Ok(topic) = std::str::from_utf8(&message.topic) else {
                    debug!("message with a topic that is not text dropped");
                    return;
                };
                if topic == shared.settings.standing_topic {
                    let payload = &message.payload;
                    let newest = (!payload.is_empty()).then(|| payload.clone());
                    shared.standing.send_replace(newest);
                }
                self.routes().deliver(topic, &message.payload);
            }
            _ => {}
        }
    }

    pub(super) async fn publish(
        &self,
        settings: &Settings,
        topic: &str,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), LinkError> {
        let bytes = payload.len() + topic.len() + PACKET_OVERHEAD;
        let limit = self.max_packet_bytes.load(Ordering::Relaxed) as usize;
        // One oversize message would end this connection and every one after it.
        if bytes > limit {
            return Err(LinkError::TooLarge {
                topic: topic.to_owned(),
                bytes,
                limit,
            });
        }
        let _permit = self.operations.acquire().await;
        (settings.leaving)(topic, &payload).map_err(|reason| LinkError::Unrecorded {
            topic: topic.to_owned(),
            reason,
        })?;
        let acknowledged = {
            let mut routes = self.routes();
            let acknowledged = routes.publish().ok_or(LinkError::Lost)?;
            let taken = self
                .client
                .try_publish(topic, QoS::AtLeastOnce, retain, payload);
            if taken.is_err() {
                routes.not_published();
                return Err(LinkError::Lost);
            }
            acknowledged
        };
        match answered(topic, acknowledged).await? {
            // Nobody subscribes to it at this moment: a success.
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => Err(LinkError::Refused {
                action: "take a message for",
                topic: topic.to_owned(),
                reason: format!("{reason:?}"),
            }),
        }
    }

    pub(super) async fn subscribe(&self, topic: &str) -> Result<(), LinkError> {
        let acknowledged = {
            let mut routes = self.routes();
            let acknowledged = routes.subscribe().ok_or(LinkError::Lost)?;
            if self.client.try_subscribe(topic, QoS::AtLeastOnce).is_err() {
                routes.not_subscribed();
                return Err(LinkError::Lost);
            }
            acknowledged
        };
        match answered(topic, acknowledged).await? {
            SubscribeReasonCode::Success(_) => Ok(()),
            reason => Err(LinkError::Refused {
                action: "let this device read",
                topic: topic.to_owned(),
                reason: format!("{reason:?}"),
            }),
        }
    }

    pub(super) async fn retained(
        &self,
        topic: &str,
        quiet: Duration,
        keep: bool,
    ) -> Result<Option<Bytes>, LinkError> {
        let _permit = self.operations.acquire().await;
        let (waiter, mut message) = self.routes().wait(topic);
        let _waiting = Waiting {
            connection: self,
            topic,
            waiter,
            keep,
        };
        tokio::select! {
            // Brokers may send the message before the acknowledgement.
            biased;
            arrived = &mut message => return content(arrived),
            subscribed = self.subscribe(topic) => subscribed?,
        }
        let confirmed = Instant::now();
        loop {
            // Other messages still pouring in may be ahead of ours: the silence must be the link's.
            let last = self.routes().last_message();
            let silent_since = last.map_or(confirmed, |last| last.max(confirmed));
            let until = (silent_since + quiet).min(confirmed + 10 * quiet);
            if until <= Instant::now() {
                return Ok(None);
            }
            tokio::select! {
                arrived = &mut message => return content(arrived),
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }
}

/// A message without content is how a retained one is removed.
fn content(arrived: Result<Bytes, oneshot::error::RecvError>) -> Result<Option<Bytes>, LinkError> {
    let payload = arrived.map_err(|_| LinkError::Lost)?;
    Ok((!payload.is_empty()).then_some(payload))
}

async fn answered<T>(topic: &str, answer: oneshot::Receiver<T>) -> Result<T, LinkError> {
    match tokio::time::timeout(OPERATION_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(LinkError::Lost),
        Err(_) => Err(LinkError::Timeout(topic.to_owned())),
    }
}

/// Gives a topic up again, however the fetch ended.
struct Waiting<'a> {
    connection: &'a Connection,
    topic: &'a str,
    waiter: u64,
    /// A standing subscription stays.
    keep: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut routes = self.connection.routes();
        if routes.stop_waiting(self.topic, self.waiter) && !self.keep {
            // If the client takes no more requests the connection is ending and the subscription with it.
            let _ = self.connection.client.try_unsubscribe(self.topic);
        }
    }
}
