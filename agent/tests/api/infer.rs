//! Answers, and refusals of wrong questions.

use serde_json::{Value, json};

use crate::client::Reply;
use crate::device::{Device, INFER, assert_close, floats, golden, read_floats};

pub fn image(data: Value) -> Value {
    json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": data}]})
}

/// A binary request for `digits`.
pub fn binary(outputs: Value) -> (Vec<u8>, String) {
    let (input, _) = golden("digits-1.0.0");
    let mut json = json!({"inputs": [{
        "name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1], "parameters": {"binary_data_size": 256},
    }]});
    if !outputs.is_null() {
        json["outputs"] = outputs;
    }
    let mut body = json.to_string().into_bytes();
    let length = body.len().to_string();
    body.extend(floats(&input));
    (body, length)
}

pub fn json_values(reply: &Reply) -> Vec<f64> {
    let json = reply.json();
    let data = json["outputs"][0]["data"].as_array().expect("data");
    data.iter().map(|v| v.as_f64().expect("number")).collect()
}

#[tokio::test]
async fn golden_vectors_come_back_in_every_form() {
    let device = Device::serving("digits-1.0.0").await;
    let mut client = device.client().await;
    let (input, expected) = golden("digits-1.0.0");

    let reply = client.post(INFER, image(json!(input)).to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_close(&json_values(&reply), &expected);
    let json = reply.json();
    assert_eq!(json["model_name"], "digits");
    assert_eq!(json["model_version"], "1.0.0");
    assert_eq!(json["outputs"][0]["shape"], json!([1, 10]));
    assert!(json.get("id").is_none());

    let nested: Vec<&[f64]> = input.chunks(8).collect();
    let mut request = image(json!([nested]));
    request["id"] = json!("a \"quoted\" id");
    request["model_name"] = json!("digits");
    let reply = client.post(INFER, request.to_string()).await;
    assert_close(&json_values(&reply), &expected);
    assert_eq!(reply.json()["id"], "a \"quoted\" id");

    let wanted = json!([{"name": "probabilities", "parameters": {"binary_data": true}}]);
    for (outputs, is_binary) in [(Value::Null, false), (wanted, true)] {
        let (body, length) = binary(outputs);
        let headers = [("Inference-Header-Content-Length", length.as_str())];
        let reply = client.ask("POST", INFER, &headers, &body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        if is_binary {
            assert_eq!(
                reply.header("content-type"),
                Some("application/octet-stream")
            );
            let (json, bytes) = reply.split();
            assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 40);
            assert_close(&read_floats(bytes), &expected);
        } else {
            assert_close(&json_values(&reply), &expected);
        }
    }

    let headers = [("Inference-Header-Content-Length", "0")];
    let reply = client.ask("POST", INFER, &headers, &floats(&input)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_close(&read_floats(reply.split().1), &expected);

    let mut request = image(json!(input));
    request["parameters"] = json!({"binary_data_output": true});
    let reply = client.post(INFER, request.to_string()).await;
    assert_close(&read_floats(reply.split().1), &expected);
    request["outputs"] = json!([{"name": "probabilities", "parameters": {"binary_data": false}}]);
    let reply = client.post(INFER, request.to_string()).await;
    assert_close(&json_values(&reply), &expected);
    device.close().await;
}

#[tokio::test]
async fn integers_travel_as_they_are() {
    let device = Device::serving("digits-int8-1.0.0").await;
    let (input, expected) = golden("digits-int8-1.0.0");
    let input: Vec<i64> = input.iter().map(|v| *v as i64).collect();
    let request = json!({"inputs": [
        {"name": "image", "datatype": "INT8", "shape": [1, 8, 8, 1], "data": input}
    ]});
    let reply = device
        .client()
        .await
        .post("/v2/models/digits-int8/infer", request.to_string())
        .await;
    let reply = if reply.status == 404 {
        device.client().await.post(INFER, request.to_string()).await
    } else {
        reply
    };
    assert_eq!(reply.status, 200, "{reply:?}");
    for (answer, expected) in json_values(&reply).iter().zip(&expected) {
        assert!((answer - expected).abs() <= 1.0);
    }
    device.close().await;
}

#[tokio::test]
async fn several_rows_and_long_json_are_answered_row_by_row() {
    let device = Device::serving_changed(
        "digits-1.0.0",
        |_| {},
        |manifest| {
            manifest["max_request_bytes"] = json!(1 << 20);
        },
    )
    .await;
    let mut client = device.client().await;
    let (input, expected) = golden("digits-1.0.0");
    for rows in [3usize, 1200] {
        let data: Vec<f64> = input.iter().copied().cycle().take(64 * rows).collect();
        let request = json!({"inputs": [
            {"name": "image", "datatype": "FP32", "shape": [rows, 8, 8, 1], "data": data}
        ]});
        let reply = client.post(INFER, request.to_string()).await;
        assert_eq!(
            reply.status,
            200,
            "{rows}: {:?}",
            String::from_utf8_lossy(&reply.body)
        );
        assert_eq!(reply.json()["outputs"][0]["shape"], json!([rows, 10]));
        let answers = json_values(&reply);
        assert_eq!(answers.len(), 10 * rows);
        for row in answers.chunks(10) {
            assert_close(row, &expected);
        }
    }
    // 1,200 rows of 256 bytes fit, 5,000 do not.
    let headers = [("Inference-Header-Content-Length", "0")];
    let reply = client
        .ask("POST", INFER, &headers, &vec![0; 5000 * 256])
        .await;
    assert_eq!(reply.status, 413, "{}", reply.error());
    device.close().await;
}

#[tokio::test]
async fn versions_are_found_by_semantic_version_and_by_release() {
    let device = Device::serving_changed("digits-1.0.0", |_| {}, |m| m["release"] = json!(7)).await;
    let mut client = device.client().await;
    let body = image(json!(golden("digits-1.0.0").0)).to_string();
    for version in ["1.0.0", "7"] {
        let path = format!("/v2/models/digits/versions/{version}/infer");
        assert_eq!(client.post(&path, &body).await.status, 200);
        let path = format!("/v2/models/digits/versions/{version}");
        let reply = client.get(&path).await;
        assert_eq!(reply.json()["versions"], json!(["1.0.0"]));
        assert_eq!(reply.json()["properties"]["release"], "7");
        assert_eq!(client.get(&format!("{path}/ready")).await.status, 200);
    }
    for path in [
        "/v2/models/digits/versions/2.0.0/infer",
        "/v2/models/digits/versions/8/infer",
        "/v2/models/digitz/infer",
        "/v2/models/digits/versions/../infer",
    ] {
        let reply = client.post(path, &body).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!reply.error().is_empty());
    }
    device.close().await;
}

#[tokio::test]
async fn the_server_describes_itself_and_its_models() {
    let device = Device::serving("digits-1.0.0").await;
    let mut client = device.client().await;
    let server = client.get("/v2").await.json();
    assert_eq!(server["name"], "edgeward");
    assert_eq!(
        server["extensions"],
        json!([
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "parameters",
            "sequence",
            "statistics"
        ])
    );
    assert_eq!(
        client.get("/v2/health/live").await.json(),
        json!({"live": true})
    );
    assert_eq!(
        client.get("/v2/health/ready").await.json(),
        json!({"ready": true})
    );
    assert_eq!(
        client.get("/v2/models").await.json(),
        json!({"models": ["digits"]})
    );
    let ready = client.get("/v2/models/digits/ready").await.json();
    assert_eq!(ready, json!({"name": "digits", "ready": true}));
    assert_eq!(client.get("/v2/models/other/ready").await.status, 404);
    let metrics = client.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .header("content-type")
            .expect("type")
            .starts_with("text/plain")
    );
    assert!(String::from_utf8_lossy(&metrics.body).contains("edgeward_model_ready"));
    let reply = client.get(INFER).await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    let reply = client.ask("HEAD", "/v2/health/live", &[], b"").await;
    assert_eq!(reply.status, 200);
    device.close().await;
}

