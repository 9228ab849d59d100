//! The connection to the broker when things are missing, forbidden, too large, gone or wedged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use edgeward_agent::fleet::mqtt::{LinkError, LinkState};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Packet, Publish, SubAck, SubscribeReasonCode,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::broker::{Broker, Party};
use crate::site::{FLEET, Site};
use crate::wait;

const QUIET: Duration = Duration::from_millis(200);
const LIMIT: u32 = 256 << 10;

fn topic(tail: &str) -> String {
    format!("edgeward/v1/{FLEET}/{tail}")
}

#[tokio::test]
async fn a_retained_message_is_read_and_an_absent_one_is_known_to_be_absent() {
    let site = Site::new();
    let broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let device = Party::connect(&site, "scanner-1", broker.port, LIMIT).await;
    let name = topic("repo/chunk/aa");
    operator.put(&name, vec![7; 60_000]).await;
    for _ in 0..3 {
        let read = device.link.retained(&name, QUIET).await.expect("read");
        assert_eq!(read.expect("present").len(), 60_000);
    }
    let absent = topic("repo/chunk/bb");
    assert_eq!(device.link.retained(&absent, QUIET).await, Ok(None));
    operator.put(&name, Vec::new()).await;
    assert_eq!(device.link.retained(&name, QUIET).await, Ok(None));
    // Many at once, present and absent mixed, each with its own answer.
    for number in 0..40 {
        let name = topic(&format!("repo/chunk/{number}"));
        operator.put(&name, vec![number; 50_000]).await;
    }
    let reads = (0..80u8).map(|number| {
        let link = device.link.clone();
        async move {
            let name = topic(&format!("repo/chunk/{number}"));
            (number, link.retained(&name, QUIET).await.expect("read"))
        }
    });
    for (number, read) in futures::future::join_all(reads).await {
        assert_eq!(read.map(|r| r[0]), (number < 40).then_some(number));
    }
}

#[tokio::test]
async fn what_the_broker_forbids_is_an_error_that_names_the_topic() {
    let site = Site::new();
    let broker = Broker::start(&site).await;
    let device = Party::connect(&site, "scanner-1", broker.port, LIMIT).await;
    let foreign = topic("device/scanner-2/status");
    let error = device.link.publish(&foreign, vec![1], true).await;
    let error = error.expect_err("refused");
    assert!(matches!(error, LinkError::Refused { .. }), "{error}");
    assert!(error.to_string().contains(&foreign), "{error}");
    // Nobody subscribes to its own status: no error.
    let own = topic("device/scanner-1/status");
    device.link.publish(&own, vec![1], true).await.expect("own");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_an_error_and_the_connection_stays() {
    let site = Site::new();
    let broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let device = Party::connect(&site, "scanner-1", broker.port, LIMIT).await;
    let own = topic("device/scanner-1/status");
    let error = device.link.publish(&own, vec![0; 300_000], true).await;
    assert!(
        matches!(error, Err(LinkError::TooLarge { .. })),
        "{error:?}"
    );
    // The other way round: mosquitto keeps what a client does not take from it.
    let large = topic("repo/chunk/large");
    operator.put(&large, vec![0; 300_000]).await;
    assert_eq!(device.link.retained(&large, QUIET).await, Ok(None));
    device
        .link
        .publish(&own, vec![0; 1000], true)
        .await
        .expect("still connected");
    assert_eq!(*device.link.sessions().borrow(), 1, "the first connection");
}

#[tokio::test]
async fn a_lost_broker_fails_what_is_under_way_and_is_found_again() {
    let site = Site::new();
    let mut broker = Broker::start(&site).await;
    let device = Party::connect(&site, "scanner-1", broker.port, LIMIT).await;
    let waiting = {
        let link = device.link.clone();
        tokio::spawn(async move {
            let name = topic("repo/chunk/aa");
            link.retained(&name, Duration::from_secs(20)).await
        })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    broker.kill();
    let outcome = waiting.await.expect("join");
    assert_eq!(outcome, Err(LinkError::Lost));
    let state = device.link.state();
    wait::until("the loss to be noticed", || {
        matches!(&*state.borrow(), LinkState::Lost(_))
    })
    .await;
    let name = topic("repo/chunk/aa");
    let offline = device.link.retained(&name, QUIET).await;
    assert_eq!(offline, Err(LinkError::NotConnected));
    broker.restart().await;
    device.wait_session(2).await;
    assert_eq!(device.link.retained(&name, QUIET).await, Ok(None));
}

#[tokio::test]
async fn birth_goodbye_and_last_will_are_left_on_the_broker() {
    let site = Site::new();
    let broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let name = topic("device/scanner-1/online");
    let presence = async |expected: &str| {
        let end = tokio::time::Instant::now() + wait::PATIENCE;
        loop {
            let read = operator.link.retained(&name, QUIET).await.expect("read");
            if read.as_deref() == Some(expected.as_bytes()) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "{read:?} is not {expected}"
            );
        }
    };
    let device = Party::connect(&site, "scanner-1", broker.port, LIMIT).await;
    presence("born 1").await;
    device.stop().await;
    presence("stopped 1").await;
    let device = Party::connect(&site, "scanner-1", broker.port, LIMIT).await;
    presence("born 1").await;
    device.abandon();
    presence("lost 1").await;
}

/// A broker that does not keep to the rules.
struct Rogue {
    port: u16,
    connections: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Misdeed {
    /// Sends messages larger than the client said it takes.
    Oversize,
    /// Answers nothing after the connection is made, but pings.
    Mute,
}

impl Rogue {
    async fn start(site: &Site, misdeed: Misdeed) -> Self {
        let (certificate, key) = site.authority.server();
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("pem")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("pem");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.ok()?;
                    let mut bytes = BytesMut::new();
                    loop {
                        if stream.read_buf(&mut bytes).await.ok()? == 0 {
                            return None::<()>;
                        }
                        while let Ok(packet) = Packet::read(&mut bytes, Some(1 << 20)) {
                            let mut answer = BytesMut::new();
                            for packet in answers(packet, misdeed) {
                                packet.write(&mut answer, None).ok()?;
                            }
                            stream.write_all(&answer).await.ok()?;
                        }
                    }
                });
            }
        });
        Self { port, connections }
    }
}

