//! HTTP/2 on both doors, and what a hostile peer may do with it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use hyper::Request;
use hyper::header::HeaderMap;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::client::{PATIENCE, Reply};
use crate::device::{Device, INFER, assert_close, floats, golden, read_floats};
use crate::infer::image;
use crate::tls::{Site, connect_offering};

/// A connection that several requests may share.
#[derive(Clone)]
struct Client {
    requests: SendRequest<Bytes>,
}

impl Client {
    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (requests, connection) = h2::client::handshake(stream).await.expect("handshake");
        tokio::spawn(connection);
        Self { requests }
    }

    async fn unix(device: &Device) -> Self {
        let path = &device.config.unix.path;
        Self::over(UnixStream::connect(path).await.expect("connect")).await
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Result<Reply, h2::Error> {
        let asking = self.begin(method, path, headers, body.as_ref());
        tokio::time::timeout(PATIENCE, asking)
            .await
            .expect("an answer in time")
    }

    async fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("request");
        let (response, mut stream) = requests.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            // The answer may come before all is sent; then the rest does not matter.
            let _ = stream.send_data(Bytes::copy_from_slice(body), true);
        }
        let (parts, mut incoming) = response.await?.into_parts();
        let mut whole = BytesMut::new();
        while let Some(data) = incoming.data().await {
            let data = data?;
            incoming.flow_control().release_capacity(data.len())?;
            whole.extend_from_slice(&data);
        }
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: pairs(&parts.headers),
            body: whole.to_vec(),
        })
    }
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &hyper::header::HeaderValue| value.to_str().expect("text").to_owned();
    let pairs = headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)));
    pairs.collect()
}

#[tokio::test]
async fn both_doors_answer_over_http2_in_json_and_binary() {
    let site = Site::new();
    let door = edgeward_agent::config::TlsDoor {
        client_ca: Some(site.path("clients.pem")),
        ..site.door()
    };
    let device = crate::tls::device(door).await;
    let certificate = site.client_certificate();
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let versions = rustls::ALL_VERSIONS;
        let connecting = connect_offering(&device, &site, Some(&certificate), versions, offered);
        let stream = connecting.await.expect("connect");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
    }
    let connecting = connect_offering(
        &device,
        &site,
        Some(&certificate),
        rustls::ALL_VERSIONS,
        &["h2"],
    );
    let over_tls = Client::over(connecting.await.expect("connect")).await;
    let over_unix = Client::unix(&device).await;
    let (input, expected) = golden("digits-1.0.0");
    for client in [over_tls, over_unix] {
        let body = image(json!(input)).to_string();
        let reply = client.ask("POST", INFER, &[], body).await.expect("reply");
        assert_eq!(reply.status, 200);
        assert_close(&crate::infer::json_values(&reply), &expected);
        let headers = [("inference-header-content-length", "0")];
        let reply = client.ask("POST", INFER, &headers, floats(&input));
        assert_close(
            &read_floats(reply.await.expect("reply").split().1),
            &expected,
        );
        let reply = client.ask("GET", "/v2/health/live", &[], b"").await;
        assert_eq!(reply.expect("reply").json(), json!({"live": true}));
        let reply = client.ask("GET", "/v2/models/none", &[], b"").await;
        let reply = reply.expect("reply");
        assert_eq!(reply.status, 404);
        assert!(!reply.error().is_empty());
    }
    device.close().await;
}

