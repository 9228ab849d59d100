//! One connection to the fleet's broker: MQTT 5 over TLS with the operator's certificate.
//!
//! Commands publish, fetch and follow retained topics through it. A [`Link`] is one connection and never
//! more: when it breaks, every call says so and the caller makes a new one. So the client's own reconnecting,
//! which can drop what was not acknowledged or repeat a refused message for ever, never runs.
//!
//! A publish succeeds only when the broker acknowledged it with a good reason code; the error names the
//! topic. Sizes are checked before anything is sent. A few packets at most are in flight, and the task that
//! polls the connection never sends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnAck, Filter, Packet};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, MqttOptions};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

mod routing;

use routing::{Kind, Shared, poll};

/// The largest packet sent or taken. Chunks and metadata stay below 64 KiB; a status may be larger.
const MAX_PACKET_BYTES: u32 = 256 * 1024 + 1024;
/// What a publish adds to topic and payload: fixed header, lengths, packet id, properties.
const PACKET_OVERHEAD_BYTES: usize = 32;
/// Requests on their way at once; the bounded queue into the client holds more, so it is never full.
const WINDOW: usize = 8;
/// Topics in one SUBSCRIBE; AWS IoT Core takes no more than 8.
const FILTERS_PER_SUBSCRIBE: usize = 8;
/// How long the broker may take to acknowledge anything.
const ACK_TIMEOUT: Duration = Duration::from_secs(15);
/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Where and as whom to connect.
#[derive(Clone)]
pub struct LinkSettings {
    pub host: String,
    pub port: u16,
    /// With the fleet's authority as only root, and the operator's certificate.
    pub tls: Arc<rustls::ClientConfig>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot connect to the broker {broker}: {problem}")]
    Connect { broker: String, problem: String },
    #[error("the connection to the broker broke: {0}")]
    Lost(String),
    #[error("the broker did not acknowledge {what} within {} s", ACK_TIMEOUT.as_secs())]
    Silent { what: String },
    #[error("the broker refused {what}: {reason}")]
    Refused { what: String, reason: String },
    #[error("{topic} would be a packet of {size} bytes; the broker takes at most {limit}")]
    TooLarge {
        topic: String,
        size: usize,
        limit: usize,
    },
}

