//! Which request an acknowledgement belongs to, and who waits for which message, on one connection.
//!
//! rumqttc hands out packet ids only when it sends, in the order of requests, and reports them as events; so
//! a request is first remembered in that order, then by its id. A connection that ends drops all of this and
//! with it every waiter, who then knows that nothing was acknowledged.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::{PubAckReason, SubscribeReasonCode};
use tokio::sync::oneshot;

/// A request that waits for its acknowledgement.
struct Pending<T> {
    since: Instant,
    answer: oneshot::Sender<T>,
}

/// All that is under way on one connection.
#[derive(Default)]
pub struct Routes {
    publishing: VecDeque<Pending<PubAckReason>>,
    published: HashMap<u16, Pending<PubAckReason>>,
    subscribing: VecDeque<Pending<SubscribeReasonCode>>,
    /// The crate's packet ids are a short ring shared with publishes, so one may stand for two subscriptions.
    subscribed: HashMap<u16, VecDeque<Pending<SubscribeReasonCode>>>,
    waiting: HashMap<String, Vec<(u64, oneshot::Sender<Bytes>)>>,
    next_waiter: u64,
    last_message: Option<Instant>,
    closed: bool,
}

impl Routes {
    /// Call under the same lock under which the request is handed to the client: the order is the match.
    pub fn publish(&mut self) -> Option<oneshot::Receiver<PubAckReason>> {
        Self::push(self.closed, &mut self.publishing)
    }

    /// Likewise.
    pub fn subscribe(&mut self) -> Option<oneshot::Receiver<SubscribeReasonCode>> {
        Self::push(self.closed, &mut self.subscribing)
    }

    fn push<T>(closed: bool, queue: &mut VecDeque<Pending<T>>) -> Option<oneshot::Receiver<T>> {
        let (answer, receiver) = oneshot::channel();
        let since = Instant::now();
        (!closed).then(|| {
            queue.push_back(Pending { since, answer });
            receiver
        })
    }

    /// The client did not take the request that was just announced.
    pub fn not_published(&mut self) {
        self.publishing.pop_back();
    }

    pub fn not_subscribed(&mut self) {
        self.subscribing.pop_back();
    }

    pub fn publish_sent(&mut self, id: u16) {
        if let Some(pending) = self.publishing.pop_front() {
            self.published.insert(id, pending);
        }
    }

    pub fn subscribe_sent(&mut self, id: u16) {
        if let Some(pending) = self.subscribing.pop_front() {
            self.subscribed.entry(id).or_default().push_back(pending);
        }
    }

    pub fn publish_acknowledged(&mut self, id: u16, reason: PubAckReason) {
        if let Some(pending) = self.published.remove(&id) {
            // Whoever asked may have given up.
            let _ = pending.answer.send(reason);
        }
    }

    pub fn subscribe_acknowledged(&mut self, id: u16, code: SubscribeReasonCode) {
        let Some(queue) = self.subscribed.get_mut(&id) else {
            return;
        };
        if let Some(pending) = queue.pop_front() {
            let _ = pending.answer.send(code);
        }
        if queue.is_empty() {
            self.subscribed.remove(&id);
        }
    }

    /// Waits for the next message of a topic.
    pub fn wait(&mut self, topic: &str) -> (u64, oneshot::Receiver<Bytes>) {
        let (sender, receiver) = oneshot::channel();
        self.next_waiter += 1;
        if !self.closed {
            let waiters = self.waiting.entry(topic.to_owned()).or_default();
            waiters.push((self.next_waiter, sender));
        }
        (self.next_waiter, receiver)
    }

    /// Stops waiting. True when nobody else waits for the topic, so that it may be unsubscribed.
    pub fn stop_waiting(&mut self, topic: &str, waiter: u64) -> bool {
        if let Some(waiters) = self.waiting.get_mut(topic) {
            waiters.retain(|(number, _)| *number != waiter);
            if !waiters.is_empty() {
                return false;
            }
            self.waiting.remove(topic);
        }
        !self.closed
    }

    /// A message arrived. One that nobody waits for is dropped.
    pub fn deliver(&mut self, topic: &str, payload: &Bytes) {
        self.last_message = Some(Instant::now());
        for (_, waiter) in self
            .waiting
            .get_mut(topic)
            .into_iter()
            .flat_map(std::mem::take)
        {
            let _ = waiter.send(payload.clone());
        }
    }

    pub fn last_message(&self) -> Option<Instant> {
        self.last_message
    }

    /// Topics that somebody waits for.
    pub fn awaited(&self) -> Vec<String> {
        self.waiting.keys().cloned().collect()
    }

    /// Since when the oldest request has been without its acknowledgement.
    pub fn oldest(&self) -> Option<Instant> {
        let publishes = self.publishing.iter().chain(self.published.values());
        let subscribed = self.subscribed.values().flatten();
        let subscribes = self.subscribing.iter().chain(subscribed);
        let publishes = publishes.map(|p| p.since);
        publishes.chain(subscribes.map(|p| p.since)).min()
    }

    /// The connection has ended: every waiter hears of it by its dropped channel.
    pub fn close(&mut self) {
        *self = Self {
            closed: true,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;

    #[test]
    fn acknowledgements_find_their_requests_by_order_and_then_by_id() {
        let mut routes = Routes::default();
        let mut first = routes.publish().expect("open");
        let mut second = routes.publish().expect("open");
        routes.publish_sent(7);
        routes.publish_sent(8);
        routes.publish_acknowledged(8, PubAckReason::NotAuthorized);
        assert!(first.try_recv().is_err());
        assert_eq!(second.try_recv(), Ok(PubAckReason::NotAuthorized));
        routes.publish_acknowledged(7, PubAckReason::Success);
        assert_eq!(first.try_recv(), Ok(PubAckReason::Success));
        // An id that nobody knows is not an accident.
        routes.publish_acknowledged(7, PubAckReason::Success);
        assert!(routes.oldest().is_none());
    }

    #[test]
    fn two_subscriptions_under_one_packet_id_are_answered_in_order() {
        let mut routes = Routes::default();
        let mut first = routes.subscribe().expect("open");
        let mut second = routes.subscribe().expect("open");
        routes.subscribe_sent(3);
        routes.subscribe_sent(3);
        routes.subscribe_acknowledged(3, SubscribeReasonCode::NotAuthorized);
        routes.subscribe_acknowledged(3, SubscribeReasonCode::Success(QoS::AtLeastOnce));
        assert_eq!(first.try_recv(), Ok(SubscribeReasonCode::NotAuthorized));
        assert!(matches!(
            second.try_recv(),
            Ok(SubscribeReasonCode::Success(_))
        ));
    }

    #[test]
    fn a_topic_is_let_go_with_its_last_waiter() {
        let mut routes = Routes::default();
        let (first, _one) = routes.wait("a");
        let (second, mut two) = routes.wait("a");
        assert!(!routes.stop_waiting("a", first));
        routes.deliver("a", &Bytes::from_static(b"x"));
        routes.deliver("b", &Bytes::from_static(b"nobody asked"));
        assert_eq!(two.try_recv(), Ok(Bytes::from_static(b"x")));
        assert!(routes.stop_waiting("a", second));
    }

    #[test]
    fn a_connection_that_ends_tells_everybody() {
        let mut routes = Routes::default();
        let mut ack = routes.publish().expect("open");
        let (_, mut message) = routes.wait("a");
        routes.close();
        assert!(ack.try_recv().is_err() && message.try_recv().is_err());
        assert!(routes.publish().is_none() && routes.subscribe().is_none());
        assert!(!routes.stop_waiting("a", 1), "nothing to unsubscribe from");
    }
}
