//! Limits of size, time and number, each met from outside.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;

use crate::client::PATIENCE;
use crate::device::{Device, INFER};

async fn small(change: impl FnOnce(&mut edgeward_agent::config::Limits)) -> Device {
    Device::serving_changed(
        "digits-1.0.0",
        |config| {
            config.limits.max_body_bytes = 10_000;
            config.limits.max_header_bytes = 2_000;
            config.limits.header_timeout_ms = 300;
            config.limits.idle_timeout_ms = 60_000;
            config.limits.body_timeout_ms = 300;
            change(&mut config.limits);
        },
        |_| {},
    )
    .await
}

#[tokio::test]
async fn a_body_too_large_is_413_before_it_is_sent_and_while_it_is() {
    let device = small(|_| {}).await;
    let mut client = device.client().await;
    // Far too large, and never sent: the answer comes all the same.
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        ))
        .await;
    let reply = client.reply().await.expect("answer");
    assert_eq!(reply.status, 413);
    assert!(reply.error().contains("10000 bytes"));
    assert!(client.reply().await.is_none(), "the connection is closed");

    // A client that asks first is not told to go on.
    let mut client = device.client().await;
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
        ))
        .await;
    assert_eq!(client.reply().await.expect("answer").status, 413);

    let mut client = device.client().await;
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
    client.send("1000\r\n").await;
    client.send(vec![b' '; 0x1000]).await;
    client.send("\r\n1000\r\n").await;
    client.send(vec![b' '; 0x1000]).await;
    client.send("\r\n1000\r\n").await;
    client.send(vec![b' '; 0x1000]).await;
    assert_eq!(client.reply().await.expect("answer").status, 413);

    // A little too large and sent whole before reading: the answer is still to be read.
    let mut client = device.client().await;
    let reply = client.post(INFER, vec![b' '; 200_000]).await;
    assert_eq!(reply.status, 413);
    device.close().await;
}

#[tokio::test]
async fn a_body_that_the_model_cannot_need_is_413_long_before_the_limit_of_the_device() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |config| config.limits.max_body_bytes = 64 << 20,
        |_| {},
    )
    .await;
    let mut client = device.client().await;
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            60 << 20
        ))
        .await;
    let reply = client.reply().await.expect("answer");
    assert_eq!(reply.status, 413);
    assert!(reply.error().contains("this model"), "{}", reply.error());
    device.close().await;
}

#[tokio::test]
async fn bodies_that_are_too_much_together_are_told_to_come_later_and_small_ones_are_served() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |config| {
            config.limits.max_body_bytes = 180_000;
            config.limits.max_bodies_bytes = 180_000;
        },
        |manifest| manifest["max_request_bytes"] = (256 << 10).into(),
    )
    .await;
    let mut slow = device.client().await;
    slow.send(format!(
        "POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 150000\r\n\r\n"
    ))
    .await;
    slow.send(vec![b' '; 149_000]).await;
    // Its bytes arrive when they do: until then the second one finds room.
    let (before, refused) = (Instant::now(), vec![b' '; 150_000]);
    let reply = loop {
        let reply = device.client().await.post(INFER, refused.clone()).await;
        if reply.status == 429 {
            break reply;
        }
        assert!(before.elapsed() < PATIENCE, "{}", reply.error());
    };
    assert!(reply.error().contains("180000 bytes"), "{}", reply.error());
    assert!(reply.header("retry-after").is_some());
    let small = device.client().await.post(INFER, "{}").await;
    assert_eq!(small.status, 400, "read, and wrong in itself");
    slow.send(vec![b' '; 1_000]).await;
    assert_eq!(slow.reply().await.expect("answer").status, 400);
    device.close().await;
}

#[tokio::test]
async fn headers_too_large_are_431() {
    let device = small(|_| {}).await;
    let mut client = device.client().await;
    let long = "x".repeat(3_000);
    let reply = client
        .ask("GET", "/v2/health/live", &[("X-Long", &long)], b"")
        .await;
    assert_eq!(reply.status, 431);
    assert!(reply.error().contains("headers"), "{}", reply.error());
    assert_eq!(
        device.client().await.get("/v2/health/live").await.status,
        200
    );
    device.close().await;
}

