//! What works: a device follows its fleet, from any carrier, and reads what it is meant to.

mod common;

use std::sync::Arc;

use common::{Device, Fleet, POLICY, day, noise};
use edgeward_models::chunk::{Source, open_chunk};
use edgeward_models::digest::Digest;
use edgeward_models::manifest::Manifest;
use edgeward_models::repository::DirectorySource;
use edgeward_models::verify::Update;

#[tokio::test]
async fn a_pushed_version_and_its_wish_reach_the_device() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    assert!(device.current(day(0)).is_none());
    assert_eq!(
        device
            .follows(&fleet.carrier, day(0))
            .await
            .timestamp_version(),
        1
    );

    fleet.stage("digits", "1.0.0", b"a small model");
    fleet.join("ct-1", &["radiology", "pilot"], day(1));
    let wish = fleet.wish("radiology", 1, day(1));
    let repository = device.follows(&fleet.carrier, day(1)).await;
    assert_eq!(repository.install_bar(), None);
    assert!(!repository.stale());

    let source = fleet.carrier.as_ref();
    let groups = repository
        .groups(source, &"ct-1".parse().expect("name"))
        .await
        .expect("groups");
    assert_eq!(
        groups,
        [
            "pilot".parse().expect("name"),
            "radiology".parse().expect("name")
        ]
    );
    let other = "ct-2".parse().expect("name");
    assert!(
        repository
            .groups(source, &other)
            .await
            .expect("groups")
            .is_empty()
    );
    let desired = repository
        .desired(source, &groups[1])
        .await
        .expect("desired");
    assert_eq!(desired, Some(wish));
    assert_eq!(
        repository
            .desired(source, &groups[0])
            .await
            .expect("desired"),
        None
    );

    let (model, version) = (
        "digits".parse().expect("name"),
        "1.0.0".parse().expect("version"),
    );
    let targets = repository.version_targets(&model, &version);
    let names: Vec<_> = targets.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "models/digits/1.0.0/manifest.json",
            "models/digits/1.0.0/model.tflite"
        ]
    );
    let manifest = repository
        .read(source, targets[0], 1 << 20)
        .await
        .expect("read");
    assert_eq!(Manifest::parse(&manifest).expect("manifest").release, 1);
    let model_file = repository
        .read(source, targets[1], 1 << 20)
        .await
        .expect("read");
    assert_eq!(model_file, b"a small model");
    let none = repository.version_targets(&model, &"9.0.0".parse().expect("version"));
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_large_model_comes_in_chunks_and_two_versions_share_what_they_share() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let one = noise("model", 5 << 20);
    let mut two = one.clone();
    two.splice(3_000_000..3_000_100, noise("change", 300));
    let first = fleet.push("digits", "1.0.0", &one, day(1));
    let second = fleet.push("digits", "2.0.0", &two, day(2));
    assert!(first.chunks.len() > 80);
    let before = fleet.carrier.chunk_count();
    fleet.publish(&second);
    assert_eq!(fleet.carrier.chunk_count(), before);
    let new: Vec<_> = second
        .chunks
        .iter()
        .filter(|c| !first.chunks.contains(c))
        .collect();
    assert!(new.len() < 10, "{} new chunks", new.len());

    let repository = device.follows(&fleet.carrier, day(2)).await;
    let source = fleet.carrier.as_ref();
    for (version, content) in [("1.0.0", &one), ("2.0.0", &two)] {
        let name = format!("models/digits/{version}/model.tflite");
        let target = repository.target(&name).expect("target");
        assert!(target.list.is_some());
        let mut whole = Vec::new();
        for chunk in repository.chunks(source, target).await.expect("chunks") {
            let bytes = source
                .chunk(&chunk.sha256)
                .await
                .expect("chunk")
                .expect("there");
            whole.extend(open_chunk(&chunk, &bytes).expect("open"));
        }
        assert_eq!(Digest::of(&whole), target.sha256);
        assert_eq!(&whole, content);
    }
}

#[tokio::test]
async fn a_directory_with_the_exported_repository_serves_as_well_as_a_broker() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", &noise("model", 300_000), day(1));
    let stick = tempfile::tempdir().expect("tempdir");
    fleet.repository.export(stick.path()).expect("export");
    let source = Arc::new(DirectorySource::open(stick.path()).expect("open"));
    let update = device
        .store()
        .update(source.clone(), day(1), POLICY)
        .await
        .expect("update");
    let Update::Current(repository) = update else {
        panic!("{update:?}");
    };
    let target = repository
        .target("models/digits/1.0.0/model.tflite")
        .expect("target");
    let bytes = repository
        .read(source.as_ref(), target, 1 << 20)
        .await
        .expect("read");
    assert_eq!(bytes, noise("model", 300_000));
    // Brought up to date in place.
    fleet.push("digits", "2.0.0", &noise("other", 300_000), day(2));
    fleet.repository.export(stick.path()).expect("export");
    let update = device
        .store()
        .update(source, day(2), POLICY)
        .await
        .expect("update");
    assert!(matches!(update, Update::Current(r) if r.timestamp_version() == 3));
}

#[tokio::test]
async fn what_was_verified_is_there_after_a_reboot_without_a_network() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"model", day(1));
    device.follows(&fleet.carrier, day(1)).await;
    let repository = device.current(day(1)).expect("current");
    assert_eq!(repository.timestamp_version(), 2);
    assert!(
        repository
            .target("models/digits/1.0.0/model.tflite")
            .is_some()
    );
}

#[tokio::test]
async fn nothing_is_fetched_twice() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"model", day(1));
    device.follows(&fleet.carrier, day(1)).await;
    fleet.carrier.asked();
    device.follows(&fleet.carrier, day(1)).await;
    assert_eq!(fleet.carrier.asked(), ["2.root.json", "timestamp.json"]);
    // Only what changed: the rollouts, not the releases.
    fleet.wish("radiology", 1, day(2));
    device.follows(&fleet.carrier, day(2)).await;
    assert_eq!(
        fleet.carrier.asked(),
        [
            "2.root.json",
            "timestamp.json",
            "3.snapshot.json",
            "2.rollouts.json"
        ]
    );
}

#[tokio::test]
async fn metadata_over_one_chunk_comes_as_chunks_of_its_own() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    for i in 0..300 {
        fleet.stage(
            "digits",
            &format!("1.0.{i}"),
            format!("model {i}").as_bytes(),
        );
    }
    let publication = fleet.commit(day(1));
    assert!(fleet.file("2.releases.json").len() > 60 * 1024);
    assert!(publication.chunks.len() > 600);
    let repository = device.follows(&fleet.carrier, day(1)).await;
    assert!(
        repository
            .target("models/digits/1.0.299/model.tflite")
            .is_some()
    );
}
