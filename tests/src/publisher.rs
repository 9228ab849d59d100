//! The operator's certificate in a test's hands: publishes retained messages of any content, as a broken or hostile
//! broker would hold them, and reads what stands on a broker.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};

use crate::fleet::Fleet;
use crate::http::tls_config;
use crate::wait;

fn connect(fleet: &Fleet, requests: usize) -> (Client, Connection) {
    let ca = fleet.home().join("ca");
    let tls = tls_config(
        &ca.join("ca.pem"),
        Some((&ca.join("operator.pem"), &ca.join("operator.key"))),
    );
    let mut options = MqttOptions::new("publisher-of-tests", "localhost", fleet.port());
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.into())));
    options.set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(Some(1 << 20));
    Client::new(options, requests + 8)
}

/// Publishes retained messages, and returns when all are acknowledged.
pub fn publish_retained(fleet: &Fleet, messages: Vec<(String, Vec<u8>)>) {
    let count = messages.len();
    let (client, mut connection) = connect(fleet, count);
    for (topic, payload) in messages {
        client
            .publish(topic, QoS::AtLeastOnce, true, payload)
            .expect("queue a message");
    }
    let mut acknowledged = HashSet::new();
    for event in connection.iter() {
        match event.expect("the broker takes the publisher's messages") {
            Event::Incoming(Packet::PubAck(ack)) => {
                acknowledged.insert(ack.pkid);
                if acknowledged.len() == count {
                    client.disconnect().expect("queue a goodbye");
                }
            }
            Event::Outgoing(Outgoing::Disconnect) => return,
            _ => {}
        }
    }
}

/// The next message of a topic: the retained one, or the first that comes.
pub fn next_message(fleet: &Fleet, topic: &str) -> Vec<u8> {
    let (client, mut connection) = connect(fleet, 1);
    client
        .subscribe(topic, QoS::AtLeastOnce)
        .expect("queue a subscription");
    let end = Instant::now() + wait::PATIENCE;
    while Instant::now() < end {
        match connection.recv_timeout(Duration::from_secs(1)) {
            Ok(Ok(Event::Incoming(Packet::Publish(message)))) => {
                return message.payload.to_vec();
            }
            Ok(Err(e)) => panic!("the connection to the broker broke: {e}"),
            _ => {}
        }
    }
    panic!("no message in {topic}");
}