#[tokio::test]
async fn slow_headers_end_the_connection_and_slow_bodies_are_408() {
    let device = small(|_| {}).await;
    let begun = Instant::now();
    // Nothing at all, a half header, and a half header after a whole request.
    let mut silent = device.client().await;
    let mut half = device.client().await;
    half.send("GET /v2 HTTP/1.1\r\nHost").await;
    let mut later = device.client().await;
    assert_eq!(later.get("/v2").await.status, 200);
    later.send("GET /v2 HTT").await;
    for client in [&mut silent, &mut half, &mut later] {
        assert!(client.reply().await.is_none());
    }
    let spent = begun.elapsed();
    assert!(
        spent >= Duration::from_millis(300) && spent < Duration::from_secs(5),
        "{spent:?}"
    );

    let mut client = device.client().await;
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{"
        ))
        .await;
    let reply = client.reply().await.expect("answer");
    assert_eq!(reply.status, 408);
    assert!(reply.error().contains("500 bytes"), "{}", reply.error());
    assert!(client.reply().await.is_none());

    // Whoever gives less time himself gets his own answer.
    let mut client = device.client().await;
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nEdgeward-Timeout-Ms: 50\r\nContent-Length: 500\r\n\r\n{{"
        ))
        .await;
    assert_eq!(client.reply().await.expect("answer").status, 504);
    device.close().await;
}

#[tokio::test]
async fn an_idle_connection_lives_longer_than_a_header_and_not_forever() {
    let device = small(|limits| limits.idle_timeout_ms = 900).await;
    let mut client = device.client().await;
    assert_eq!(client.get("/v2").await.status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        client.get("/v2").await.status,
        200,
        "idle beyond the header limit"
    );
    let begun = Instant::now();
    assert!(client.reply().await.is_none());
    let spent = begun.elapsed();
    assert!(
        spent >= Duration::from_millis(800) && spent < Duration::from_secs(5),
        "{spent:?}"
    );
    device.close().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let device = small(|limits| {
        limits.max_connections = 2;
        limits.header_timeout_ms = 30_000;
    })
    .await;
    let mut first = device.client().await;
    let mut second = device.client().await;
    assert_eq!(first.get("/v2").await.status, 200);
    assert_eq!(second.get("/v2").await.status, 200);
    let mut third = device.client().await;
    third.send("GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut byte = [0];
    let early =
        tokio::time::timeout(Duration::from_millis(200), third.stream.read(&mut byte)).await;
    assert!(
        early.is_err(),
        "the third connection was not to be answered yet"
    );
    drop(first);
    assert_eq!(third.reply().await.expect("answer").status, 200);
    device.close().await;
}

#[tokio::test]
async fn five_hundred_idle_connections_keep_nobody_from_being_served() {
    let device = small(|limits| limits.header_timeout_ms = 30_000).await;
    let mut idle = Vec::new();
    for number in 0..500 {
        let mut client = device.client().await;
        // Some have never said a word, some half a one, some have been served.
        match number % 3 {
            0 => {}
            1 => client.send("GET /v2 HTTP/1.1\r\nHo").await,
            _ => assert_eq!(client.get("/v2").await.status, 200),
        }
        idle.push(client);
    }
    let begun = Instant::now();
    let mut client = device.client().await;
    for _ in 0..100 {
        assert_eq!(client.get("/v2/health/live").await.status, 200);
    }
    let spent = begun.elapsed();
    assert!(spent < Duration::from_secs(5), "{spent:?}");
    for mut client in idle.into_iter().skip(1).step_by(3) {
        client.send("st: x\r\n\r\n").await;
        assert_eq!(client.reply().await.expect("answer").status, 200);
    }
    device.close().await;
}

#[tokio::test]
async fn idle_connections_make_room_when_all_places_are_taken() {
    let device = small(|limits| limits.max_connections = 1).await;
    let mut idle = device.client().await;
    assert_eq!(idle.get("/v2").await.status, 200);
    // The idle limit is a minute; a newcomer does not wait that long.
    let mut next = device.client().await;
    let reply = tokio::time::timeout(Duration::from_secs(5), next.get("/v2"));
    assert_eq!(reply.await.expect("in time").status, 200);
    device.close().await;
}

#[tokio::test]
async fn a_door_that_closes_removes_its_socket_and_ends_idle_connections() {
    let mut device = small(|_| {}).await;
    let mut idle = device.client().await;
    assert_eq!(idle.get("/v2").await.status, 200);
    let closing = device.close_doors();
    tokio::time::timeout(PATIENCE, closing)
        .await
        .expect("closed");
    assert!(idle.reply().await.is_none());
    assert!(!device.config.unix.path.exists());
    device.close().await;
}
