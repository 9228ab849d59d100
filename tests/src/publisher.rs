//! Publishes retained messages of any content: what a broken or hostile broker would hold.

use std::collections::HashSet;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};

use crate::fleet::Fleet;
use crate::http::tls_config;

/// Publishes retained messages with the operator's certificate, and returns when all are acknowledged.
pub fn publish_retained(fleet: &Fleet, messages: Vec<(String, Vec<u8>)>) {
    let ca = fleet.home().join("ca");
    let tls = tls_config(
        &ca.join("ca.pem"),
        Some((&ca.join("operator.pem"), &ca.join("operator.key"))),
    );
    let mut options = MqttOptions::new("publisher-of-tests", "localhost", fleet.port());
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.into())));
    options.set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(Some(1 << 20));
    let (client, mut connection) = Client::new(options, messages.len() + 8);
    let count = messages.len();
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
