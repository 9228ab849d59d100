//! Requests in strange shapes: what two readers could take for different requests is refused and ends the
//! connection; what is merely unusual means one thing, and the next request of the connection is still in step.

use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;

use crate::client::Client;
use crate::device::{Device, INFER, golden};
use crate::infer::image;

const POST: &str = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n";
/// What would be answered, were it taken for a request.
const HIDDEN: &str = "GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n";

async fn sent(device: &Device, request: &str) -> Client<UnixStream> {
    let mut client = device.client().await;
    client.send(request).await;
    client
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused_and_ends_the_connection() {
    let device = Device::serving("digits-1.0.0").await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    let end = "0\r\n\r\n";
    for request in [
        // Where the body ends is said twice.
        format!("{POST}Content-Length: 5\r\n{chunked}\r\n{end}"),
        format!("{POST}{chunked}Content-Length: 5\r\n\r\n{end}"),
        format!("{POST}Content-Length: 2\r\nContent-Length: 47\r\n\r\n{{}}"),
        format!("{POST}Content-Length: 2, 47\r\n\r\n{{}}"),
        // Or in no known way.
        format!("{POST}Content-Length: +2\r\n\r\n{{}}"),
        format!("{POST}Content-Length: -1\r\n\r\n{{}}"),
        format!("{POST}Content-Length: 0x2\r\n\r\n{{}}"),
        format!("{POST}Content-Length: 18446744073709551618\r\n\r\n{{}}"),
        format!("{POST}Transfer-Encoding: xchunked\r\n\r\n{end}"),
        format!("{POST}Transfer-Encoding: chunked, identity\r\n\r\n{end}"),
        format!("{POST}Transfer-Encoding: gzip, chunked\r\n\r\n{end}"),
        format!("{POST}{chunked}{chunked}\r\n{end}"),
        POST.replace("1.1", "1.0") + chunked + "\r\n" + end,
        // Headers that are none.
        format!("{POST}Transfer-Encoding : chunked\r\n\r\n{end}"),
        format!("{POST}X-Folded: a\r\n Content-Length: 2\r\n\r\n{{}}"),
        format!("{POST}X-Return: a\rContent-Length: 2\r\n\r\n{{}}"),
        format!("{POST}X-Zero: a\0b\r\nContent-Length: 2\r\n\r\n{{}}"),
        // Chunks that are none.
        format!("{POST}{chunked}\r\nfffffffffffffffff\r\n{{}}\r\n{end}"),
        format!("{POST}{chunked}\r\n-1\r\n{{}}\r\n{end}"),
        format!("{POST}{chunked}\r\n0x2\r\n{{}}\r\n{end}"),
        format!("{POST}{chunked}\r\n2\r\n{{}}{end}"),
        format!("{POST}{chunked}\r\n2;a\n{{}}\r\n{end}"),
        format!(
            "{POST}{chunked}\r\n2;{}\r\n{{}}\r\n{end}",
            "a".repeat(100_000)
        ),
        format!(
            "{POST}{chunked}\r\n2\r\n{{}}\r\n0\r\n{}\r\n",
            "a: b\r\n".repeat(5_000)
        ),
        // Not a request at all.
        "GET /v2\r\n\r\n".to_owned(),
        "GET /v2 HTTP/1.2\r\nHost: x\r\n\r\n".to_owned(),
        "GET\t/v2\tHTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".to_owned(),
    ] {
        let mut client = sent(&device, &(request.clone() + HIDDEN)).await;
        let reply = client.reply().await.expect("an answer");
        assert_eq!(reply.status, 400, "{request:?}");
        assert!(!reply.error().is_empty(), "{request:?}");
        if let Some(second) = client.reply().await {
            panic!("{request:?} was taken for two: {second:?}");
        }
    }
    device.close().await;
}

#[tokio::test]
async fn unusual_forms_of_a_request_mean_one_thing() {
    let device = Device::serving("digits-1.0.0").await;
    let body = image(json!(golden("digits-1.0.0").0)).to_string();
    let length = body.len();
    let chunks =
        format!("{length:x};name=\"a;b\" \r\n{body}\r\n0\r\nX-Trailer: Content-Length: 3\r\n\r\n");
    let bare = POST.replace("\r\n", "\n");
    for (request, status) in [
        (
            format!("{POST}Content-Length: {length}\r\nContent-Length: {length}\r\n\r\n{body}"),
            200,
        ),
        (
            format!("{POST}content-LENGTH:{length}  \r\n\r\n{body}"),
            200,
        ),
        (format!("{bare}Content-Length: {length}\n\n{body}"), 200),
        (
            format!("{POST}Transfer-Encoding: Chunked\r\n\r\n{chunks}"),
            200,
        ),
        (format!("{POST}Content-Length: 0\r\n\r\n"), 400),
        (POST.to_owned() + "\r\n", 400),
        // A body that nobody asked for is no second request.
        (
            format!(
                "GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{HIDDEN}",
                HIDDEN.len()
            ),
            200,
        ),
        (
            "GET http://elsewhere/v2?a=b#c HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            200,
        ),
        // There is no other protocol to change to and no way through.
        (
            "GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_owned(),
            200,
        ),
        (
            "CONNECT elsewhere:80 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            404,
        ),
    ] {
        let mut client = sent(&device, &(request.clone() + HIDDEN)).await;
        let reply = client.reply().await.expect("an answer");
        assert_eq!(reply.status, status, "{request:?}: {reply:?}");
        let next = client.reply().await.expect("the next answer");
        assert_eq!(next.json(), json!({"live": true}), "{request:?}");
        let more = tokio::time::timeout(Duration::from_millis(20), client.reply()).await;
        assert!(more.is_err(), "{request:?} was taken for more: {more:?}");
    }
    device.close().await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let device = Device::serving("digits-1.0.0").await;
    let body = image(json!(golden("digits-1.0.0").0)).to_string();
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
    };
    let mut client = device.client().await;
    for _ in 0..2 {
        client.send(head(INFER)).await;
        assert_eq!(client.reply().await.expect("answer").status, 100);
        client.send(&body).await;
        assert_eq!(client.reply().await.expect("answer").status, 200);
    }
    // Not when the answer is known already.
    client.send(head("/v2/models/none/infer")).await;
    assert_eq!(client.reply().await.expect("answer").status, 404);
    assert!(client.reply().await.is_none(), "the body may still come");
    device.close().await;
}

#[tokio::test]
async fn bodies_of_two_gigabytes_and_more_are_refused_before_they_are_sent() {
    let device = Device::serving("digits-1.0.0").await;
    for length in [
        "2147483647",
        "2147483648",
        "4294967296",
        "9223372036854775808",
    ] {
        for header in ["0", "2147483648", "9223372036854775807"] {
            let request = format!(
                "{POST}Inference-Header-Content-Length: {header}\r\nContent-Length: {length}\r\n\r\n"
            );
            let mut client = sent(&device, &request).await;
            let reply = client.reply().await.expect("an answer");
            assert_eq!(reply.status, 413, "{length}");
            assert!(reply.error().contains("196608 bytes"), "{}", reply.error());
            assert!(client.reply().await.is_none(), "the connection is closed");
        }
    }
    // With a chunk that says as much, the answer comes with the first byte too many.
    let mut client = sent(
        &device,
        &format!("{POST}Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"),
    )
    .await;
    client.send(vec![b' '; 300_000]).await;
    assert_eq!(client.reply().await.expect("an answer").status, 413);
    device.close().await;
}
