//! What a device tells its broker, as it arrives there: a recording end point between the two.
//!
//! It shows the device the broker's own certificate, shows the broker the device's, passes everything on, and keeps
//! what the device sent, decrypted. [`Departed::messages`] takes it apart again.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use edgeward_models::codec;
use edgeward_models::fleet::signed::Envelope;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::http::{certificates, private_key, tls_config};

/// The most that a compressed message may become.
const MAX_BYTES: usize = 1 << 20;

type Streams = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

/// The recording end point.
pub struct Departed {
    streams: Streams,
}

/// A message as it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
}

impl Message {
    /// The payload as it travelled, uncompressed, and without its envelope.
    pub fn forms(&self) -> Vec<Vec<u8>> {
        let mut forms = vec![self.payload.clone()];
        if let Ok(plain) = zstd::bulk::decompress(&self.payload, MAX_BYTES) {
            forms.push(plain);
        }
        let enveloped: Vec<_> = forms
            .iter()
            .filter_map(|form| codec::decode::<Envelope>("envelope", form).ok())
            .map(|envelope| envelope.payload)
            .collect();
        forms.extend(enveloped);
        forms
    }
}

impl Departed {
    /// Records between `listener` and the broker at `port`. `home`: the operator's; `identity`: the device's.
    pub fn between(listener: TcpListener, port: u16, home: &Path, identity: &Path) -> Self {
        let broker = home.join("broker");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(
                certificates(&broker.join("certificate.pem")),
                private_key(&broker.join("private-key.pem")),
            )
            .expect("the broker's certificate");
        let client = tls_config(
            &home.join("ca/ca.pem"),
            Some((&identity.join("certificate.pem"), &identity.join("key.pem"))),
        );
        let (acceptor, connector) = (
            TlsAcceptor::from(Arc::new(server)),
            TlsConnector::from(Arc::new(client)),
        );
        let streams = Streams::default();
        let kept = streams.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async move {
                listener.set_nonblocking(true).expect("a socket");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((device, _)) = listener.accept().await {
                    let (acceptor, connector) = (acceptor.clone(), connector.clone());
                    let stream = Arc::default();
                    kept.lock().expect("no panic").push(Arc::clone(&stream));
                    tokio::spawn(async move {
                        let device = acceptor.accept(device).await?;
                        let broker = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                        let name =
                            ServerName::try_from("localhost").map_err(std::io::Error::other)?;
                        let broker = connector.connect(name, broker).await?;
                        let (mut from_device, mut to_device) = tokio::io::split(device);
                        let (mut from_broker, mut to_broker) = tokio::io::split(broker);
                        let up = async {
                            let mut buffer = [0; 16 << 10];
                            while let length @ 1.. = from_device.read(&mut buffer).await? {
                                stream
                                    .lock()
                                    .expect("no panic")
                                    .extend_from_slice(&buffer[..length]);
                                to_broker.write_all(&buffer[..length]).await?;
                                to_broker.flush().await?;
                            }
                            to_broker.shutdown().await
                        };
                        let down = tokio::io::copy(&mut from_broker, &mut to_device);
                        let (up, _) = tokio::join!(up, down);
                        up
                    });
                }
            });
        });
        Self { streams }
    }

    /// All bytes that the device sent, connection by connection.
    pub fn streams(&self) -> Vec<Vec<u8>> {
        let streams = self.streams.lock().expect("no panic");
        streams
            .iter()
            .map(|stream| stream.lock().expect("no panic").clone())
            .collect()
    }

    /// Last wills and messages, in the order in which they left.
    pub fn messages(&self) -> Vec<Message> {
        let streams = self.streams();
        let all = streams.iter().flat_map(|stream| packets(stream));
        all.filter_map(|(kind, flags, body)| match kind {
            CONNECT => will(body),
            PUBLISH => published(flags, body),
            _ => None,
        })
        .collect()
    }
}

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;

/// MQTT 5's packets: type, flags, what follows the fixed header. A packet that is not whole yet is left out.
fn packets(stream: &[u8]) -> Vec<(u8, u8, &[u8])> {
    let mut rest = stream;
    let mut packets = Vec::new();
    while let Some((&first, after)) = rest.split_first() {
        let Some((length, after)) = number(after) else {
            break;
        };
        let Some((body, after)) = after.split_at_checked(length) else {
            break;
        };
        packets.push((first >> 4, first & 15, body));
        rest = after;
    }
    packets
}

/// A variable byte integer.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// Bytes after their length.
fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(2)?;
    let length = u16::from_be_bytes(length.try_into().ok()?);
    rest.split_at_checked(length.into())
}

fn skip_properties(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = number(bytes)?;
    rest.get(length..)
}

fn published(flags: u8, body: &[u8]) -> Option<Message> {
    let (topic, rest) = field(body)?;
    // A packet identifier, unless the quality of service is 0.
    let rest = if flags & 0b0110 == 0 {
        rest
    } else {
        rest.get(2..)?
    };
    Some(Message {
        topic: String::from_utf8_lossy(topic).into_owned(),
        payload: skip_properties(rest)?.to_vec(),
    })
}

fn will(body: &[u8]) -> Option<Message> {
    let (_protocol, rest) = field(body)?;
    // Level, flags, keep-alive.
    let (&[_, flags, _, _], rest) = rest.split_first_chunk()?;
    let (_client, rest) = field(skip_properties(rest)?)?;
    if flags & 0b100 == 0 {
        return None;
    }
    let (topic, rest) = field(skip_properties(rest)?)?;
    let (payload, _) = field(rest)?;
    Some(Message {
        topic: String::from_utf8_lossy(topic).into_owned(),
        payload: payload.to_vec(),
    })
}
