//! A carrier that never ends: every length is bounded before it is taken.

mod common;

use common::forge::Forgery;
use common::{Carrier, Device, Fleet, day, noise};
use edgeward_models::chunk::Source;
use serde_json::json;
use std::sync::Arc;

/// Offers a well-formed file padded with so many bytes.
fn pad(carrier: &Arc<Carrier>, file: &str, bytes: Vec<u8>, padding: usize) {
    carrier.put(file, &[bytes, vec![b' '; padding]].concat());
}

#[tokio::test]
async fn metadata_larger_than_its_limit_is_not_taken() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    for (file, padding) in [
        ("timestamp.json", 200 << 10),
        ("1.snapshot.json", 200 << 10),
        ("1.targets.json", 200 << 10),
        ("1.releases.json", 9 << 20),
    ] {
        let carrier = fleet.carrier.copy();
        pad(&carrier, file, fleet.file(file), padding);
        let error = device.refuses(&carrier, day(0)).await;
        assert!(
            error.contains(file) && error.contains("larger than the"),
            "{error}"
        );
    }
    let carrier = fleet.carrier.copy();
    pad(
        &carrier,
        "2.root.json",
        fleet.file("1.root.json"),
        200 << 10,
    );
    let error = device.refuses(&carrier, day(0)).await;
    assert!(error.contains("2.root.json is larger than the"), "{error}");
}

#[tokio::test]
async fn a_zstd_bomb_in_a_topic_is_not_inflated() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let bomb = zstd::bulk::compress(&vec![b' '; 100 << 20], 3).expect("zstd");
    assert!(bomb.len() < 60 * 1024);
    let carrier = fleet.carrier.copy();
    carrier.put_head("timestamp.json", bomb);
    let error = device.refuses(&carrier, day(0)).await;
    assert!(
        error.contains("more than the 61440 bytes announced"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_longer_than_signed_metadata_says_is_refused() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    for file in ["1.snapshot.json", "1.targets.json", "1.releases.json"] {
        let carrier = fleet.carrier.copy();
        pad(&carrier, file, fleet.file(file), 1);
        let error = device.refuses(&carrier, day(0)).await;
        assert!(
            error.contains(&format!("{file} is refused: its length or content")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_document_larger_than_devices_read_is_refused_unread() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", &noise("large", 5 << 20), day(1));
    // The rollouts role names five megabytes (a model's chunks) as a group's wish.
    let carrier = fleet.carrier.copy();
    let releases = Forgery::of(&fleet).signed["releases"]["targets"].clone();
    let large = releases["models/digits/1.0.0/model.tflite"].clone();
    Forgery::of(&fleet)
        .version("timestamp", 3)
        .version("snapshot", 3)
        .version("rollouts", 2)
        .edit("rollouts", |signed| {
            signed["targets"]["groups/lab.json"] = large
        })
        .publish(&carrier);
    let repository = device.follows(&carrier, day(1)).await;
    carrier.asked();
    let group = "lab".parse().expect("name");
    let error = repository
        .desired(carrier.as_ref(), &group)
        .await
        .expect_err("too large");
    assert!(
        error
            .to_string()
            .contains("groups/lab.json is refused: it is larger than"),
        "{error}"
    );
    assert_eq!(carrier.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_large_target_without_a_list_is_refused() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let carrier = fleet.carrier.copy();
    let digest = edgeward_models::Digest::of(b"x");
    Forgery::of(&fleet)
        .version("timestamp", 2)
        .version("snapshot", 2)
        .version("releases", 2)
        .edit("releases", |signed| {
            signed["targets"]["models/digits/1.0.0/model.tflite"] =
                json!({ "length": 1u64 << 60, "hashes": { "sha256": digest } });
        })
        .publish(&carrier);
    let error = device.refuses(&carrier, day(0)).await;
    assert!(
        error.contains("larger than a chunk and has no list"),
        "{error}"
    );
}

#[tokio::test]
async fn a_directory_file_that_is_too_large_is_not_read() {
    let stick = tempfile::tempdir().expect("tempdir");
    std::fs::create_dir(stick.path().join("metadata")).expect("mkdir");
    let file = std::fs::File::create(stick.path().join("metadata/timestamp.json")).expect("create");
    file.set_len(1 << 40).expect("sparse");
    let source = edgeward_models::repository::DirectorySource::open(stick.path()).expect("open");
    let error = source
        .metadata(&"timestamp.json".parse().expect("name"))
        .await
        .expect_err("large");
    assert!(
        error.source.to_string().contains("larger than"),
        "{}",
        error.source
    );
}
