//! A broker that restarts: without the sessions of its clients, or without anything.

use std::time::Duration;

use edgeward_tests::fleet::path;
use edgeward_tests::relay::Relay;
use edgeward_tests::{BrokerKind, Device, Fleet, wait};

fn timestamp(ward: &Device) -> u64 {
    let status = ward.status().expect("a status");
    status["timestamp_version"].as_u64().expect("a version")
}

/// Waits until the operator sees the device as it is.
fn heard(fleet: &Fleet, version: &str) {
    wait::until("the device's status on the broker", wait::PATIENCE, || {
        let status = fleet.status();
        let device = &status["devices"][0];
        let active = &device["status"]["models"][0]["active"]["version"];
        (active == version && device["verified"] == true)
            .then_some(())
            .ok_or_else(|| status.to_string())
    });
}

#[test]
fn a_broker_that_lost_its_store_changes_nothing_and_is_filled_again() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    for (sample, version) in [("digits-1.0.0", "1.0.0"), ("digits-2.0.0", "2.0.0")] {
        fleet.push_sample(sample, "radiology");
        ward.wait_active("digits", version);
    }
    let known = timestamp(&ward);
    fleet.broker().restart();
    ward.wait_refusal("digits", &["timestamp.json is not there", "fleetctl sync"]);
    // What only the device can bring back, it brings.
    heard(&fleet, "2.0.0");
    ward.answers_as("digits", "digits-2.0.0")
        .expect("an answer");
    assert_eq!(timestamp(&ward), known);
    // The same after a restart of the device, which finds nothing.
    ward.kill();
    ward.start();
    ward.answers_as("digits", "digits-2.0.0")
        .expect("an answer");
    assert_eq!(timestamp(&ward), known);

    fleet.fleetctl(&["sync"]).expect_success();
    let third = fleet.package("digits-1.0.0").version("3.0.0");
    fleet.push(third.path(), "radiology").expect_success();
    ward.wait_active("digits", "3.0.0");
    ward.answers_as("digits", "digits-1.0.0")
        .expect("an answer");
    assert!(timestamp(&ward) > known);
}

#[test]
fn a_restart_without_sessions_in_the_midst_of_a_push_is_only_a_pause() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    fleet.broker().persist();
    fleet.broker().restart();
    let mut ward = fleet.device("ward-1", "radiology");
    let relay = Relay::to(fleet.port());
    ward.use_broker_port(relay.port());
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    relay.limit(700_000);
    let package = fleet
        .package("digits-1.0.0")
        .version("1.1.0")
        .padded(2 << 20, 11);
    let push = ["push", path(package.path()), "--group", "radiology"];
    let mut broker = fleet.broker.take().expect("a broker");
    let said = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| fleet.fleetctl(&push));
        wait::until("some chunks", wait::PATIENCE, || {
            let cached = ward.cached_chunks();
            (cached.1 > 300_000)
                .then_some(())
                .ok_or_else(|| format!("{cached:?}"))
        });
        broker.stop();
        std::thread::sleep(Duration::from_millis(500));
        broker.restart();
        relay.limit(0);
        pushing.join().expect("the push")
    });
    let told = said.stderr.clone();
    // It returned because the device said that it serves.
    let table = said.expect_success();
    assert!(table.contains("ward-1  active  digits 1.1.0"), "{table}");
    assert!(
        told.contains("connecting again"),
        "the restart was not in its midst: {told}"
    );
    ward.wait_active("digits", "1.1.0");
}