#[tokio::test]
async fn many_requests_of_one_connection_are_answered_each_with_its_own() {
    let device = Device::serving("digits-1.0.0").await;
    let client = Client::unix(&device).await;
    // Until its first answer a client does not know how many it may have open.
    let reply = client.ask("GET", "/v2", &[], b"").await;
    assert_eq!(reply.expect("reply").status, 200);
    let (input, expected) = golden("digits-1.0.0");
    let asking = (0..200).map(|number| {
        let client = client.clone();
        let mut request = image(json!(input));
        request["id"] = json!(number.to_string());
        async move { client.ask("POST", INFER, &[], request.to_string()).await }
    });
    let replies = futures::future::join_all(asking).await;
    let mut answered = 0;
    for (number, reply) in replies.into_iter().enumerate() {
        let reply = reply.expect("reply");
        // More at once than there are slots: some may be told to come back.
        if reply.status == 429 {
            assert!(reply.header("retry-after").is_some());
            continue;
        }
        answered += 1;
        assert_eq!(reply.json()["id"], number.to_string());
        assert_close(&crate::infer::json_values(&reply), &expected);
    }
    assert!(answered >= 16, "{answered}");
    device.close().await;
}

#[tokio::test]
async fn bodies_and_headers_have_the_same_limits_as_ever() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |config| {
            config.limits.max_body_bytes = 500_000;
            config.limits.max_header_bytes = 2_000;
            config.limits.body_timeout_ms = 300;
        },
        |manifest| manifest["max_request_bytes"] = (64 << 10).into(),
    )
    .await;
    let client = Client::unix(&device).await;
    let reply = client.ask("POST", INFER, &[], vec![b' '; 600_000]).await;
    assert_eq!(reply.expect("reply").status, 413);
    // Larger than one window, and within the limit: it is read whole.
    let reply = client.ask("POST", INFER, &[], vec![b' '; 400_000]).await;
    assert_eq!(reply.expect("reply").status, 400);
    let long = "x".repeat(3_000);
    match client.ask("GET", "/v2", &[("x-long", &long)], b"").await {
        Ok(reply) => assert_eq!(reply.status, 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }

    let client = Client::unix(&device).await;
    let mut requests = client.requests.clone().ready().await.expect("ready");
    let request = Request::post(format!("https://localhost{INFER}"));
    let request = request.body(()).expect("request");
    let (response, mut body) = requests.send_request(request, false).expect("sent");
    body.send_data(Bytes::from_static(b"{"), false)
        .expect("sent");
    let response = tokio::time::timeout(PATIENCE, response).await;
    assert_eq!(response.expect("in time").expect("answer").status(), 408);
    // The other requests of the connection are none the worse.
    let reply = client.ask("GET", "/v2", &[], b"").await;
    assert_eq!(reply.expect("reply").status, 200);
    device.close().await;
}

#[tokio::test]
async fn a_door_that_closes_ends_its_connections_and_answers_what_has_begun() {
    let mut device = Device::serving("digits-1.0.0").await;
    let client = Client::unix(&device).await;
    let reply = client.ask("GET", "/v2", &[], b"").await;
    assert_eq!(reply.expect("reply").status, 200);
    // A request whose body is not whole yet.
    let mut requests = client.requests.clone().ready().await.expect("ready");
    let request = Request::post(format!("https://localhost{INFER}"));
    let request = request.body(()).expect("request");
    let (response, mut body) = requests.send_request(request, false).expect("sent");
    let text = image(json!(golden("digits-1.0.0").0)).to_string();
    let (first, rest) = text.split_at(10);
    body.send_data(Bytes::copy_from_slice(first.as_bytes()), false)
        .expect("sent");
    let reply = client.ask("GET", "/v2", &[], b"").await;
    assert_eq!(
        reply.expect("reply").status,
        200,
        "the other has begun by now"
    );
    let closing = tokio::spawn(device.close_doors());
    while device.config.unix.path.exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    body.send_data(Bytes::copy_from_slice(rest.as_bytes()), true)
        .expect("sent");
    let response = tokio::time::timeout(PATIENCE, response).await;
    assert_eq!(response.expect("in time").expect("answer").status(), 200);
    let closed = tokio::time::timeout(PATIENCE, closing).await;
    closed.expect("closed").expect("joined");
    device.close().await;
}

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

