//! Messages that nobody's program wrote, in every topic that agents and fleetctl read.

use std::path::Path;

use edgeward_models::FleetName;
use edgeward_models::fleet::topic::Topic;
use edgeward_models::sign::Repository;
use edgeward_tests::publisher::publish_retained;
use edgeward_tests::{BrokerKind, Device, Fleet};

/// Over what an agent takes (`max_packet_bytes`), and within what this broker passes.
const OVERSIZE: usize = 266_000;

fn packed(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).expect("compress")
}

/// What stands where something else should.
fn poisons(right: &[u8]) -> Vec<Vec<u8>> {
    vec![
        // No format at all; the right thing cut short; both kinds of nesting without end; an array that claims four
        // thousand million elements.
        (0..3000u32).map(|n| (n * n % 251) as u8).collect(),
        right[..right.len() / 2].to_vec(),
        packed("[".repeat(200_000).as_bytes()),
        vec![0x81; 50_000],
        vec![0x9a, 0xff, 0xff, 0xff, 0xff],
        vec![0; OVERSIZE],
    ]
}

struct Ward {
    fleet: Fleet,
    device: Device,
    pid: u32,
}

impl Ward {
    /// The device serves as before, in the same process, and the operator's tool works.
    fn lives(&self) {
        assert_eq!(self.device.pid(), self.pid);
        let answer = self.device.answers_as("digits", "digits-1.0.0");
        answer.expect("the known answer");
        self.fleet.fleetctl(&["status"]).expect_success();
    }

    fn topic(&self, topic: Topic) -> String {
        let name: FleetName = self.fleet.name().parse().expect("name");
        topic.in_fleet(&name)
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) {
        publish_retained(&self.fleet, vec![(topic.to_owned(), payload)]);
    }
}

/// A repository's chunks and then its metadata files as they travel, timestamp last.
fn messages(directory: &Path) -> Vec<(Topic, Vec<u8>)> {
    let repository = Repository::open(directory).expect("open the repository");
    let everything = repository.everything().expect("list");
    let chunks = everything.chunks.iter().map(|digest| {
        let bytes = repository.chunk(digest).expect("a chunk");
        (Topic::Chunk(*digest), bytes)
    });
    let files = everything.metadata.iter().map(|file| {
        let packed = repository.packed_metadata(file).expect("pack");
        (Topic::Metadata(file.clone()), packed.head)
    });
    chunks.chain(files).collect()
}

#[test]
fn poison_in_any_topic_is_refused_and_gone_after_a_sync() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut device = fleet.device("ward-1", "radiology");
    device.configure("reconcile_seconds = 5", "reconcile_seconds = 1");
    device.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    device.wait_active("digits", "1.0.0");
    // A broker that does whatever it likes: statuses of devices can be written, too.
    fleet
        .broker()
        .permit(|list| list.replace("topic read edgeward", "topic readwrite edgeward"));
    let pid = device.pid();
    let ward = Ward { fleet, device, pid };

    // The next version, of which the broker holds nothing right but what is published here.
    let package = ward.fleet.package("digits-2.0.0");
    let offline = [
        "push",
        package.path().to_str().expect("UTF-8"),
        "--group",
        "radiology",
        "--offline",
    ];
    ward.fleet.fleetctl(&offline).expect_success();
    let right = messages(&ward.fleet.home().join("repository"));
    let timestamp = right.last().expect("a timestamp").1.clone();

    // Statuses and presence, as fleetctl reads them.
    let own = [
        ward.topic(Topic::Status("ward-1".parse().expect("name"))),
        ward.topic(Topic::Online("ward-1".parse().expect("name"))),
    ];
    for poison in poisons(&timestamp).into_iter().chain([Vec::new()]) {
        let messages = own.iter().map(|topic| (topic.clone(), poison.clone()));
        publish_retained(&ward.fleet, messages.collect());
        ward.lives();
    }

    // Topics that are none of the fleet's.
    let strange = [
        "repo/metadata/a/b",
        "repo/chunk/zz",
        "repo/\u{fffd}",
        "repo/metadata/..",
        "repo",
    ];
    let strange = strange
        .iter()
        .map(|tail| format!("edgeward/v1/hospital/{tail}"));
    publish_retained(
        &ward.fleet,
        strange.map(|topic| (topic, vec![1; 9])).collect(),
    );
    ward.lives();

    // The hint that there is something new.
    let hint = ward.topic(Topic::Metadata("timestamp.json".parse().expect("name")));
    for poison in poisons(&timestamp) {
        ward.publish(&hint, poison);
        ward.lives();
    }
    ward.device.wait_refusal("digits", &["timestamp.json"]);

    // Each file that a right timestamp leads to, each chunk, and a root that would follow, which no repository of
    // this fleet overwrites.
    let all = poisons(&timestamp);
    let is = |topic: &Topic, name: &str| match topic {
        Topic::Metadata(file) => file.as_str().contains(name),
        Topic::Chunk(_) => name == "chunk",
        _ => false,
    };
    for (row, place) in ["snapshot", "releases", "rollouts", "chunk", "2.root"]
        .iter()
        .enumerate()
    {
        let mut messages = right.clone();
        for (topic, payload) in &mut messages {
            if is(topic, place) {
                payload.clone_from(&all[row]);
            }
        }
        if *place == "2.root" {
            let root = Topic::Metadata("2.root.json".parse().expect("name"));
            messages.insert(0, (root, all[row].clone()));
        }
        let messages = messages
            .into_iter()
            .map(|(topic, payload)| (ward.topic(topic), payload));
        publish_retained(&ward.fleet, messages.collect());
        ward.device.wait_refusal("digits", &[place, "tampered"]);
        ward.lives();
    }

    // However many wrong hints there were, they were looked at and recorded a few times.
    for number in 0..100u32 {
        let hints = vec![(hint.clone(), number.to_le_bytes().to_vec())];
        publish_retained(&ward.fleet, hints);
    }
    ward.lives();
    let log = std::fs::read_to_string(ward.device.state_directory().join("audit.log"));
    let log = log.expect("the audit log");
    let recorded = log.matches("\"event\":\"metadata-refused\"").count();
    assert!(
        (1..=4).contains(&recorded),
        "{recorded} records of refusals"
    );

    // All of it is on the broker still; the operator puts everything right at once.
    ward.fleet.fleetctl(&["sync"]).expect_success();
    ward.device.wait_active("digits", "2.0.0");
    ward.device
        .answers_as("digits", "digits-2.0.0")
        .expect("the known answer");
}
