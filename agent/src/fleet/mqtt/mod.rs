//! The connection to the broker: MQTT 5 over TLS, rebuilt whenever it fails, owning no state worth keeping.
//!
//! Every connection is a new client with a clean start; what must outlive it (outbox, wishes, chunks) is
//! kept elsewhere, so nothing is lost with a session. The polling task only routes: whoever publishes or
//! fetches does so on its own task through a [`Link`], and hears the broker's own answer or that the
//! connection was lost. A reason code that is not success is an error that names the topic.
//!
//! `session` brings connections up and ends them, `connection` is one of them in use, `settings` what
//! it is made of, `poison` remembers topics that broke one, `refusals` what the broker does not permit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use connection::Connection;
use poison::Poisoned;
use refusals::{Refusals, Request};
pub use settings::{Leaving, Presence, Settings};

mod connection;
mod poison;
mod refusals;
mod session;
mod settings;

/// Requests under way at once. With its later unsubscribe each may hold two packet ids, and mosquitto gives
/// out no more than 20.
const OPERATIONS: usize = 10;
/// An operation gives up after this time, connection or not.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

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
    #[error("a message for {topic} stays here, since it could not be recorded first: {reason}")]
    Unrecorded { topic: String, reason: String },
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
    poisoned: Poisoned,
    refusals: Refusals,
}

/// For people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    Connecting,
    Connected,
    /// And why.
    Lost(String),
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
                poisoned: Poisoned::default(),
                refusals: Refusals::default(),
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

    /// What the broker refuses this device on this connection, in words; wakes when that changes.
    pub async fn refused(&self, known: &[String]) -> Vec<String> {
        let mut refusals = self.shared.refusals.subscribe();
        let texts = |all: &BTreeMap<_, String>| all.values().cloned().collect::<Vec<_>>();
        let changed = refusals.wait_for(|all| texts(all) != known).await;
        // The sender lives as long as this link.
        changed.map_or_else(|_| Vec::new(), |all| texts(&all))
    }

    /// Publishes at QoS 1 and waits for the broker's acknowledgement.
    pub async fn publish(
        &self,
        topic: &str,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), LinkError> {
        let connection = self.connection()?;
        let settings = &self.shared.settings;
        let published = connection.publish(settings, topic, payload, retain).await;
        let refusals = &self.shared.refusals;
        refusals.noted(Request::Publish, topic, published)
    }

    /// The retained message of one topic. `None` after the broker confirmed the subscription and then kept
    /// silent for `quiet`: MQTT has no other way to say that there is nothing.
    pub async fn retained(&self, topic: &str, quiet: Duration) -> Result<Option<Bytes>, LinkError> {
        if self.shared.poisoned.contains(topic) {
            return Err(LinkError::Poisoned(topic.to_owned()));
        }
        let connection = self.connection()?;
        let standing = topic == self.shared.settings.standing_topic;
        // The subscription is there already, and not every broker sends again what it has sent on it.
        if standing && let Some(newest) = self.shared.standing.borrow().clone() {
            return Ok(Some(newest));
        }
        let fetch = connection.retained(topic, quiet, standing);
        let fetched = tokio::time::timeout(OPERATION_TIMEOUT, fetch)
            .await
            .map_err(|_| LinkError::Timeout(topic.to_owned()))?;
        self.shared.refusals.noted(Request::Read, topic, fetched)
    }

    fn connection(&self) -> Result<Arc<Connection>, LinkError> {
        let current = self.shared.current.borrow().clone();
        current.ok_or(LinkError::NotConnected)
    }
}
