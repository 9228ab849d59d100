//! Inference data stays on the device: everything that leaves one is recorded, taken apart and searched.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use edgeward_models::Digest;
use edgeward_models::codec;
use edgeward_models::fleet::status::Status;
use edgeward_models::fleet::telemetry::TelemetryBatch;
use edgeward_tests::departed::{Departed, Message};
use edgeward_tests::isolated::Isolated;
use edgeward_tests::package::known;
use edgeward_tests::planted::Pattern;
use edgeward_tests::{BrokerKind, Device, Fleet, binaries, process, wait};
use serde_json::{Value, json};

/// Exact in 32 bits, so that one decimal text stands for each.
const NUMBERS: [f32; 2] = [8317.0625, -2911.4375];
/// A name that a model may have, too.
const TEXT: &str = "jane-doe-19700101";
const INFER: &str = "/v2/models/digits/infer";

/// Every pattern in every form of everything that left.
fn found(departed: &Departed) -> Vec<String> {
    let mut places = departed.streams();
    places.extend(departed.messages().iter().flat_map(Message::forms));
    let patterns = [Pattern::of_numbers(NUMBERS), Pattern::of_text(TEXT)];
    let found = patterns.iter().flat_map(|pattern| {
        let in_place = |place: &Vec<u8>| pattern.found_in(place);
        places.iter().filter_map(in_place).collect::<Vec<_>>()
    });
    found.collect()
}

/// Asks in every form there is, right and wrong, with the patterns in everything that a caller chooses.
fn ask(ward: &Device, isolated: &Isolated, fleet: &Fleet) {
    let values: Vec<f32> = NUMBERS.into_iter().cycle().take(64).collect();
    let question = |name: &str, id: &str, shape: Value| json!({"id": id, "inputs": [{"name": name, "datatype": "FP32", "shape": shape, "data": values}]});
    let whole = || json!([1, 8, 8, 1]);
    let mut unix = ward.unix();
    let mut post = |path: &str, body: String, status: u16| {
        let answer = unix.request("POST", path, &[("traceparent", TEXT)], body.as_bytes());
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, status, "{}", answer.text());
    };
    post(INFER, question("image", TEXT, whole()).to_string(), 200);
    post(INFER, question(TEXT, "1", whole()).to_string(), 400);
    post(
        INFER,
        question("image", "1", json!([8317, 2])).to_string(),
        400,
    );
    post(INFER, format!("{{\"{TEXT}\": 8317.0625"), 400);
    post(&format!("/v2/models/{TEXT}/infer"), String::new(), 404);
    post(&format!("/v2/{TEXT}"), String::new(), 404);
    let binary: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    // Its connection belongs to the namespace, as that of any client on the network would.
    isolated.inside(|| {
        let header = [("inference-header-content-length", "0")];
        let mut tls = ward.tls();
        let answer = tls
            .request("POST", INFER, &header, &binary)
            .expect("an answer");
        answer.expect_ok();
        let answer = tls
            .request("POST", INFER, &header, &binary[4..])
            .expect("an answer");
        assert_eq!(answer.status, 400);
    });
    let input = fleet.directory().join("planted.f32");
    std::fs::write(&input, &binary).expect("write");
    let mut grpc = std::process::Command::new(binaries::python());
    let script = binaries::root().join("tests/python/planted.py");
    grpc.arg(script)
        .arg(ward.socket_path())
        .arg(&input)
        .arg(TEXT);
    process::run(&mut grpc).expect_success();
}

/// The processes of the agent's workers, which hang from a thread of its own.
fn workers(ward: &Device) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", ward.pid())).expect("a running agent");
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let lists: Vec<String> = lists.collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    pids.map(|pid| pid.parse().expect("a number")).collect()
}

/// Ends the worker as a crash does; another one answers when this returns.
fn crash(ward: &Device) {
    let before = workers(ward);
    assert!(!before.is_empty(), "no worker");
    for worker in &before {
        let pid = rustix::process::Pid::from_raw(*worker).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    }
    wait::until("another worker to answer", wait::PATIENCE, || {
        let now = workers(ward);
        if now.is_empty() || now.iter().any(|pid| before.contains(pid)) {
            return Err(format!("{now:?}"));
        }
        let question = known("digits-1.0.0", 0).request;
        let answer = ward.unix().infer("digits", &question);
        match answer.map_err(|e| e.to_string())? {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.text()),
        }
    });
}

/// The messages in the log of departures, by class and digest, and how often each.
fn listed(ward: &Device) -> BTreeMap<(String, String), usize> {
    let export = ["audit", "export", "--log", "departures"];
    let text = ward.edgeward(&export).expect_success();
    let mut listed = BTreeMap::new();
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| entry["fields"][name].as_str().expect(name).to_owned();
        *listed.entry((field("class"), field("sha256"))).or_default() += 1;
    }
    listed
}

