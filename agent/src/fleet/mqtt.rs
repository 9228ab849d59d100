//! The connection to the broker: MQTT 5 over TLS, rebuilt whenever it fails, owning no state worth keeping.
//!
//! Every connection is a new client with a clean start; what must outlive it (outbox, wishes, chunks) is
//! kept elsewhere, so nothing is lost with a session. The polling task only routes: whoever publishes or
//! fetches does so on its own task through a [`Link`], and hears the broker's own answer or that the
//! connection was lost. A reason code that is not success is an error that names the topic.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet, PubAckReason, SubscribeReasonCode};
use rumqttc::v5::mqttbytes::{self, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};
use rustls::ClientConfig;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::abort::AbortOnDrop;
use super::routes::Routes;

/// Requests under way at once. With its later unsubscribe each may hold two packet ids, and mosquitto gives
/// out no more than 20.
const OPERATIONS: usize = 10;
/// A request and its unsubscribe each, and the goodbye.
const CHANNEL_CAPACITY: usize = 3 * OPERATIONS;
/// What a packet holds beside topic and payload.
const PACKET_OVERHEAD: usize = 32;
/// An operation gives up after this time, connection or not.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence of the broker towards a request that means the connection is wedged.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT_SECONDS: u64 = 15;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next failure counts as the first.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// After this many connections lost to an oversize message a topic is left alone for a while.
const STRIKES: u32 = 2;
const POISON_TIME: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("there is no connection to the broker")]
    NotConnected,
    #[error("the connection to the broker was lost")]
    Lost,
    #[error("the broker refused to {action} {topic}: {reason}; look at its access control")]
    Refused {
        action: &'static str,
        topic: String,
        reason: String,
    },
    #[error("a message of {bytes} bytes for {topic} is over the limit of {limit} bytes")]
    TooLarge {
        topic: String,
        bytes: usize,
        limit: usize,
    },
    #[error("the message in {0} is larger than this device takes (max_packet_bytes)")]
    Poisoned(String),
    #[error("the broker did not answer about {0} in time")]
    Timeout(String),
}

/// What a connection is made of.
pub struct Settings {
    pub host: String,
    pub port: u16,
    pub client_id: String,
    pub tls: Arc<ClientConfig>,
    pub keep_alive: Duration,
    pub max_packet_bytes: u32,
    /// Subscribed on every connection; its messages arrive on [`Link::standing`].
    pub standing_topic: String,
    /// Topic and payload of birth, last will and goodbye.
    pub presence_topic: String,
    pub presence: Presence,
}

/// Makes presence messages; the number is the session's.
pub struct Presence {
    pub born: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
    pub lost: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
    pub stopped: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
}

/// A handle on whatever connection there is. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    current: watch::Sender<Option<Arc<Connection>>>,
    standing: watch::Sender<Option<Bytes>>,
    sessions: watch::Sender<u64>,
    state: watch::Sender<LinkState>,
    poisoned: Mutex<HashMap<String, (u32, Instant)>>,
}

/// For people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    Connecting,
    Connected,
    /// And why.
    Lost(String),
}

struct Connection {
    client: AsyncClient,
    routes: Mutex<Routes>,
    operations: Semaphore,
    ready: Notify,
    /// The smaller of ours and the broker's.
    max_packet_bytes: AtomicU32,
}

