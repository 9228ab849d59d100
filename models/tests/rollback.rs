//! Nothing ever goes back: replays, role by role rollbacks, and one version with two contents.

mod common;

use common::forge::Forgery;
use common::{Device, Fleet, day};
use edgeward_models::verify::Update;
use serde_json::{Value, json};

/// A fleet with a past: timestamp 4, snapshot 4, releases 3, rollouts 2.
fn with_a_past() -> Fleet {
    let mut fleet = Fleet::new();
    fleet.push("digits", "1.0.0", b"one", day(1));
    fleet.push("digits", "2.0.0", b"two", day(2));
    fleet.wish("radiology", 1, day(3));
    fleet
}

#[tokio::test]
async fn a_replay_of_the_whole_older_repository_is_a_friendly_no_op() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"one", day(1));
    let old = fleet.carrier.copy();
    fleet.push("digits", "2.0.0", b"two", day(2));
    device.follows(&fleet.carrier, day(2)).await;
    let update = device.update(&old, day(2)).await.expect("no error");
    assert!(
        matches!(
            update,
            Update::Older {
                offered: 2,
                known: 3
            }
        ),
        "{update:?}"
    );
    assert_eq!(
        device.current(day(2)).expect("current").timestamp_version(),
        3
    );
}

#[tokio::test]
async fn an_older_repository_that_nobody_signed_is_no_friendly_no_op() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"one", day(1));
    device.follows(&fleet.carrier, day(1)).await;
    let stranger = Fleet::new();
    let error = device.refuses(&stranger.carrier, day(1)).await;
    assert!(
        error.starts_with("timestamp.json is refused: it is not signed by the keys"),
        "{error}"
    );
}

/// Takes one role back under a fresh timestamp, as a thief of the online keys could.
async fn taken_back(role: &'static str, to: u64) -> String {
    let fleet = with_a_past();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(3)).await;
    let carrier = fleet.carrier.copy();
    let old: Value = serde_json::from_slice(&old_file(role, to)).expect("json");
    Forgery::of(&fleet)
        .version("timestamp", 5)
        .version("snapshot", 5)
        .edit(role, |signed| {
            if role != "snapshot" {
                *signed = old["signed"].clone();
            }
            signed["version"] = json!(to);
        })
        .publish(&carrier);
    device.refuses(&carrier, day(3)).await
}

/// An older file of a role. (It need not be the very one: only the version counts.)
fn old_file(role: &str, version: u64) -> Vec<u8> {
    let fleet = with_a_past();
    let newest = Forgery::of(&fleet);
    let mut signed = newest.signed[role].clone();
    signed["version"] = json!(version);
    serde_json::to_vec(&json!({ "signed": signed, "signatures": [] })).expect("json")
}

#[tokio::test]
async fn no_single_role_can_be_taken_back() {
    for (role, to) in [("snapshot", 3), ("releases", 2), ("rollouts", 1)] {
        let error = taken_back(role, to).await;
        assert!(error.contains("already trusts"), "{role}: {error}");
        assert!(error.contains(role), "{role}: {error}");
    }
}

#[tokio::test]
async fn the_top_level_targets_cannot_be_taken_back() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    // Every role renewed, targets 2.
    let keys = edgeward_models::sign::KeyRing::open(&fleet.key_directory).expect("keys");
    let renewed = fleet
        .repository
        .rotate(&fleet.keys, &keys, day(1))
        .expect("rotate");
    fleet.publish(&renewed);
    device.follows(&fleet.carrier, day(1)).await;
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 3)
        .version("snapshot", 3)
        .version("targets", 1)
        .publish(&carrier);
    let error = device.refuses(&carrier, day(1)).await;
    assert!(
        error.contains("targets") && error.contains("already trusts version 2"),
        "{error}"
    );
}

#[tokio::test]
async fn a_role_may_not_be_dropped_from_the_snapshot() {
    let fleet = with_a_past();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(3)).await;
    let carrier = fleet.carrier.copy();
    let mut forgery = Forgery::of(&fleet)
        .version("timestamp", 5)
        .version("snapshot", 5)
        .edit("snapshot", |signed| {
            signed["meta"]
                .as_object_mut()
                .expect("meta")
                .remove("rollouts.json");
        });
    forgery.link("timestamp", "snapshot");
    forgery.publish_unlinked(&carrier);
    let error = device.refuses(&carrier, day(3)).await;
    assert!(error.contains("no longer lists rollouts.json"), "{error}");
}

#[tokio::test]
async fn an_equal_version_with_other_bytes_is_refused() {
    let fleet = with_a_past();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(3)).await;

    // The timestamp itself.
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .edit("timestamp", |signed| {
            signed["expires"] = json!("2027-01-01T00:00:00Z")
        })
        .publish(&carrier);
    let error = device.refuses(&carrier, day(3)).await;
    assert!(
        error.contains("version 4 of timestamp.json is refused"),
        "{error}"
    );
    assert!(
        error.contains("another content under the same version"),
        "{error}"
    );

    // A role below a newer timestamp.
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 5)
        .version("snapshot", 5)
        .edit("releases", |signed| signed["targets"] = json!({}))
        .publish(&carrier);
    let error = device.refuses(&carrier, day(3)).await;
    assert!(
        error.contains("version 3 of releases.json is refused"),
        "{error}"
    );
}

#[tokio::test]
async fn the_memory_holds_when_the_kept_copies_are_damaged() {
    // tough forgets what it knew when its files do not parse; our memory does not lie in them.
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"one", day(1));
    let old = fleet.carrier.copy();
    fleet.push("digits", "2.0.0", b"two", day(2));
    device.follows(&fleet.carrier, day(2)).await;
    for damage in [&b""[..], &[0; 500], b"{}"] {
        for entry in std::fs::read_dir(device.path().join("metadata")).expect("read_dir") {
            std::fs::write(entry.expect("entry").path(), damage).expect("damage");
        }
        let update = device.update(&old, day(2)).await.expect("no error");
        assert!(
            matches!(
                update,
                Update::Older {
                    offered: 2,
                    known: 3
                }
            ),
            "{update:?}"
        );
        let error = device
            .store()
            .current(day(2), common::POLICY)
            .expect_err("damaged");
        assert!(
            error
                .to_string()
                .contains("the next update fetches it again"),
            "{error}"
        );
        // And so it does.
        device.follows(&fleet.carrier, day(2)).await;
        assert!(device.current(day(2)).is_some());
    }
}
