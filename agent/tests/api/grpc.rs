//! gRPC as no well-behaved client speaks it: limits, broken messages, endings. (Real clients: `tests/python`.)

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use edgeward_agent::api::coding::Coding;
use edgeward_agent::api::oip_grpc::messages::{
    ModelInferResponse, ModelStreamInferResponse, ServerLiveResponse,
};
use edgeward_agent::config::{Config, Rate};
use h2::client::SendRequest;
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use prost::Message;
use serde_json::json;
use tokio::net::UnixStream;

use crate::client::PATIENCE;
use crate::device::{Device, floats, golden};
use crate::records;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";

const INVALID_ARGUMENT: &str = "3";
const DEADLINE_EXCEEDED: &str = "4";
const RESOURCE_EXHAUSTED: &str = "8";
const UNIMPLEMENTED: &str = "12";
const UNAVAILABLE: &str = "14";

#[derive(Clone, PartialEq, Message)]
struct InferRequest {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(btree_map = "string, message", tag = "4")]
    parameters: BTreeMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Input>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
    /// No field of the protocol.
    #[prost(string, tag = "99")]
    unknown: String,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(int64, tag = "2")]
    int64_param: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(int32, repeated, tag = "2")]
    int_contents: Vec<i32>,
    #[prost(float, repeated, packed = "false", tag = "6")]
    fp32_contents: Vec<f32>,
}

/// The question of the sample's first golden vector.
fn question() -> InferRequest {
    InferRequest {
        model_name: "digits".to_owned(),
        inputs: vec![Input {
            name: "image".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 8, 8, 1],
            contents: None,
        }],
        raw_input_contents: vec![floats(&golden("digits-1.0.0").0)],
        ..InferRequest::default()
    }
}

fn framed(message: &impl Message) -> Bytes {
    frame(0, &message.encode_to_vec())
}

fn frame(flag: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flag);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

struct Channel {
    requests: SendRequest<Bytes>,
}

/// A call that was begun.
struct Call {
    sending: h2::SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

/// How a call ended.
#[derive(Debug)]
struct Ended {
    messages: Vec<Bytes>,
    trailers: HeaderMap,
}

impl Channel {
    async fn unix(device: &Device) -> Self {
        let stream = UnixStream::connect(&device.config.unix.path).await;
        let handshake = h2::client::handshake(stream.expect("connect"));
        let (requests, connection) = handshake.await.expect("handshake");
        tokio::spawn(connection);
        Self { requests }
    }

    async fn begin(&self, path: &str, headers: &[(&str, &str)]) -> Call {
        let mut requests = self.requests.clone().ready().await.expect("ready");
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("request");
        let (response, sending) = requests.send_request(request, false).expect("sent");
        Call { sending, response }
    }

    async fn ask(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Ended {
        let mut call = self.begin(path, headers).await;
        // The answer may come before all is sent; then the rest does not matter.
        let _ = call.sending.send_data(body.into(), true);
        call.end().await
    }
}

impl Call {
    async fn end(self) -> Ended {
        let ending = async {
            let response = self.response.await.expect("an answer");
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], "application/grpc");
            let head = response.headers().clone();
            let mut body = response.into_body();
            let mut whole = BytesMut::new();
            while let Some(data) = body.data().await {
                let data = data.expect("data");
                let released = body.flow_control().release_capacity(data.len());
                released.expect("capacity");
                whole.extend_from_slice(&data);
            }
            let trailers = body.trailers().await.expect("trailers");
            Ended {
                messages: messages(whole.freeze()),
                trailers: trailers.unwrap_or(head),
            }
        };
        tokio::time::timeout(PATIENCE, ending)
            .await
            .expect("an end in time")
    }
}

fn messages(mut bytes: Bytes) -> Vec<Bytes> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let prefix = bytes.split_to(5);
        assert_eq!(prefix[0], 0, "not compressed");
        let length = u32::from_be_bytes(prefix[1..].try_into().expect("four"));
        found.push(bytes.split_to(length as usize));
    }
    found
}

impl Ended {
    fn status(&self) -> &str {
        self.trailers["grpc-status"].to_str().expect("text")
    }

    fn text(&self) -> &str {
        let text = self.trailers.get("grpc-message");
        text.map_or("", |text| text.to_str().expect("text"))
    }

    fn refused(&self, status: &str, says: &str) {
        assert_eq!(self.status(), status, "{}", self.text());
        assert!(self.text().contains(says), "{:?} of {says:?}", self.text());
        assert!(self.messages.is_empty());
    }

    fn answered(&self) -> ModelInferResponse {
        assert_eq!(self.status(), "0", "{}", self.text());
        ModelInferResponse::decode(&*self.messages[0]).expect("a response")
    }
}