/// The names of all fields of a document, wherever they stand.
fn fields(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let deeper = members.iter().flat_map(|(name, value)| {
                let below = fields(value)
                    .into_iter()
                    .map(move |field| format!("{name}.{field}"));
                std::iter::once(name.clone()).chain(below)
            });
            deeper.collect()
        }
        Value::Array(values) => values.first().map(fields).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The newest message of a class, as a document.
fn newest<T: serde::de::DeserializeOwned + serde::Serialize>(
    departed: &Departed,
    class: &str,
) -> Value {
    let messages = departed.messages();
    let message = messages
        .iter()
        .rev()
        .find(|m| m.topic.ends_with(class))
        .expect(class);
    let form = message.forms().pop().expect("a form");
    let document: T = codec::decode("a message", &form).expect("what it says it is");
    serde_json::to_value(document).expect("JSON")
}

#[test]
#[allow(clippy::print_stderr)]
fn nothing_of_a_request_leaves_the_device_and_what_leaves_is_listed_and_goes_to_the_broker_alone() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let Some(isolated) = Isolated::new(fleet.directory()) else {
        eprintln!("no network namespace to be had (run as root): residency was not tried");
        return;
    };
    let mut ward = fleet.device("ward-1", "radiology");
    let listener = isolated.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind"));
    let port = listener.local_addr().expect("an address").port();
    let identity = ward.state_directory().join("identity");
    let departed = Departed::between(listener, fleet.port(), &fleet.home(), &identity);
    ward.isolate(&isolated);
    ward.use_broker_port(port);
    ward.configure(
        "[fleet]\n",
        "[telemetry]\nlevel = \"metrics\"\ninterval_seconds = 1\n\n[fleet]\n",
    );
    ward.configure(
        "state_directory",
        "residency = \"on-site\"\nstate_directory",
    );
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");

    ask(&ward, &isolated, &fleet);
    crash(&ward);
    ask(&ward, &isolated, &fleet);
    let numbered = |class: &str| {
        departed
            .messages()
            .iter()
            .filter(|m| m.topic.ends_with(class))
            .count()
    };
    let before = numbered("/telemetry");
    wait::until(
        "telemetry of what was asked",
        wait::PATIENCE,
        || match numbered("/telemetry") {
            now if now > before + 1 => Ok(()),
            now => Err(now.to_string()),
        },
    );
    let samples = newest::<TelemetryBatch>(&departed, "/telemetry");
    assert_eq!(samples["samples"][0]["models"][0]["model"], "digits");

    // What would leave is shown whole.
    let preview = ward.edgeward(&["telemetry", "preview"]).expect_success();
    let preview: Value = serde_json::from_str(&preview).expect("JSON");
    assert_eq!(fields(&preview["telemetry"]), fields(&samples));
    assert_eq!(
        fields(&preview["status"]),
        fields(&newest::<Status>(&departed, "/status"))
    );

    ward.stop();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(found(&departed), Vec::<String>::new());
    let mut left = BTreeMap::new();
    for message in departed.messages() {
        let class = message
            .topic
            .rsplit('/')
            .next()
            .expect("a class")
            .to_owned();
        let digest = Digest::of(&message.payload).to_string();
        *left.entry((class, digest)).or_default() += 1;
    }
    assert!(left.len() > 5, "{left:?}");
    assert_eq!(left, listed(&ward), "what left, and what is listed");
    ward.edgeward(&["audit", "verify"]).expect_success();

    // From the namespace nothing else was spoken to: the broker by the agent, its own door by its clients.
    let ports: Vec<u16> = isolated.destinations().iter().map(|d| d.port).collect();
    let loopback = isolated
        .destinations()
        .iter()
        .all(|d| d.address.is_loopback());
    assert!(loopback, "{:?}", isolated.destinations());
    let known = [port, ward.tls_port()];
    assert!(
        ports.iter().all(|port| known.contains(port)),
        "{ports:?} beside {known:?}"
    );
    assert!(
        known.iter().all(|port| ports.contains(port)),
        "{ports:?} of {known:?}"
    );

    // A pattern that does leave is found: as the name of a model, which a status has every right to say.
    let model = binaries::sample("digits-1.0.0").join("model.tflite");
    let leak = edgeward_tests::Package::of_tflite(&model, TEXT, fleet.directory());
    ward.start();
    fleet.push(leak.path(), "radiology").expect_success();
    ward.wait_active(TEXT, "1.0.0");
    wait::until("the leak to be found", wait::PATIENCE, || {
        match found(&departed) {
            found if found.is_empty() => Err("nothing".to_owned()),
            _ => Ok(()),
        }
    });
    // And so is a packet to somebody else.
    isolated.inside(|| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
        socket.send_to(b"hello", "192.0.2.1:53").expect("send");
    });
    wait::until("the packet to be seen", wait::PATIENCE, || {
        let seen = isolated.destinations();
        let strange = seen
            .iter()
            .any(|d| d.port == 53 && !d.address.is_loopback());
        if strange {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
}
