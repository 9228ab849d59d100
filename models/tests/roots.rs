//! Keys change: what a root revoked stays revoked, and what it named is found.

mod common;

use std::sync::Arc;

use common::forge::{self, Forgery};
use common::{Carrier, Device, Fleet, day};
use edgeward_models::verify::Update;
use serde_json::{Value, json};

#[tokio::test]
async fn a_device_that_slept_follows_four_roots_in_one_update() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(0)).await;
    for n in 1..=3 {
        fleet.rotate(day(n));
    }
    fleet.push("digits", "1.0.0", b"model", day(4));
    let repository = device.follows(&fleet.carrier, day(4)).await;
    assert_eq!(device.store().root_version(), 4);
    assert!(
        repository
            .target("models/digits/1.0.0/model.tflite")
            .is_some()
    );
}

#[tokio::test]
async fn a_root_once_known_is_not_forgotten_when_its_file_is_hidden() {
    // tough alone would begin again at the root that it is handed, and believe the revoked keys.
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(0)).await;
    let before = fleet.carrier.copy();
    fleet.rotate(day(1));
    device.follows(&fleet.carrier, day(1)).await;
    let error = device.refuses(&before, day(1)).await;
    assert!(
        error.contains("timestamp.json is refused: it is not signed by the keys"),
        "{error}"
    );
    assert_eq!(device.store().root_version(), 2);
    assert_eq!(
        device.current(day(1)).expect("current").timestamp_version(),
        2
    );
}

#[tokio::test]
async fn a_new_root_binds_even_if_the_rest_does_not_arrive() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(0)).await;
    let before = fleet.carrier.copy();
    fleet.rotate(day(1));
    fleet.carrier.break_at("timestamp.json");
    let error = device.refuses(&fleet.carrier, day(1)).await;
    assert!(error.contains("the link dropped"), "{error}");
    assert_eq!(device.store().root_version(), 2);
    // What was verified under the revoked keys is no longer handed out, and not taken back either.
    assert!(device.current(day(1)).is_none());
    device.refuses(&before, day(1)).await;
    fleet.carrier.mend();
    device.follows(&fleet.carrier, day(1)).await;
}

#[tokio::test]
async fn trouble_at_the_next_root_is_not_taken_for_its_absence() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(0)).await;
    fleet.push("digits", "1.0.0", b"model", day(1));
    fleet.carrier.break_at("2.root.json");
    let error = device.refuses(&fleet.carrier, day(1)).await;
    assert_eq!(error, "cannot fetch 2.root.json: the link dropped");
    fleet.carrier.mend();
    device.follows(&fleet.carrier, day(1)).await;
}

#[tokio::test]
async fn a_root_that_the_old_keys_did_not_sign_is_refused() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let mut stranger = Fleet::new();
    stranger.rotate(day(1));
    let carrier = fleet.carrier.copy();
    carrier.put("2.root.json", &stranger.file("2.root.json"));
    let error = device.refuses(&carrier, day(1)).await;
    assert!(
        error.starts_with("2.root.json is refused: it is not signed"),
        "{error}"
    );
    assert_eq!(device.store().root_version(), 1);
}

#[tokio::test]
async fn a_root_may_not_leave_out_a_version_or_repeat_one() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.rotate(day(1));
    let first: Value = serde_json::from_slice(&fleet.file("1.root.json")).expect("json");
    // Signed with the newest keys and the oldest: only the number is wrong.
    for number in [1, 3] {
        let old = Fleet::new();
        let device = Device::enrolled(&old);
        let mut root: Value = serde_json::from_slice(&old.file("1.root.json")).expect("json");
        root["signed"]["version"] = json!(number);
        old.carrier
            .put("2.root.json", &forge::sign(&old, "root", &root["signed"]));
        let error = device.refuses(&old.carrier, day(1)).await;
        assert!(error.contains("2.root.json is refused"), "{error}");
        assert_eq!(device.store().root_version(), 1);
    }
    assert_eq!(first["signed"]["version"], json!(1));
    device.follows(&fleet.carrier, day(1)).await;
}

#[tokio::test]
async fn versions_run_up_by_a_stolen_key_do_not_shut_out_its_successor() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let stolen = Arc::new(Carrier::default());
    let honest = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", u64::MAX - 1)
        .version("snapshot", u64::MAX - 1)
        .publish(&honest);
    device.follows(&honest, day(0)).await;
    assert_eq!(device.store().timestamp_version(), u64::MAX - 1);
    drop(stolen);
    // The fleet goes on: before the rotation it looks old, afterwards it is followed.
    fleet.refresh(day(1));
    let update = device
        .update(&fleet.carrier, day(1))
        .await
        .expect("no error");
    assert!(
        matches!(update, Update::Older { offered: 2, .. }),
        "{update:?}"
    );
    fleet.rotate(day(2));
    device.follows(&fleet.carrier, day(2)).await;
    assert_eq!(device.store().timestamp_version(), 3);
}

#[tokio::test]
async fn the_recovery_works_when_the_link_drops_in_the_middle_of_it() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let honest = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 1_000_000)
        .version("snapshot", 1_000_000)
        .publish(&honest);
    device.follows(&honest, day(0)).await;
    fleet.rotate(day(1));
    fleet.carrier.break_at("2.snapshot.json");
    device.refuses(&fleet.carrier, day(1)).await;
    fleet.carrier.mend();
    device.follows(&fleet.carrier, day(1)).await;
    assert_eq!(device.store().timestamp_version(), 2);
}