#[tokio::test]
async fn fields_that_nobody_knows_and_numbers_one_by_one_are_understood() {
    let device = Device::serving("digits-1.0.0").await;
    let channel = Channel::unix(&device).await;
    let mut typed = question();
    typed.unknown = "from another time".to_owned();
    typed.raw_input_contents.clear();
    let values = golden("digits-1.0.0").0;
    typed.inputs[0].contents = Some(Contents {
        int_contents: Vec::new(),
        fp32_contents: values.iter().map(|v| *v as f32).collect(),
    });
    let raw = channel.ask(INFER, &[], framed(&question())).await;
    let typed = channel.ask(INFER, &[], framed(&typed)).await;
    assert_eq!(raw.answered().outputs[0].shape, [1, 10]);
    assert_eq!(raw.messages, typed.messages);
    device.close().await;
}

#[tokio::test]
async fn a_call_is_recorded_as_any_request_is() {
    let device = Device::serving_changed("digits-1.0.0", records::every, |_| {}).await;
    let channel = Channel::unix(&device).await;
    let mut asked = question();
    asked.id = "call-1".to_owned();
    channel.ask(INFER, &[], framed(&asked)).await.answered();
    asked.inputs[0].shape = vec![3];
    let refused = channel.ask(INFER, &[], framed(&asked)).await;
    assert_eq!(refused.status(), INVALID_ARGUMENT);
    channel.ask(LIVE, &[], framed(&())).await;
    let found = records::recorded(&device);
    let outcomes: Vec<_> = found.iter().map(|r| (&r["outcome"], &r["id"])).collect();
    assert_eq!(
        outcomes,
        [
            (&json!("succeeded"), &json!("call-1")),
            (&json!("invalid"), &json!(null))
        ]
    );
    device.close().await;
}