/// The headers of POST …/infer, without Huffman coding (RFC 7541, section 6.2.2).
fn infer_headers() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", INFER),
        (":authority", "localhost"),
    ] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

async fn raw(device: &Device) -> UnixStream {
    let path = &device.config.unix.path;
    let mut stream = UnixStream::connect(path).await.expect("connect");
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(SETTINGS, 0, 0, &[]));
    stream.write_all(&opening).await.expect("write");
    stream
}

/// Waits for the door to end the connection.
async fn ended(mut stream: UnixStream) {
    let read = async {
        let mut sink = [0; 4096];
        while let Ok(1..) = stream.read(&mut sink).await {}
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the connection to be ended");
}

#[tokio::test]
async fn a_flood_of_cancelled_requests_ends_its_connection_and_no_other() {
    let device = Device::serving("digits-1.0.0").await;
    let other = Client::unix(&device).await;
    // At once, and slowly enough for each request to have begun.
    for pause in [None, Some(Duration::from_millis(1))] {
        let mut stream = raw(&device).await;
        let mut sent = 0;
        for number in 0..5000u32 {
            let id = 2 * number + 1;
            let mut frames = frame(HEADERS, 4, id, &infer_headers());
            if let Some(pause) = pause {
                if stream.write_all(&frames).await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
                frames.clear();
            }
            frames.extend(frame(RESET, 0, id, &8u32.to_be_bytes()));
            if stream.write_all(&frames).await.is_err() {
                break;
            }
            sent += 1;
        }
        assert!(sent < 5000, "the flood was let through whole");
        ended(stream).await;
        let reply = other.ask("GET", "/v2/health/live", &[], b"").await;
        assert_eq!(reply.expect("reply").status, 200);
    }
    device.close().await;
}

#[tokio::test]
async fn headers_that_never_end_cost_a_bounded_number_of_bytes() {
    let device = Device::serving("digits-1.0.0").await;
    let mut stream = raw(&device).await;
    let mut sent = 0;
    let first = frame(HEADERS, 0, 1, &infer_headers());
    stream.write_all(&first).await.expect("write");
    // A header that is never indexed, again and again, without END_HEADERS.
    let more = [&[0x10, 1, b'x', 100][..], &[b'y'; 100]].concat();
    let more = frame(CONTINUATION, 0, 1, &more.repeat(100));
    while sent < 64 << 20 {
        if stream.write_all(&more).await.is_err() {
            break;
        }
        sent += more.len();
    }
    assert!(sent < 64 << 20, "it was taken in without end");
    ended(stream).await;
    let reply = Client::unix(&device)
        .await
        .ask("GET", "/v2", &[], b"")
        .await;
    assert_eq!(reply.expect("reply").status, 200);
    device.close().await;
}

#[tokio::test]
async fn a_connection_that_is_idle_is_closed_however_much_it_pings() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |config| {
            config.limits.header_timeout_ms = 300;
            config.limits.idle_timeout_ms = 900;
        },
        |_| {},
    )
    .await;
    // The preface and then nothing: no longer than a header.
    let begun = std::time::Instant::now();
    ended(raw(&device).await).await;
    assert!(begun.elapsed() < Duration::from_secs(10));

    let stream = UnixStream::connect(&device.config.unix.path).await;
    let handshake = h2::client::handshake(stream.expect("connect"));
    let (requests, mut connection) = handshake.await.expect("handshake");
    let mut ping = connection.ping_pong().expect("ping");
    let connection = tokio::spawn(connection);
    let client = Client { requests };
    let reply = client.ask("GET", "/v2", &[], b"").await;
    assert_eq!(reply.expect("reply").status, 200);
    let begun = std::time::Instant::now();
    let pinging = async {
        while ping.ping(h2::Ping::opaque()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, pinging)
        .await
        .expect("an end");
    let spent = begun.elapsed();
    assert!(spent >= Duration::from_millis(800), "{spent:?}");
    let _ = connection.await;
    device.close().await;
}
