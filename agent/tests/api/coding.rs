//! Compressed bodies and compressed answers, as Triton's clients send and ask for them.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::client::Reply;
use crate::device::{Device, INFER, assert_close, golden, read_floats};
use crate::infer::{binary, image, json_values};

fn packed(coding: &str, plain: &[u8]) -> Vec<u8> {
    if coding == "gzip" {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).expect("pack");
        encoder.finish().expect("pack")
    } else {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).expect("pack");
        encoder.finish().expect("pack")
    }
}

/// Undoes what the answer's own header says was done to it.
fn unpacked(mut reply: Reply) -> Reply {
    let coding = reply.header("content-encoding").expect("a coding");
    let mut plain = Vec::new();
    if coding == "gzip" {
        GzDecoder::new(&reply.body[..]).read_to_end(&mut plain)
    } else {
        ZlibDecoder::new(&reply.body[..]).read_to_end(&mut plain)
    }
    .expect("unpack");
    reply.body = plain;
    reply
}

#[tokio::test]
async fn compressed_bodies_are_taken_and_large_answers_compressed_when_asked() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |_| {},
        |manifest| manifest["max_request_bytes"] = json!(1 << 20),
    )
    .await;
    let mut client = device.client().await;
    let (input, expected) = golden("digits-1.0.0");
    for coding in ["gzip", "deflate"] {
        let body = image(json!(input)).to_string();
        let headers = [("Content-Encoding", coding)];
        let reply = client
            .ask("POST", INFER, &headers, &packed(coding, body.as_bytes()))
            .await;
        assert_close(&json_values(&reply), &expected);

        // The header speaks of the JSON as it was before it was compressed.
        let wanted = json!([{"name": "probabilities", "parameters": {"binary_data": true}}]);
        let (body, length) = binary(wanted);
        let headers = [
            ("Content-Encoding", coding),
            ("Inference-Header-Content-Length", length.as_str()),
            ("Accept-Encoding", coding),
        ];
        let reply = client
            .ask("POST", INFER, &headers, &packed(coding, &body))
            .await;
        assert_eq!(reply.header("content-encoding"), None, "a short answer");
        assert_close(&read_floats(reply.split().1), &expected);

        // 1,200 rows: long enough to be read, written and compressed on threads of their own.
        for rows in [30, 1200] {
            let data: Vec<f64> = input.iter().copied().cycle().take(64 * rows).collect();
            let request = json!({"inputs": [
                {"name": "image", "datatype": "FP32", "shape": [rows, 8, 8, 1], "data": data}
            ]});
            let body = packed(coding, request.to_string().as_bytes());
            let headers = [("Content-Encoding", coding), ("Accept-Encoding", coding)];
            let reply = client.ask("POST", INFER, &headers, &body).await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("content-encoding"), Some(coding));
            assert_eq!(reply.header("vary"), Some("accept-encoding"));
            let answers = json_values(&unpacked(reply));
            assert_eq!(answers.len(), 10 * rows);
            for row in answers.chunks(10) {
                assert_close(row, &expected);
            }
            // Whoever does not ask gets it as it is.
            let headers = [("Content-Encoding", coding)];
            let reply = client.ask("POST", INFER, &headers, &body).await;
            assert_eq!(reply.header("content-encoding"), None);
            assert_eq!(json_values(&reply), answers);
        }
    }
    let headers = [("Accept-Encoding", "gzip")];
    let metrics = unpacked(client.ask("GET", "/metrics", &headers, b"").await);
    assert!(String::from_utf8_lossy(&metrics.body).contains("edgeward_model_ready"));
    device.close().await;
}

#[tokio::test]
async fn a_body_that_swells_beyond_the_limit_is_413_and_a_broken_one_400() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |config| config.limits.max_body_bytes = 1 << 20,
        |_| {},
    )
    .await;
    let mut client = device.client().await;
    let body = image(json!(golden("digits-1.0.0").0)).to_string();
    for coding in ["gzip", "deflate"] {
        let headers = [("Content-Encoding", coding)];
        // 64 MiB of space in 64 kB.
        let bomb = packed(coding, &vec![b' '; 64 << 20]);
        assert!(bomb.len() < 1 << 17);
        let reply = client.ask("POST", INFER, &headers, &bomb).await;
        assert_eq!(reply.status, 413, "{}", reply.error());
        assert!(reply.error().contains("196608 bytes"));
        if reply.header("connection") == Some("close") {
            client = device.client().await;
        }
        let whole = packed(coding, body.as_bytes());
        let cut = &whole[..whole.len() - 5];
        let followed = [&whole[..], b"GET /"].concat();
        for wrong in [b"xyz".as_slice(), b"", cut, &followed, body.as_bytes()] {
            let reply = client.ask("POST", INFER, &headers, wrong).await;
            assert_eq!(reply.status, 400, "{coding}");
            assert!(reply.error().contains(coding), "{}", reply.error());
        }
        let reply = client.ask("POST", INFER, &headers, &whole).await;
        assert_eq!(reply.status, 200);
    }
    for coding in ["br", "compress", "gzip, gzip"] {
        let headers = [("Content-Encoding", coding)];
        let reply = client.ask("POST", INFER, &headers, b"xyz").await;
        assert_eq!(reply.status, 415);
        assert_eq!(reply.header("accept-encoding"), Some("gzip, deflate, zstd"));
        let named = if coding.contains(',') {
            "more than one"
        } else {
            coding
        };
        assert!(reply.error().contains(named), "{}", reply.error());
    }
    // What is compressed without saying so is no JSON, and nothing worse.
    let reply = client.post(INFER, packed("gzip", body.as_bytes())).await;
    assert_eq!(reply.status, 400, "{}", reply.error());
    let reply = client.ask(
        "POST",
        INFER,
        &[("Content-Encoding", "identity")],
        body.as_bytes(),
    );
    assert_eq!(reply.await.status, 200);
    let _: Value = client.get("/v2").await.json();
    device.close().await;
}