#[tokio::test]
async fn values_must_come_in_one_form_and_be_as_many_as_the_shape_says() {
    let device = Device::serving("digits-1.0.0").await;
    let channel = Channel::unix(&device).await;
    let changed = |change: fn(&mut InferRequest)| {
        let mut request = question();
        change(&mut request);
        framed(&request)
    };
    let contents = |ints: usize, floats: usize| {
        Some(Contents {
            int_contents: vec![1; ints],
            fp32_contents: vec![1.0; floats],
        })
    };
    for (request, says) in [
        (
            changed(|r| r.raw_input_contents.push(Vec::new())),
            "2 raw_input_contents",
        ),
        (changed(|r| r.raw_input_contents.clear()), "\"image\""),
        (
            changed(|r| {
                r.raw_input_contents[0].pop();
            }),
            "255 bytes",
        ),
        (
            changed(|r| r.inputs[0].shape = vec![1, 8, 8, -1]),
            "-1 is no dimension",
        ),
        (changed(|r| r.inputs[0].shape = vec![1; 9]), "more than 8"),
        (
            changed(|r| r.inputs = vec![r.inputs[0].clone(); 300]),
            "more than 256 inputs",
        ),
        (changed(|r| r.inputs.clear()), "0 inputs"),
        (
            changed(|r| {
                r.parameters
                    .insert("timeout".to_owned(), Parameter { int64_param: -5 });
            }),
            "timeout",
        ),
        (
            changed(|r| {
                r.parameters
                    .insert("nonsense".to_owned(), Parameter::default());
            }),
            "nonsense",
        ),
        (frame(0, b"\x08"), "does not end"),
        (
            frame(0, &[0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            "longer than",
        ),
        (frame(0, &[0x0a, 1, 0xff]), "UTF-8"),
        (frame(0, &[0x0b]), "unknown type"),
    ] {
        channel
            .ask(INFER, &[], request)
            .await
            .refused(INVALID_ARGUMENT, says);
    }
    for (ints, floats, raw, says) in [
        (0, 63, false, "\"image\""),
        (64, 0, false, "another datatype than FP32"),
        (0, 64, true, "one or the other"),
        (0, 1 << 20, false, "more than the"),
    ] {
        let mut request = question();
        request.inputs[0].contents = contents(ints, floats);
        if !raw {
            request.raw_input_contents.clear();
        }
        let ended = channel.ask(INFER, &[], framed(&request)).await;
        ended.refused(INVALID_ARGUMENT, says);
    }
    let int8 = Device::serving("digits-int8-1.0.0").await;
    let channel = Channel::unix(&int8).await;
    let mut request = question();
    request.raw_input_contents.clear();
    request.model_name = "digits-int8".to_owned();
    request.inputs[0].datatype = "INT8".to_owned();
    request.inputs[0].contents = Some(Contents {
        int_contents: vec![300; 64],
        fp32_contents: Vec::new(),
    });
    let ended = channel.ask(INFER, &[], framed(&request)).await;
    ended.refused(INVALID_ARGUMENT, "range of INT8");
    request.inputs[0].contents = Some(Contents {
        int_contents: vec![-128; 64],
        fp32_contents: Vec::new(),
    });
    let ended = channel.ask(INFER, &[], framed(&request)).await;
    assert_eq!(ended.answered().outputs.len(), 1);
    int8.close().await;
    device.close().await;
}

#[tokio::test]
async fn a_call_that_is_not_one_whole_message_is_refused() {
    let device = Device::serving("digits-1.0.0").await;
    let channel = Channel::unix(&device).await;
    let whole = framed(&question());
    let twice = [&whole[..], &whole].concat();
    for (body, says) in [
        (Bytes::new(), "no message"),
        (whole.slice(..whole.len() - 1), "did not arrive whole"),
        (whole.slice(..3), "did not arrive whole"),
        (twice.into(), "more than one message"),
        (frame(1, b"x"), "no grpc-encoding"),
        (frame(7, b"x"), "no gRPC message"),
    ] {
        channel
            .ask(INFER, &[], body)
            .await
            .refused(INVALID_ARGUMENT, says);
    }
    for (path, body) in [
        ("/inference.GRPCInferenceService/Nonsense", whole.clone()),
        ("/nonsense", whole.clone()),
    ] {
        channel
            .ask(path, &[], body)
            .await
            .refused(UNIMPLEMENTED, "no method");
    }
    let unknown = [("grpc-encoding", "snappy")];
    let ended = channel.ask(INFER, &unknown, whole.clone()).await;
    ended.refused(UNIMPLEMENTED, "snappy");
    let known = ended.trailers["grpc-accept-encoding"]
        .to_str()
        .expect("text");
    assert!(known.contains("gzip"), "{known}");
    let ended = channel
        .ask(LIVE, &[("grpc-timeout", "1x")], frame(0, b""))
        .await;
    ended.refused(INVALID_ARGUMENT, "grpc-timeout");
    // The connection is none the worse.
    let ended = channel.ask(LIVE, &[], frame(0, b"")).await;
    let live = ServerLiveResponse::decode(&*ended.messages[0]).expect("live");
    assert!(live.live);
    device.close().await;
}

fn narrow(config: &mut Config) {
    config.limits.max_body_bytes = 100_000;
    config.limits.max_bodies_bytes = 128 << 10;
    config.limits.body_timeout_ms = 400;
}

#[tokio::test]
async fn a_caller_that_asks_too_fast_is_told_when_to_come_again() {
    let slow = |config: &mut Config| {
        config.caller_rates.each = Some(Rate {
            requests_per_second: 1,
            burst: 2,
        });
    };
    let device = Device::serving_changed("digits-1.0.0", slow, |_| {}).await;
    let channel = Channel::unix(&device).await;
    let mut refused = None;
    for _ in 0..50 {
        let ended = channel.ask(INFER, &[], framed(&question())).await;
        if ended.trailers["grpc-status"] != "0" {
            refused = Some(ended);
            break;
        }
    }
    let refused = refused.expect("nobody stops it");
    refused.refused(RESOURCE_EXHAUSTED, "1 times a second");
    assert_eq!(refused.trailers["grpc-retry-pushback-ms"], "1000");
    device.close().await;
}

#[tokio::test]
async fn messages_have_the_limits_that_bodies_have() {
    let device = Device::serving_changed("digits-1.0.0", narrow, |_| {}).await;
    let channel = Channel::unix(&device).await;
    let says = "larger than 100000 bytes";
    let long = frame(0, &vec![0; 200_000]);
    channel
        .ask(INFER, &[], long)
        .await
        .refused(INVALID_ARGUMENT, says);
    let bomb = Coding::Gzip.packed(&vec![0; 4 << 20]).expect("packed");
    assert!(bomb.len() < 100_000);
    let gzip = [("grpc-encoding", "gzip")];
    let ended = channel.ask(INFER, &gzip, frame(1, &bomb)).await;
    ended.refused(INVALID_ARGUMENT, says);
    let ended = channel.ask(LIVE, &[], frame(0, &vec![0; 80_000])).await;
    ended.refused(INVALID_ARGUMENT, "this method");

    // One that is not whole holds most of what all may take together.
    let mut holding = channel.begin(INFER, &[]).await;
    let part = frame(0, &vec![0; 99_000]).slice(..90_000);
    holding.sending.send_data(part, false).expect("sent");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = Channel::unix(&device).await;
    let ended = other.ask(INFER, &[], frame(0, &vec![0; 99_000])).await;
    ended.refused(RESOURCE_EXHAUSTED, "try again later");
    assert_eq!(ended.trailers["grpc-retry-pushback-ms"], "1000");
    // It never becomes whole.
    holding
        .end()
        .await
        .refused(DEADLINE_EXCEEDED, "did not arrive");
    let ended = other.ask(INFER, &[], framed(&question())).await;
    assert_eq!(ended.answered().model_name, "digits");
    device.close().await;
}

#[tokio::test]
async fn a_callers_deadline_ends_the_call_in_time() {
    let device = Device::serving("digits-1.0.0").await;
    let channel = Channel::unix(&device).await;
    let late = [("grpc-timeout", "1n")];
    let ended = channel.ask(INFER, &late, framed(&question())).await;
    ended.refused(DEADLINE_EXCEEDED, "");
    // Longer than the device lets anyone wait: that is no mistake.
    let patient = [("grpc-timeout", "99999999H")];
    let ended = channel.ask(INFER, &patient, framed(&question())).await;
    assert_eq!(ended.answered().model_version, "1.0.0");
    for (path, body) in [(INFER, None), (STREAM, Some(framed(&question())))] {
        let mut call = channel.begin(path, &[("grpc-timeout", "300m")]).await;
        if let Some(body) = body {
            call.sending.send_data(body, false).expect("sent");
        }
        let ended = call.end().await;
        assert_eq!(ended.status(), DEADLINE_EXCEEDED, "{path}");
        assert_eq!(ended.messages.len(), usize::from(path == STREAM));
    }
    device.close().await;
}

#[tokio::test]
async fn a_wrong_message_ends_no_stream_and_a_broken_one_does() {
    let device = Device::serving("digits-1.0.0").await;
    let channel = Channel::unix(&device).await;
    let with_id = |id: &str, model: &str| InferRequest {
        id: id.to_owned(),
        model_name: model.to_owned(),
        ..question()
    };
    let body = [
        framed(&with_id("1", "digits")),
        framed(&with_id("2", "nonsense")),
        frame(0, b"\xff"),
        framed(&with_id("3", "digits")),
        frame(9, b""),
        framed(&with_id("4", "digits")),
    ];
    let ended = channel.ask(STREAM, &[], body.concat()).await;
    assert_eq!(ended.status(), INVALID_ARGUMENT);
    let answers = ended.messages.iter().map(|message| {
        let answer = ModelStreamInferResponse::decode(&**message).expect("a response");
        let id = answer.infer_response.expect("a response").id;
        (id, answer.error_message.is_empty())
    });
    let text = |id: &str, right| (id.to_owned(), right);
    let expected = [
        text("1", true),
        text("2", false),
        text("", false),
        text("3", true),
    ];
    assert_eq!(answers.collect::<Vec<_>>(), expected);
    device.close().await;
}

#[tokio::test]
async fn a_stream_on_which_nothing_comes_does_not_keep_its_connection() {
    let change = |config: &mut Config| {
        config.limits.header_timeout_ms = 200;
        config.limits.idle_timeout_ms = 600;
        config.limits.body_timeout_ms = 300;
    };
    let device = Device::serving_changed("digits-1.0.0", change, |_| {}).await;
    let channel = Channel::unix(&device).await;
    // Before its first message.
    let call = channel.begin(STREAM, &[]).await;
    call.end().await.refused(DEADLINE_EXCEEDED, "no message");
    // After it.
    let mut call = channel.begin(STREAM, &[]).await;
    let message = framed(&question());
    call.sending.send_data(message, false).expect("sent");
    let mut body = tokio::time::timeout(PATIENCE, call.response)
        .await
        .expect("in time")
        .map(Response::into_body)
        .expect("an answer");
    let ending = async { while let Some(Ok(_)) = body.data().await {} };
    tokio::time::timeout(PATIENCE, ending)
        .await
        .expect("the connection to be ended");
    device.close().await;
}

#[tokio::test]
async fn streams_end_when_the_doors_close_and_say_why() {
    let mut device = Device::serving("digits-1.0.0").await;
    let channel = Channel::unix(&device).await;
    let mut stream = channel.begin(STREAM, &[]).await;
    let message = framed(&question());
    stream.sending.send_data(message, false).expect("sent");
    let mut watch = channel.begin("/grpc.health.v1.Health/Watch", &[]).await;
    watch.sending.send_data(frame(0, b""), true).expect("sent");
    // Both have begun once a third is answered.
    let ended = channel.ask(LIVE, &[], frame(0, b"")).await;
    assert_eq!(ended.status(), "0");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let closing = tokio::spawn(device.close_doors());
    for call in [stream, watch] {
        let ended = call.end().await;
        assert_eq!(ended.status(), UNAVAILABLE, "{}", ended.text());
        assert_eq!(ended.messages.len(), 1);
    }
    let closed = tokio::time::timeout(PATIENCE, closing).await;
    closed.expect("closed").expect("joined");
    device.close().await;
}
