//! Time: expiry bars what is new and ends nothing; no clock, however wrong, leaves a trace.

mod common;

use std::sync::Arc;

use common::forge::Forgery;
use common::{DAY, Device, Fleet, day};
use edgeward_models::chunk::Source;
use edgeward_models::sign::Lifetimes;
use edgeward_models::verify::Update;
use jiff::Timestamp;
use serde_json::json;

fn time(text: &str) -> Timestamp {
    text.parse().expect("time")
}

#[tokio::test]
async fn a_frozen_fleet_turns_stale_and_takes_nothing_new() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let fresh = device.follows(&fleet.carrier, day(29)).await;
    assert!(!fresh.stale());
    assert_eq!(fresh.install_bar(), None);
    // Still read, still verified: only new installs are barred.
    let old = device.follows(&fleet.carrier, day(31)).await;
    assert!(old.stale());
    let bar = old.install_bar().expect("bar");
    assert!(bar.contains("31 days old and 30 are allowed"), "{bar}");
    assert!(device.current(day(31)).expect("current").stale());
}

#[tokio::test]
async fn how_long_a_site_may_hear_nothing_is_the_sites_rule_and_not_the_timestamps() {
    // The timestamp itself is valid for 30 days; an air-gapped site allows a year.
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let policy = edgeward_models::verify::Policy {
        stale_after: DAY * 365,
    };
    let source: Arc<dyn Source> = fleet.carrier.clone();
    let update = device
        .store()
        .update(source, day(200), policy)
        .await
        .expect("update");
    assert!(matches!(update, Update::Current(r) if r.install_bar().is_none()));
}

#[tokio::test]
async fn a_refresh_with_two_keys_keeps_a_quiet_fleet_fresh() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.refresh(day(40));
    assert_eq!(
        device.follows(&fleet.carrier, day(41)).await.install_bar(),
        None
    );
}

#[tokio::test]
async fn each_offline_role_bars_installs_when_it_expires_and_blocks_nothing_else() {
    let long = Lifetimes {
        root: DAY * 1000,
        targets: DAY * 1000,
        releases: DAY * 1000,
        rollouts: DAY * 1000,
        ..Lifetimes::default()
    };
    let short = DAY * 5;
    for (role, lifetimes) in [
        (
            "root",
            Lifetimes {
                root: short,
                ..long
            },
        ),
        (
            "targets",
            Lifetimes {
                targets: short,
                ..long
            },
        ),
        (
            "releases",
            Lifetimes {
                releases: short,
                ..long
            },
        ),
        (
            "rollouts",
            Lifetimes {
                rollouts: short,
                ..long
            },
        ),
    ] {
        let mut fleet = Fleet::with(lifetimes);
        let device = Device::enrolled(&fleet);
        fleet.push("digits", "1.0.0", b"model", day(0));
        fleet.wish("radiology", 1, day(0));
        assert_eq!(
            device.follows(&fleet.carrier, day(4)).await.install_bar(),
            None
        );
        let repository = device.follows(&fleet.carrier, day(6)).await;
        let bar = repository.install_bar().expect(role);
        assert!(
            bar.contains(&format!("the role {role} expired on 2026-03-06")),
            "{bar}"
        );
        assert!(!repository.stale());
        // What is there can still be read, also a wish to go back to what is installed.
        let group = "radiology".parse().expect("name");
        let desired = repository
            .desired(fleet.carrier.as_ref(), &group)
            .await
            .expect("desired");
        assert_eq!(desired.expect("wish").sequence, 1);
    }
}

#[tokio::test]
async fn a_clock_in_2099_harms_nothing_once_it_is_mended() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(0)).await;
    let repository = device
        .follows(&fleet.carrier, time("2099-01-01T00:00:00Z"))
        .await;
    assert!(repository.stale());
    assert!(repository.install_bar().expect("bar").contains("root"));
    assert_eq!(device.store().trusted_time(), day(0));
    fleet.push("digits", "1.0.0", b"model", day(1));
    let repository = device.follows(&fleet.carrier, day(1)).await;
    assert_eq!(repository.install_bar(), None);
}

#[tokio::test]
async fn a_clock_in_1970_is_overruled_by_what_was_signed() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    // The enrolment's root is the first thing that knows the time.
    let epoch = Timestamp::UNIX_EPOCH;
    assert_eq!(device.store().now(epoch), day(0));
    fleet.push("digits", "1.0.0", b"model", day(3));
    let repository = device.follows(&fleet.carrier, epoch).await;
    assert_eq!(repository.install_bar(), None);
    assert_eq!(device.store().trusted_time(), day(3));
    assert_eq!(device.store().now(epoch), day(3));
    assert_eq!(device.store().now(day(4)), day(4));
}

#[tokio::test]
async fn toughs_own_memory_of_the_clock_never_lives_on() {
    // With this file tough would refuse every update until 2099 ("stepped backward").
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let scratch = device.path().join("scratch");
    std::fs::create_dir(&scratch).expect("mkdir");
    std::fs::write(
        scratch.join("latest_known_time.json"),
        "\"2099-01-01T00:00:00Z\"",
    )
    .expect("write");
    device.follows(&fleet.carrier, day(0)).await;
    assert!(!scratch.exists());
}

#[tokio::test]
async fn the_stored_time_never_goes_back() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.refresh(day(10));
    device.follows(&fleet.carrier, day(10)).await;
    // A newer version that claims an earlier time, as a stolen timestamp key could make it.
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 3)
        .edit("timestamp", |signed| {
            signed["signed_at"] = json!("2026-03-02T00:00:00Z")
        })
        .publish(&carrier);
    device.follows(&carrier, day(10)).await;
    assert_eq!(device.store().trusted_time(), day(10));
}

#[tokio::test]
async fn a_thief_of_the_timestamp_key_cannot_make_the_offline_roles_expire() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 2)
        .edit("timestamp", |signed| {
            signed["signed_at"] = json!("2099-01-01T00:00:00Z")
        })
        .publish(&carrier);
    let repository = device.follows(&carrier, day(0)).await;
    assert_eq!(repository.install_bar(), None);
    assert!(device.store().trusted_time() < time("2027-03-02T00:00:00Z"));
    // And the next key starts again from what the root says.
    fleet.rotate(day(1));
    device.follows(&fleet.carrier, day(1)).await;
    assert_eq!(device.store().trusted_time(), day(1));
}

#[tokio::test]
async fn a_timestamp_that_does_not_say_when_it_was_signed_is_refused() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 2)
        .edit("timestamp", |signed| {
            signed.as_object_mut().expect("object").remove("signed_at");
        })
        .publish(&carrier);
    let error = device.refuses(&carrier, day(0)).await;
    assert!(error.contains("does not say when it was signed"), "{error}");
}