#[tokio::test]
async fn a_dead_worker_shows_and_comes_back() {
    let device = Device::serving("digits-1.0.0").await;
    let mut client = device.client().await;
    let body = image(json!(golden("digits-1.0.0").0)).to_string();
    let first = device.worker();
    rustix::process::kill_process(first, rustix::process::Signal::KILL).expect("kill");
    let deadline = std::time::Instant::now() + crate::client::PATIENCE;
    let mut seen_dead = false;
    loop {
        let reply = client.get("/v2/models/digits/ready").await;
        let device_ready = client.get("/v2/health/ready").await;
        if reply.status == 503 {
            seen_dead = true;
            assert_eq!(reply.json()["ready"], json!(false));
            assert!(!reply.error().is_empty());
            let reply = client.post(INFER, &body).await;
            if reply.status != 200 {
                assert_eq!(reply.status, 503);
                assert!(reply.header("retry-after").is_some());
            }
        } else if seen_dead && device_ready.status == 200 {
            break;
        }
        assert_eq!(client.get("/v2/health/live").await.status, 200);
        assert!(
            std::time::Instant::now() < deadline,
            "seen dead: {seen_dead}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(client.post(INFER, &body).await.status, 200);
    assert_ne!(device.worker(), first);
    device.close().await;
}

#[tokio::test]
async fn every_wrong_request_is_a_400_that_names_the_tensor_and_what_was_expected() {
    let device = Device::serving("digits-1.0.0").await;
    let mut client = device.client().await;
    let zeros = vec![0; 64];
    let with = |change: &dyn Fn(&mut Value)| {
        let mut request = image(json!(zeros));
        change(&mut request["inputs"][0]);
        request.to_string()
    };
    let mut nan = image(json!(zeros)).to_string();
    nan = nan.replacen("[0,", "[NaN,", 1);
    let mut twice = image(json!(zeros));
    let first = twice["inputs"][0].clone();
    twice["inputs"].as_array_mut().expect("inputs").push(first);
    for (body, says) in [
        (with(&|i| i["name"] = json!("imago")), vec!["imago", "\"image\""]),
        (with(&|i| i["datatype"] = json!("INT8")), vec!["image", "INT8", "FP32"]),
        (with(&|i| i["datatype"] = json!("STRING")), vec!["image", "STRING", "FP32"]),
        (with(&|i| i["shape"] = json!([8, 8, 1])), vec!["image", "[-1, 8, 8, 1]", "[8, 8, 1]"]),
        (with(&|i| i["shape"] = json!([0, 8, 8, 1])), vec!["image", "[-1, 8, 8, 1]"]),
        (with(&|i| i["shape"] = json!([1, 8, 9, 1])), vec!["image", "[1, 8, 9, 1]"]),
        // Products beyond 64 bits, of elements and of bytes.
        (with(&|i| i["shape"] = json!([1u64 << 58, 8, 8, 1])), vec!["image", "more bytes than can be counted"]),
        (with(&|i| i["shape"] = json!([1u64 << 56, 8, 8, 1])), vec!["image", "more bytes than can be counted"]),
        (with(&|i| i["shape"] = json!([u64::MAX, 8, 8, 1])), vec!["image"]),
        (with(&|i| i["shape"] = json!([1, 1u64 << 63, 1u64 << 63, 1])), vec!["image", "[-1, 8, 8, 1]"]),
        (with(&|i| { i["shape"] = json!([1u64 << 56, 8, 8, 1]); i.as_object_mut().expect("input").remove("data");
            i["parameters"] = json!({"binary_data_size": u64::MAX}); }), vec!["bytes"]),
        (with(&|i| i["data"] = json!(vec![0; 63])), vec!["image", "63", "64"]),
        (with(&|i| i["data"] = json!(vec![0; 65])), vec!["image", "64"]),
        (with(&|i| i["data"] = json!("text")), vec!["array"]),
        (with(&|i| i["data"] = json!(vec!["0"; 64])), vec!["image", "element 0", "number"]),
        (with(&|i| i["data"] = json!([[null]])), vec!["image", "element 0"]),
        (with(&|i| i["data"] = json!([1e39])), vec!["image", "range of FP32"]),
        (with(&|i| i["data"] = Value::Null), vec!["array"]),
        (nan, vec!["image", "element 0"]),
        (twice.to_string(), vec!["image", "twice"]),
        (json!({"inputs": []}).to_string(), vec!["image", "missing", "FP32 [-1, 8, 8, 1]"]),
        (json!({"outputs": []}).to_string(), vec!["no inputs"]),
        (
            json!({"inputs": image(json!(zeros))["inputs"], "outputs": [{"name": "logits"}]}).to_string(),
            vec!["logits", "probabilities"],
        ),
        (
            json!({"inputs": image(json!(zeros))["inputs"], "parameters": {"signature_name": "no"}}).to_string(),
            vec!["signature_name", "serving_default"],
        ),
        (
            json!({"inputs": image(json!(zeros))["inputs"], "model_name": "digitz"}).to_string(),
            vec!["digitz", "\"digits\""],
        ),
        ("{".to_owned(), vec!["JSON", "byte 1"]),
        (String::new(), vec!["JSON"]),
    ] {
        let reply = client.post(INFER, &body).await;
        let error = reply.error();
        assert_eq!(reply.status, 400, "{body}: {error}");
        for says in says {
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    let (body, length) = binary(Value::Null);
    let longer = (body.len() + 1).to_string();
    for (header, cut, says) in [
        (longer.as_str(), 0, "says"),
        ("-1", 0, "whole number"),
        ("18446744073709551616", 0, "whole number"),
        ("18446744073709551615", 0, "says"),
        ("x", 0, "whole number"),
        (&length, 1, "256 bytes together, and 255"),
        ("0", 1, "multiple of 256"),
    ] {
        let body = &body[..body.len() - cut];
        let headers = [("Inference-Header-Content-Length", header)];
        let reply = client.ask("POST", INFER, &headers, body).await;
        let error = reply.error();
        assert_eq!(reply.status, 400, "{header}: {error}");
        assert!(error.contains(says), "{header}: {error}");
    }
    // After all that the same connection still answers.
    let body = image(json!(golden("digits-1.0.0").0)).to_string();
    assert_eq!(client.post(INFER, body).await.status, 200);
    device.close().await;
}

#[tokio::test]
async fn bodies_in_chunks_and_pipelined_requests_are_answered_in_order() {
    let device = Device::serving("digits-1.0.0").await;
    let mut client = device.client().await;
    let (input, expected) = golden("digits-1.0.0");
    let body = image(json!(input)).to_string();
    client
        .send(format!(
            "POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .await;
    for chunk in body.as_bytes().chunks(100) {
        client.send(format!("{:x}\r\n", chunk.len())).await;
        client.send(chunk).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    let reply = client.reply().await.expect("answer");
    assert_close(&json_values(&reply), &expected);

    let mut both = Vec::new();
    for id in ["first", "second"] {
        let mut request = image(json!(input));
        request["id"] = json!(id);
        both.extend(crate::client::request(
            "POST",
            INFER,
            &[],
            request.to_string().as_bytes(),
        ));
    }
    client.send(both).await;
    for id in ["first", "second"] {
        assert_eq!(client.reply().await.expect("answer").json()["id"], id);
    }
    device.close().await;
}

#[tokio::test]
async fn a_model_that_should_be_served_and_is_not_makes_the_device_unready_and_is_no_stranger() {
    let device = Device::serving("digits-1.0.0").await;
    let missing = "missing".parse().expect("name");
    device.engine.lacks(&missing, "its file is damaged");
    let mut client = device.client().await;
    for path in ["/v2/health/ready", "/v2/models/missing/ready"] {
        let reply = client.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        assert!(
            reply.error().contains("missing") && reply.error().contains("damaged"),
            "{}",
            reply.error()
        );
    }
    let reply = client.post("/v2/models/missing/infer", "{}").await;
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    assert_eq!(client.get("/v2/models/digits/ready").await.status, 200);
    device.engine.retire(&missing).await;
    assert_eq!(client.get("/v2/health/ready").await.status, 200);
    assert_eq!(client.get("/v2/models/missing/ready").await.status, 404);
    device.close().await;
}

#[tokio::test]
async fn a_trace_goes_through_whatever_the_answer_is() {
    let device = Device::serving("digits-1.0.0").await;
    let mut client = device.client().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for path in ["/v2/models/digits", "/v2/nowhere"] {
        let reply = client
            .ask("GET", path, &[("traceparent", trace)], b"")
            .await;
        let told = reply.header("traceresponse").expect("a response");
        assert!(
            told.starts_with(&trace[..36]) && !told.contains("b7ad6b7169203331"),
            "{told}"
        );
        let reply = client
            .ask("GET", path, &[("traceparent", "00-0")], b"")
            .await;
        assert_eq!(reply.header("traceresponse"), None);
    }
    device.close().await;
}