fn answers(packet: Packet, misdeed: Misdeed) -> Vec<Packet> {
    use rumqttc::v5::mqttbytes::v5::{PingResp, PubAck};
    match packet {
        Packet::Connect(..) => vec![Packet::ConnAck(ConnAck {
            session_present: false,
            code: ConnectReturnCode::Success,
            properties: None,
        })],
        Packet::PingReq(_) => vec![Packet::PingResp(PingResp)],
        _ if misdeed == Misdeed::Mute => Vec::new(),
        Packet::Publish(publish) => vec![Packet::PubAck(PubAck::new(publish.pkid, None))],
        Packet::Subscribe(subscribe) => {
            let filter = &subscribe.filters[0].path;
            let mut packets = vec![Packet::SubAck(SubAck {
                pkid: subscribe.pkid,
                return_codes: vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)],
                properties: None,
            })];
            if filter.ends_with("/large") {
                let payload = vec![0; 300_000];
                packets.push(Packet::Publish(Publish::new(
                    filter,
                    QoS::AtMostOnce,
                    payload,
                    None,
                )));
            }
            packets
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn a_topic_that_poisons_the_connection_is_left_alone_after_two_strikes() {
    let site = Site::new();
    let rogue = Rogue::start(&site, Misdeed::Oversize).await;
    let device = Party::connect(&site, "scanner-1", rogue.port, LIMIT).await;
    let large = topic("repo/chunk/large");
    for session in 2..=3 {
        let outcome = device.link.retained(&large, QUIET).await;
        assert_eq!(outcome, Err(LinkError::Lost));
        device.wait_session(session).await;
    }
    let outcome = device.link.retained(&large, QUIET).await;
    assert_eq!(outcome, Err(LinkError::Poisoned(large)));
    let other = topic("repo/chunk/small");
    assert_eq!(device.link.retained(&other, QUIET).await, Ok(None));
    assert_eq!(rogue.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_broker_that_stops_acknowledging_gets_a_new_connection() {
    let site = Site::new();
    let rogue = Rogue::start(&site, Misdeed::Mute).await;
    let _device = Party::begin(&site, "scanner-1", rogue.port, LIMIT);
    wait::until("a second connection", || {
        rogue.connections.load(Ordering::SeqCst) >= 2
    })
    .await;
}
