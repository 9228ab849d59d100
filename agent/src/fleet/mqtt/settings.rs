//! What a connection is made of, and how that is told to the MQTT client.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::LastWill;
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use rustls::ClientConfig;

use super::OPERATIONS;

const CONNECT_TIMEOUT_SECONDS: u64 = 15;

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
    /// Told of each message, by topic and payload, before it leaves; an error says why it may not.
    pub leaving: Leaving,
}

pub type Leaving = Box<dyn Fn(&str, &[u8]) -> Result<(), String> + Send + Sync>;

/// Makes presence messages; the number is the session's.
pub struct Presence {
    pub born: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
    pub lost: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
    pub stopped: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
}

impl Settings {
    pub(super) fn options(&self, will: Vec<u8>) -> MqttOptions {
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
                will,
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