impl Link {
    pub fn new(settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                current: watch::Sender::new(None),
                standing: watch::Sender::new(None),
                sessions: watch::Sender::new(0),
                state: watch::Sender::new(LinkState::Connecting),
                poisoned: Mutex::default(),
            }),
        }
    }

    /// Host and port, for people.
    pub fn broker(&self) -> String {
        format!(
            "{}:{}",
            self.shared.settings.host, self.shared.settings.port
        )
    }

    /// The newest message of the standing topic.
    pub fn standing(&self) -> watch::Receiver<Option<Bytes>> {
        self.shared.standing.subscribe()
    }

    /// Counts connections that are ready for use.
    pub fn sessions(&self) -> watch::Receiver<u64> {
        self.shared.sessions.subscribe()
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    /// Publishes at QoS 1 and waits for the broker's acknowledgement.
    pub async fn publish(
        &self,
        topic: &str,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), LinkError> {
        let connection = self.connection()?;
        connection.publish(topic, payload, retain).await
    }

    /// The retained message of one topic. `None` after the broker confirmed the subscription and then kept
    /// silent for `quiet`: MQTT has no other way to say that there is nothing.
    pub async fn retained(&self, topic: &str, quiet: Duration) -> Result<Option<Bytes>, LinkError> {
        if self.shared.is_poisoned(topic) {
            return Err(LinkError::Poisoned(topic.to_owned()));
        }
        let connection = self.connection()?;
        let standing = topic == self.shared.settings.standing_topic;
        // The subscription is there already, and not every broker sends again what it has sent on it.
        if standing && let Some(newest) = self.shared.standing.borrow().clone() {
            return Ok(Some(newest));
        }
        let fetch = connection.retained(topic, quiet, standing);
        tokio::time::timeout(OPERATION_TIMEOUT, fetch)
            .await
            .map_err(|_| LinkError::Timeout(topic.to_owned()))?
    }

    fn connection(&self) -> Result<Arc<Connection>, LinkError> {
        let current = self.shared.current.borrow().clone();
        current.ok_or(LinkError::NotConnected)
    }

    /// Keeps a connection up until `stop` says otherwise; then says goodbye.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut failures = 0;
        for session in 1.. {
            let began = Instant::now();
            let (reason, was_ready) = match self.connect(session, &mut stop).await {
                End::Stopped => return,
                End::Failed { reason, was_ready } => (reason, was_ready),
            };
            if was_ready && began.elapsed() > GOOD_CONNECTION {
                failures = 0;
            }
            let pause = pause(failures);
            failures += 1;
            warn!(%reason, retry_in_ms = pause.as_millis() as u64, "no connection to the broker");
            self.shared.state.send_replace(LinkState::Lost(reason));
            tokio::select! {
                _ = stop.changed() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One connection from its first packet to its end.
    async fn connect(&self, session: u64, stop: &mut watch::Receiver<bool>) -> End {
        let shared = &self.shared;
        let (client, event_loop) =
            AsyncClient::new(shared.settings.options(session), CHANNEL_CAPACITY);
        let connection = Arc::new(Connection {
            client,
            routes: Mutex::default(),
            operations: Semaphore::new(OPERATIONS),
            ready: Notify::new(),
            max_packet_bytes: AtomicU32::new(shared.settings.max_packet_bytes),
        });
        let polling = poll(event_loop, connection.clone(), shared.clone());
        let mut polling = AbortOnDrop(tokio::spawn(polling));
        let mut _greeting = None;
        let mut watchdog = tokio::time::interval(Duration::from_secs(1));
        let mut was_ready = false;
        let end = loop {
            tokio::select! {
                failed = &mut polling => {
                    let reason = failed.map_or_else(|e| e.to_string(), |e| self.explain(&connection, &e));
                    break End::Failed { reason, was_ready };
                }
                () = connection.ready.notified() => {
                    was_ready = true;
                    // What an earlier connection brought may be gone from the broker.
                    shared.standing.send_if_modified(|newest| {
                        *newest = None;
                        false
                    });
                    shared.current.send_replace(Some(connection.clone()));
                    shared.state.send_replace(LinkState::Connected);
                    let greet = greet(shared.clone(), connection.clone(), session);
                    _greeting = Some(AbortOnDrop(tokio::spawn(greet)));
                }
                _ = watchdog.tick() => {
                    let oldest = connection.routes().oldest();
                    if oldest.is_some_and(|since| since.elapsed() > ACKNOWLEDGE_TIMEOUT) {
                        let reason = "the broker stopped acknowledging".to_owned();
                        break End::Failed { reason, was_ready };
                    }
                }
                _ = stop.changed() => {
                    if was_ready {
                        self.say_goodbye(&connection, session, &mut polling).await;
                    }
                    break End::Stopped;
                }
            }
        };
        shared.current.send_replace(None);
        connection.routes().close();
        end
    }

    /// The last will is not sent after a proper goodbye, so the goodbye says it itself.
    async fn say_goodbye<T>(
        &self,
        connection: &Connection,
        session: u64,
        polling: &mut AbortOnDrop<T>,
    ) {
        let settings = &self.shared.settings;
        let payload = (settings.presence.stopped)(session);
        let goodbye = async {
            let _ = connection
                .publish(&settings.presence_topic, payload, true)
                .await;
            if connection.client.try_disconnect().is_ok() {
                let _ = polling.await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }

    /// What ended the connection, in words; remembers topics whose messages are too large to be received.
    fn explain(&self, connection: &Connection, error: &ConnectionError) -> String {
        use mqttbytes::Error::PayloadSizeLimitExceeded;
        let Settings { host, port, .. } = &self.shared.settings;
        if let ConnectionError::MqttState(
            StateError::Deserialization(PayloadSizeLimitExceeded { .. })
            | StateError::IncomingPacketTooLarge { .. },
        ) = error
        {
            let mut topics = connection.routes().awaited();
            if topics.is_empty() {
                topics.push(self.shared.settings.standing_topic.clone());
            }
            self.shared.strike(&topics);
            return format!(
                "{host}:{port} sent a message over max_packet_bytes ({topics:?} awaited)"
            );
        }
        match error {
            ConnectionError::ConnectionRefused(code) => {
                format!("{host}:{port} refused the connection: {code:?}")
            }
            ConnectionError::Timeout(_) => format!("{host}:{port} does not answer"),
            error => format!("{host}:{port}: {error}"),
        }
    }
}

enum End {
    Stopped,
    Failed { reason: String, was_ready: bool },
}

/// Routes events until the connection ends.
async fn poll(
    mut event_loop: EventLoop,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
) -> ConnectionError {
    loop {
        match event_loop.poll().await {
            Ok(Event::Incoming(packet)) => connection.incoming(packet, &shared),
            Ok(Event::Outgoing(Outgoing::Publish(id))) => connection.routes().publish_sent(id),
            Ok(Event::Outgoing(Outgoing::Subscribe(id))) => connection.routes().subscribe_sent(id),
            Ok(Event::Outgoing(_)) => {}
            Err(error) => return error,
        }
    }
}

/// What every connection begins with: presence and the standing subscription.
async fn greet(shared: Arc<Shared>, connection: Arc<Connection>, session: u64) {
    let settings = &shared.settings;
    info!(broker = %settings.host, port = settings.port, session, "connected to the broker");
    let birth = (settings.presence.born)(session);
    let born = connection
        .publish(&settings.presence_topic, birth, true)
        .await;
    let subscribed = if shared.is_poisoned(&settings.standing_topic) {
        Err(LinkError::Poisoned(settings.standing_topic.clone()))
    } else {
        connection.subscribe(&settings.standing_topic).await
    };
    // Neither ends the connection: what else is permitted still works.
    for problem in [born, subscribed].into_iter().filter_map(Result::err) {
        error!(%problem, "greeting the broker failed");
    }
    shared.sessions.send_modify(|count| *count += 1);
}

impl Connection {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        // A panic under the lock leaves at worst a waiter that is never answered, which its timeout ends.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming(&self, packet: Packet, shared: &Shared) {
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

    async fn publish(&self, topic: &str, payload: Vec<u8>, retain: bool) -> Result<(), LinkError> {
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

    async fn subscribe(&self, topic: &str) -> Result<(), LinkError> {
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

    async fn retained(
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

impl Shared {
    fn poisoned(&self) -> MutexGuard<'_, HashMap<String, (u32, Instant)>> {
        self.poisoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, topics: &[String]) {
        let mut poisoned = self.poisoned();
        poisoned.retain(|_, (_, since)| since.elapsed() < POISON_TIME);
        for topic in topics {
            let (strikes, since) = poisoned.entry(topic.clone()).or_insert((0, Instant::now()));
            *strikes += 1;
            *since = Instant::now();
        }
    }

    fn is_poisoned(&self, topic: &str) -> bool {
        self.poisoned()
            .get(topic)
            .is_some_and(|(strikes, since)| *strikes >= STRIKES && since.elapsed() < POISON_TIME)
    }
}

impl Settings {
    fn options(&self, session: u64) -> MqttOptions {
        let mut options = MqttOptions::new(&self.client_id, &self.host, self.port);
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
                self.tls.clone(),
            )))
            // The crate panics below five seconds.
            .set_keep_alive(self.keep_alive.max(Duration::from_secs(5)))
            .set_clean_start(true)
            .set_connection_timeout(CONNECT_TIMEOUT_SECONDS)
            // The default is 10 KiB.
            .set_max_packet_size(Some(self.max_packet_bytes))
            // Bounds the crate's own table, which is 65,536 entries by default.
            .set_outgoing_inflight_upper_limit(2 * OPERATIONS as u16)
            .set_last_will(LastWill::new(
                &self.presence_topic,
                (self.presence.lost)(session),
                QoS::AtLeastOnce,
                true,
                None,
            ));
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT_SECONDS);
        options.set_network_options(network);
        options
    }
}

/// Exponential, with jitter: a thousand devices that lost one broker come back spread out.
fn pause(failures: u32) -> Duration {
    let longest = (FIRST_PAUSE * 2u32.saturating_pow(failures.min(10))).min(LONGEST_PAUSE);
    longest.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        assert!(pause(0) <= FIRST_PAUSE);
        for failures in [9, 50, u32::MAX] {
            let pause = pause(failures);
            assert!(pause > LONGEST_PAUSE / 3 && pause <= LONGEST_PAUSE);
        }
        assert_ne!(pause(9), pause(9));
    }
}
