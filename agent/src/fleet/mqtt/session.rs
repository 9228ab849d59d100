//! Bringing a connection up, keeping it up, and ending it in good order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes;
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, StateError};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::connection::Connection;
use super::refusals::Request;
use super::{Link, LinkError, LinkState, OPERATIONS, Settings, Shared};
use crate::fleet::abort::AbortOnDrop;
use crate::fleet::pause;

/// A request and its unsubscribe each, and the goodbye.
const CHANNEL_CAPACITY: usize = 3 * OPERATIONS;
/// Silence of the broker towards a request that means the connection is wedged.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next failure counts as the first.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

impl Link {
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
            let pause = reconnect_pause(failures);
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
        let will = (shared.settings.presence.lost)(session);
        // The broker has it from the first packet on.
        if let Err(reason) = (shared.settings.leaving)(&shared.settings.presence_topic, &will) {
            let reason = format!("the last will could not be recorded: {reason}");
            return End::Failed {
                reason,
                was_ready: false,
            };
        }
        let (client, event_loop) =
            AsyncClient::new(shared.settings.options(will), CHANNEL_CAPACITY);
        let connection = Arc::new(Connection::new(client, shared.settings.max_packet_bytes));
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
                    shared.refusals.forget();
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
            let topic = &settings.presence_topic;
            let _ = connection.publish(settings, topic, payload, true).await;
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
            self.shared.poisoned.strike(&topics);
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

/// What every connection begins with: presence and the standing subscription. What is refused is asked for again:
/// it may be permitted without a new connection.
async fn greet(shared: Arc<Shared>, connection: Arc<Connection>, session: u64) {
    let settings = &shared.settings;
    info!(broker = %settings.host, port = settings.port, session, "connected to the broker");
    let (mut born, mut subscribed) = (false, false);
    for attempt in 1.. {
        if !born {
            let topic = &settings.presence_topic;
            let birth = (settings.presence.born)(session);
            let published = connection.publish(settings, topic, birth, true).await;
            born = greeted(shared.refusals.noted(Request::Publish, topic, published));
        }
        if !subscribed {
            let topic = &settings.standing_topic;
            subscribed = if shared.poisoned.contains(topic) {
                greeted(Err(LinkError::Poisoned(topic.clone())))
            } else {
                let answer = connection.subscribe(topic).await;
                greeted(shared.refusals.noted(Request::Read, topic, answer))
            };
        }
        // Neither holds the others up: what else is permitted works.
        if attempt == 1 {
            shared.sessions.send_modify(|count| *count += 1);
        }
        if born && subscribed {
            return;
        }
        tokio::time::sleep(pause::after(attempt).min(LONGEST_PAUSE)).await;
    }
}

fn greeted(outcome: Result<(), LinkError>) -> bool {
    if let Err(problem) = &outcome {
        error!(%problem, "greeting the broker failed");
    }
    outcome.is_ok()
}

/// Exponential, with jitter: a thousand devices that lost one broker come back spread out.
fn reconnect_pause(failures: u32) -> Duration {
    let longest = (FIRST_PAUSE * 2u32.saturating_pow(failures.min(10))).min(LONGEST_PAUSE);
    longest.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        assert!(reconnect_pause(0) <= FIRST_PAUSE);
        for failures in [9, 50, u32::MAX] {
            let pause = reconnect_pause(failures);
            assert!(pause > LONGEST_PAUSE / 3 && pause <= LONGEST_PAUSE);
        }
        assert_ne!(reconnect_pause(9), reconnect_pause(9));
    }
}