/// A living connection. Not meant for concurrent fetching: one caller at a time follows topics.
pub struct Link {
    client: AsyncClient,
    shared: Arc<Shared>,
    window: Semaphore,
    max_packet: usize,
    poller: JoinHandle<()>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

impl Link {
    pub async fn connect(settings: &LinkSettings) -> Result<Self, LinkError> {
        let broker = format!("{}:{}", settings.host, settings.port);
        let failed = |problem: String| LinkError::Connect {
            broker: broker.clone(),
            problem,
        };
        let id = format!("fleetctl-{:016x}", rand::rng().random::<u64>());
        let mut options = MqttOptions::new(id, settings.host.clone(), settings.port);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
            settings.tls.clone(),
        )));
        options.set_keep_alive(KEEP_ALIVE);
        options.set_clean_start(true);
        options.set_max_packet_size(Some(MAX_PACKET_BYTES));
        options.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        // Bounds the client's own table, which has 65,536 entries otherwise.
        options.set_outgoing_inflight_upper_limit(8 * WINDOW as u16);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        options.set_network_options(network);

        let (client, mut events) = AsyncClient::new(options, 4 * WINDOW);
        let connack = match timeout(CONNECT_TIMEOUT, events.poll()).await {
            Err(_) => {
                return Err(failed(format!(
                    "no answer within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )));
            }
            Ok(Err(e)) => return Err(failed(connect_problem(&e))),
            Ok(Ok(Event::Incoming(Packet::ConnAck(connack)))) => connack,
            Ok(Ok(other)) => return Err(failed(format!("it answered {other:?}"))),
        };
        let max_packet = accept(&connack).map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let poller = tokio::spawn(poll(events, shared.clone()));
        Ok(Self {
            client,
            shared,
            window: Semaphore::new(WINDOW),
            max_packet,
            poller,
        })
    }

    /// Publishes a retained message and waits for the broker's word that it has it.
    pub async fn publish(&self, topic: &str, payload: Bytes) -> Result<(), LinkError> {
        let size = topic.len() + payload.len() + PACKET_OVERHEAD_BYTES;
        if size > self.max_packet {
            return Err(LinkError::TooLarge {
                topic: topic.to_owned(),
                size,
                limit: self.max_packet,
            });
        }
        self.request(Kind::Publish, format!("the message to {topic}"), |client| {
            client
                .try_publish(topic, QoS::AtLeastOnce, true, payload)
                .is_ok()
        })
        .await
    }

    /// Starts following topics: their retained messages and what comes later arrive in [`Link::news`].
    pub async fn follow(&self, topics: &[String]) -> Result<(), LinkError> {
        self.shared.state().followed.extend(topics.iter().cloned());
        for part in topics.chunks(FILTERS_PER_SUBSCRIBE) {
            let filters: Vec<_> = part
                .iter()
                .map(|topic| Filter::new(topic.as_str(), QoS::AtLeastOnce))
                .collect();
            let what = format!("the subscription to {}", part.join(", "));
            self.request(Kind::Subscribe, what, |client| {
                client.try_subscribe_many(filters).is_ok()
            })
            .await?;
        }
        Ok(())
    }

    async fn unfollow(&self, topics: &[String]) -> Result<(), LinkError> {
        {
            let mut state = self.shared.state();
            for topic in topics {
                state.followed.remove(topic);
            }
        }
        futures::future::try_join_all(topics.iter().map(|topic| {
            self.request(
                Kind::Unsubscribe,
                format!("the end of the subscription to {topic}"),
                |client| client.try_unsubscribe(topic.as_str()).is_ok(),
            )
        }))
        .await
        .map(drop)
    }

    /// The newest messages of the topics followed, as soon as there are any; none when `until` has passed.
    pub async fn news(&self, until: Instant) -> Result<HashMap<String, Bytes>, LinkError> {
        loop {
            let notified = self.shared.news.notified();
            {
                let mut state = self.shared.state();
                if !state.inbox.is_empty() {
                    return Ok(std::mem::take(&mut state.inbox));
                }
                if let Some(problem) = &state.lost {
                    return Err(LinkError::Lost(problem.clone()));
                }
            }
            if timeout_at(until, notified).await.is_err() {
                return Ok(HashMap::new());
            }
        }
    }

    /// The retained messages of a few topics. One that stays silent for `quiet` after the broker has
    /// acknowledged the subscription counts as empty: MQTT knows no other "not found".
    pub async fn fetch(
        &self,
        topics: &[String],
        quiet: Duration,
    ) -> Result<HashMap<String, Bytes>, LinkError> {
        self.shared.state().inbox.clear();
        self.follow(topics).await?;
        let mut found = HashMap::new();
        while found.len() < topics.len() {
            let news = self.news(Instant::now() + quiet).await?;
            if news.is_empty() {
                break;
            }
            found.extend(news);
        }
        self.unfollow(topics).await?;
        Ok(found)
    }

    /// Says good-bye, so that the broker does not count a failure.
    pub async fn close(self) {
        if self.client.try_disconnect().is_ok() {
            // The polling task ends when the broker has closed its side.
            let lost = async {
                while self.shared.state().lost.is_none() {
                    self.shared.news.notified().await;
                }
            };
            let _ = timeout(Duration::from_secs(1), lost).await;
        }
    }

    /// Hands a request to the client and waits for its acknowledgement.
    async fn request(
        &self,
        kind: Kind,
        what: String,
        send: impl FnOnce(&AsyncClient) -> bool,
    ) -> Result<(), LinkError> {
        let _permit = self
            .window
            .acquire()
            .await
            .map_err(|e| LinkError::Lost(e.to_string()))?;
        let (answer, acknowledged) = oneshot::channel();
        {
            // Under one lock, so that the order of waiters is the order of requests.
            let mut state = self.shared.state();
            if let Some(problem) = &state.lost {
                return Err(LinkError::Lost(problem.clone()));
            }
            if !send(&self.client) {
                return Err(LinkError::Lost(
                    "the client takes no more requests".to_owned(),
                ));
            }
            state.queued.entry(kind).or_default().push_back(answer);
        }
        match timeout(ACK_TIMEOUT, acknowledged).await {
            Err(_) => Err(LinkError::Silent { what }),
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(reason))) => Err(LinkError::Refused { what, reason }),
            Ok(Err(_)) => {
                let problem = self.shared.state().lost.clone();
                Err(LinkError::Lost(
                    problem.unwrap_or_else(|| "it ended".to_owned()),
                ))
            }
        }
    }
}

/// What the broker offers; the largest packet it takes.
fn accept(connack: &ConnAck) -> Result<usize, String> {
    let Some(offers) = &connack.properties else {
        return Ok(MAX_PACKET_BYTES as usize);
    };
    if offers.retain_available == Some(0) {
        return Err("it keeps no retained messages, which carry the fleet's repository".to_owned());
    }
    if offers.max_qos == Some(0) {
        return Err("it offers QoS 0 only; QoS 1 is needed".to_owned());
    }
    Ok(offers
        .max_packet_size
        .unwrap_or(MAX_PACKET_BYTES)
        .min(MAX_PACKET_BYTES) as usize)
}

/// An error of the client in words that say what to look at.
fn connect_problem(error: &ConnectionError) -> String {
    match error {
        ConnectionError::Io(e) => e.to_string(),
        ConnectionError::Tls(e) => format!("TLS: {e}"),
        ConnectionError::Timeout(_) => "no answer in time".to_owned(),
        ConnectionError::ConnectionRefused(code) => format!("it refused: {code:?}"),
        ConnectionError::MqttState(e) => e.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_listening_is_an_error_that_names_the_broker() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("bind")
            .local_addr()
            .expect("address");
        let settings = LinkSettings {
            host: "127.0.0.1".to_owned(),
            port: free.port(),
            tls: Arc::new(
                rustls::ClientConfig::builder()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
        };
        let error = Link::connect(&settings)
            .await
            .expect_err("refused")
            .to_string();
        assert!(error.contains(&free.to_string()), "{error}");
    }
}
