//! What a hostile or broken carrier can do is be refused, with a message that says what and why, while the
//! old version serves on.

use std::time::Duration;

use edgeward_models::fleet::topic::Topic;
use edgeward_models::sign::{KeyRing, Repository};
use edgeward_models::{FleetName, Manifest};
use edgeward_tests::publisher::publish_retained;
use edgeward_tests::{BrokerKind, Device, Fleet, binaries, package::known, wait};
use jiff::{SignedDuration, Timestamp};

/// A fleet with digits 1.0.0 active on one device.
fn serving() -> (Fleet, Device) {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    (fleet, ward)
}

fn repository(fleet: &Fleet) -> Repository {
    Repository::open(&fleet.home().join("repository")).expect("open the repository")
}

/// Puts metadata files of `from` on the broker of `onto`, timestamp last.
fn publish_metadata(from: &Repository, onto: &Fleet) {
    let fleet: FleetName = onto.name().parse().expect("name");
    let everything = from.everything().expect("list");
    let mut messages = Vec::new();
    for digest in &everything.chunks {
        let topic = Topic::Chunk(*digest).in_fleet(&fleet);
        messages.push((topic, from.chunk(digest).expect("read a chunk")));
    }
    for file in &everything.metadata {
        let packed = from.packed_metadata(file).expect("pack");
        messages.push((Topic::Metadata(file.clone()).in_fleet(&fleet), packed.head));
        for (digest, bytes) in packed.chunks {
            messages.push((Topic::Chunk(digest).in_fleet(&fleet), bytes));
        }
    }
    publish_retained(onto, messages);
}

fn large_chunks_with_a_changed_bit(fleet: &Fleet) -> Vec<(String, Vec<u8>)> {
    let name: FleetName = fleet.name().parse().expect("name");
    let source = repository(fleet);
    let mut messages = Vec::new();
    for digest in source.everything().expect("list").chunks {
        let mut bytes = source.chunk(&digest).expect("read");
        if bytes.len() > 20_000 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            messages.push((Topic::Chunk(digest).in_fleet(&name), bytes));
        }
    }
    messages
}

/// Adds digits 2.0.0 for the group as of `then`, with the right keys.
fn sign_second_version(fleet: &Fleet, then: Timestamp) {
    let keys = KeyRing::open(&fleet.home().join("keys")).expect("keys");
    let mut source = repository(fleet);
    let sample = binaries::sample("digits-2.0.0");
    let manifest = std::fs::read(sample.join("manifest.json")).expect("read");
    let mut manifest = Manifest::parse(&manifest).expect("a manifest");
    manifest.release = source.next_release(&manifest.model).expect("release");
    let files = manifest.files.keys();
    let files = files
        .map(|f| (f.clone(), sample.join(f.as_str())))
        .collect();
    source.add_version(&manifest, &files).expect("add");
    let group = "radiology".parse().expect("name");
    let mut desired = source.desired(&group).expect("read").expect("a wish");
    desired.sequence += 1;
    let wish = desired.models.get_mut(&manifest.model).expect("a wish");
    wish.previous = Some(wish.version.clone());
    wish.version = manifest.version.clone();
    wish.release = manifest.release;
    wish.rollout = "signed-long-ago".parse().expect("name");
    source.set_desired(&desired).expect("stage");
    source.accept_earlier_clock();
    source.commit(&keys, then).expect("sign");
}

fn still_serves(ward: &Device, sample: &str, version: &str) {
    let question = known(sample, 0);
    wait::stays(version, Duration::from_secs(1), || {
        let answer = ward.unix().infer("digits", &question.request);
        let answer = answer.map_err(|e| e.to_string())?;
        if answer.status != 200 {
            return Err(answer.text());
        }
        question.check(&answer.json())
    });
    let active = ward.active("digits").expect("status");
    assert_eq!(active.as_deref(), Some(version));
}

#[test]
fn a_tampered_chunk_is_refused_until_the_operator_puts_the_right_one_back() {
    let (fleet, mut ward) = serving();
    ward.stop();
    let package = fleet
        .package("digits-2.0.0")
        .version("2.0.0")
        .padded(200_000, 5);
    fleet.push(package.path(), "radiology").expect_success();

    // One bit of every large chunk, on the broker.
    let messages = large_chunks_with_a_changed_bit(&fleet);
    assert!(!messages.is_empty(), "the model has no large chunk");
    publish_retained(&fleet, messages);

    ward.start();
    ward.wait_refusal("digits", &["chunk", "tampered"]);
    still_serves(&ward, "digits-1.0.0", "1.0.0");

    // Sync finds what is wrong on the broker only if it looks: it sends everything again.
    fleet.fleetctl(&["sync"]).expect_success();
    ward.wait_active("digits", "2.0.0");
}

#[test]
fn metadata_signed_with_keys_of_another_fleet_is_refused() {
    let (fleet, ward) = serving();
    // The same fleet name and the same structure, everything right but the keys.
    let thief = Fleet::without_broker();
    for sample in ["digits-1.0.0", "digits-2.0.0", "breast-cancer-1.0.0"] {
        thief.push_sample(sample, "radiology");
    }
    publish_metadata(&repository(&thief), &fleet);
    ward.wait_refusal("digits", &["timestamp.json", "not signed by the keys"]);
    still_serves(&ward, "digits-1.0.0", "1.0.0");

    // The operator's own repository puts it right.
    fleet.fleetctl(&["sync"]).expect_success();
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");
}

#[test]
fn older_metadata_that_is_played_again_changes_nothing_even_after_a_restart() {
    let (fleet, mut ward) = serving();
    let old = fleet.export("old");
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");

    let old = Repository::open(&old).expect("open the old repository");
    publish_metadata(&old, &fleet);
    ward.wait_refusal("digits", &["older"]);
    still_serves(&ward, "digits-2.0.0", "2.0.0");
    ward.kill();
    ward.start();
    ward.wait_refusal("digits", &["older"]);
    still_serves(&ward, "digits-2.0.0", "2.0.0");
}

#[test]
fn expired_metadata_bars_new_versions_and_leaves_the_old_one_serving() {
    let (fleet, ward) = serving();
    // Signed two years ago, with the right keys: all but the root has expired since.
    let past = Timestamp::now() - SignedDuration::from_hours(2 * 365 * 24);
    sign_second_version(&fleet, past);
    publish_metadata(&repository(&fleet), &fleet);

    ward.wait_refusal("digits", &["expired"]);
    still_serves(&ward, "digits-1.0.0", "1.0.0");
    let status = ward.status().expect("status");
    assert_eq!(status["stale"], true, "{status}");
}
