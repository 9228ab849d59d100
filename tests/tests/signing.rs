//! Two of three must sign a release: real desks with a file between them, and devices that count for themselves.

use std::path::{Path, PathBuf};

use edgeward_models::FleetName;
use edgeward_models::chunk::pack_metadata;
use edgeward_models::fleet::topic::Topic;
use edgeward_tests::fleet::path;
use edgeward_tests::forge::Forgery;
use edgeward_tests::publisher::publish_retained;
use edgeward_tests::{BrokerKind, Fleet, binaries};

/// A desk of its own with a key for releases, which the first desk adds.
fn further_desk(fleet: &Fleet, name: &str) -> PathBuf {
    let stick = fleet.export("stick");
    let home = fleet.directory().join(name);
    let broker = format!("localhost:{}", fleet.port());
    let init = ["init", fleet.name(), "--broker", &broker];
    let join = ["--join", path(&stick)];
    fleet
        .fleetctl_in(&home, &[&init[..], &join[..]].concat())
        .expect_success();
    let public = fleet.directory().join(format!("{name}.pem"));
    let generate = ["key", "generate", "releases", "--out", path(&public)];
    fleet.fleetctl_in(&home, &generate).expect_success();
    fleet
        .fleetctl(&["key", "add", "releases", path(&public)])
        .expect_success();
    home
}

/// Signs at another desk, brought there on a stick, and publishes at the first.
fn sign_and_publish(fleet: &Fleet, home: &Path, file: &str) {
    let stick = fleet.export("stick");
    fleet
        .fleetctl_in(home, &["pull", path(&stick)])
        .expect_success();
    fleet
        .fleetctl_in(home, &["sign", file, "--yes"])
        .expect_success();
    fleet.fleetctl(&["publish", file]).expect_success();
}

/// The metadata of a repository directory as retained messages, timestamp last.
fn messages(fleet: &Fleet, directory: &Path) -> Vec<(String, Vec<u8>)> {
    let name: FleetName = fleet.name().parse().expect("a name");
    let files = std::fs::read_dir(directory.join("metadata")).expect("metadata");
    let mut files: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
    files.sort_by_key(|file| file.ends_with("timestamp.json"));
    let message = |file: &PathBuf| {
        let packed = pack_metadata(&std::fs::read(file).expect("read")).expect("pack");
        assert!(packed.chunks.is_empty(), "{file:?} is large");
        let file = file.file_name().and_then(|n| n.to_str()).expect("a name");
        let topic = Topic::Metadata(file.parse().expect("a name"));
        (topic.in_fleet(&name), packed.head)
    };
    files.iter().map(message).collect()
}

#[test]
fn devices_take_a_release_that_two_of_three_signed_and_none_that_one_did() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let mut island = fleet.device("island-1", "radiology");
    island.without_fleet();
    ward.start();
    island.start();
    let [bob, carol] = ["bob", "carol"].map(|name| further_desk(&fleet, name));
    let waits = |arguments: &[&str]| {
        let said = fleet.fleetctl(arguments);
        assert_eq!(said.code, Some(1), "{said}");
        said.stdout.trim().to_owned()
    };
    let file = waits(&["key", "threshold", "releases", "2"]);
    sign_and_publish(&fleet, &bob, &file);
    let push = |sample: &str| {
        let package = binaries::sample(sample);
        waits(&["push", path(&package), "--group", "radiology", "--no-wait"])
    };
    sign_and_publish(&fleet, &carol, &push("digits-1.0.0"));
    ward.wait_active("digits", "1.0.0");
    let import =
        |island: &edgeward_tests::Device, stick: &Path| island.edgeward(&["import", path(stick)]);
    import(&island, &fleet.export("stick")).expect_success();
    island.wait_active("digits", "1.0.0");

    // A thief of everything at the first desk has one signature.
    let pending = push("digits-2.0.0");
    let stolen = fleet.export("stolen");
    Forgery::of(&stolen, &fleet.home().join("keys"))
        .newer("releases")
        .target("releases", "models/digits/9.0.0/manifest.json", b"{}")
        .write();
    let said = import(&island, &stolen);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(
        format!("{said}").contains("releases.json is refused"),
        "{said}"
    );
    publish_retained(&fleet, messages(&fleet, &stolen));
    ward.wait_refusal("digits", &["releases.json is refused"]);
    for device in [&ward, &island] {
        device
            .answers_as("digits", "digits-1.0.0")
            .expect("the known answer");
    }

    // What two signed is taken, over both.
    fleet.broker().restart();
    fleet.fleetctl(&["sync"]).expect_success();
    sign_and_publish(&fleet, &bob, &pending);
    ward.wait_active("digits", "2.0.0");
    import(&island, &fleet.export("stick")).expect_success();
    island.wait_active("digits", "2.0.0");
}
