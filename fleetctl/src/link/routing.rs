//! The polling side of a link: whose acknowledgement came, which message is whose.
//!
//! One task polls; callers hand their requests to the client and leave a waiter here. The client sends in the
//! order it was handed requests and says which packet id each got, which is how an acknowledgement finds its
//! waiter.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    Packet, PubAck, PubAckReason, SubAck, SubscribeReasonCode, UnsubAck, UnsubAckReason,
};
use rumqttc::v5::{Event, EventLoop};
use tokio::sync::{Notify, oneshot};

use super::connect_problem;

pub type Answer = oneshot::Sender<Result<(), String>>;

/// What the polling task and the callers share.
#[derive(Default)]
pub struct State {
    /// Handed to the client, packet id not yet known. The client keeps their order.
    pub queued: HashMap<Kind, VecDeque<Answer>>,
    /// On their way, by packet id.
    waiting: HashMap<(Kind, u16), Answer>,
    /// The newest message of each topic followed, until taken.
    pub inbox: HashMap<String, Bytes>,
    /// Topics followed: messages of others are dropped.
    pub followed: HashSet<String>,
    pub lost: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Publish,
    Subscribe,
    Unsubscribe,
}

#[derive(Default)]
pub struct Shared {
    state: Mutex<State>,
    /// Something came in, or the connection broke.
    pub news: Notify,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, problem: String) {
        let mut state = self.state();
        state.lost.get_or_insert(problem);
        // Dropping the senders tells every caller.
        state.queued.clear();
        state.waiting.clear();
        drop(state);
        self.news.notify_one();
    }
}

/// Only routes; never sends, never waits on a caller.
pub async fn poll(mut events: EventLoop, shared: Arc<Shared>) {
    loop {
        match events.poll().await {
            Ok(event) => route(&shared, event),
            Err(e) => return shared.lose(connect_problem(&e)),
        }
    }
}

fn route(shared: &Shared, event: Event) {
    match event {
        Event::Outgoing(Outgoing::Publish(id)) => sent(shared, Kind::Publish, id),
        Event::Outgoing(Outgoing::Subscribe(id)) => sent(shared, Kind::Subscribe, id),
        Event::Outgoing(Outgoing::Unsubscribe(id)) => sent(shared, Kind::Unsubscribe, id),
        Event::Incoming(Packet::PubAck(PubAck { pkid, reason, .. })) => {
            acknowledged(shared, Kind::Publish, pkid, publish_answer(reason));
        }
        Event::Incoming(Packet::SubAck(SubAck {
            pkid, return_codes, ..
        })) => {
            acknowledged(
                shared,
                Kind::Subscribe,
                pkid,
                subscribe_answer(&return_codes),
            );
        }
        Event::Incoming(Packet::UnsubAck(UnsubAck { pkid, reasons, .. })) => {
            acknowledged(
                shared,
                Kind::Unsubscribe,
                pkid,
                unsubscribe_answer(&reasons),
            );
        }
        Event::Incoming(Packet::Publish(publish)) => {
            let Ok(topic) = String::from_utf8(publish.topic.to_vec()) else {
                return;
            };
            // An empty message takes a retained one away: no news.
            if publish.payload.is_empty() {
                return;
            }
            let mut state = shared.state();
            if state.followed.contains(&topic) {
                state.inbox.insert(topic, publish.payload);
                drop(state);
                shared.news.notify_one();
            }
        }
        _ => {}
    }
}

fn sent(shared: &Shared, kind: Kind, id: u16) {
    let mut state = shared.state();
    if let Some(answer) = state.queued.get_mut(&kind).and_then(VecDeque::pop_front) {
        state.waiting.insert((kind, id), answer);
    }
}

fn acknowledged(shared: &Shared, kind: Kind, id: u16, result: Result<(), String>) {
    if let Some(answer) = shared.state().waiting.remove(&(kind, id)) {
        // A caller that gave up is gone.
        let _ = answer.send(result);
    }
}

/// "No matching subscribers" (0x10) is the usual answer to a retained message: it is kept all the same.
fn publish_answer(reason: PubAckReason) -> Result<(), String> {
    match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
        PubAckReason::NotAuthorized => Err(not_authorized()),
        PubAckReason::QuotaExceeded => Err("a quota is exceeded".to_owned()),
        other => Err(format!("{other:?}")),
    }
}

fn subscribe_answer(codes: &[SubscribeReasonCode]) -> Result<(), String> {
    codes.iter().try_for_each(|code| match code {
        SubscribeReasonCode::Success(_) => Ok(()),
        SubscribeReasonCode::NotAuthorized => Err(not_authorized()),
        other => Err(format!("{other:?}")),
    })
}

fn unsubscribe_answer(reasons: &[UnsubAckReason]) -> Result<(), String> {
    reasons.iter().try_for_each(|reason| match reason {
        UnsubAckReason::Success | UnsubAckReason::NoSubscriptionExisted => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

fn not_authorized() -> String {
    "not authorized; check the broker's access list for the operator's certificate".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;

    #[test]
    fn retained_without_a_subscriber_is_success_and_every_other_code_an_error() {
        assert!(publish_answer(PubAckReason::Success).is_ok());
        assert!(publish_answer(PubAckReason::NoMatchingSubscribers).is_ok());
        assert!(
            publish_answer(PubAckReason::NotAuthorized)
                .expect_err("refused")
                .contains("access list")
        );
        assert!(publish_answer(PubAckReason::QuotaExceeded).is_err());
        let codes = [
            SubscribeReasonCode::Success(QoS::AtLeastOnce),
            SubscribeReasonCode::NotAuthorized,
        ];
        assert!(subscribe_answer(&codes).is_err());
    }
}
