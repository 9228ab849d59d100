//! A device that was off, and one that starts where nobody answers.

use edgeward_tests::{BrokerKind, Fleet};

#[test]
fn a_device_that_was_off_catches_up_from_the_broker_alone() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    ward.stop();
    // Two versions and another model pass by.
    let between = fleet.package("digits-2.0.0").version("1.5.0");
    fleet.push(between.path(), "radiology").expect_success();
    fleet.push_sample("digits-2.0.0", "radiology");
    fleet.push_sample("breast-cancer-1.0.0", "radiology");
    ward.start();
    ward.wait_active("digits", "2.0.0");
    ward.wait_active("breast-cancer", "1.0.0");
}

#[test]
fn a_device_that_reboots_offline_serves_what_it_had() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    ward.kill();
    fleet.broker().kill();
    ward.start();
    // Active versions are loaded before the doors open: the very first answer counts.
    ward.answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
    assert_eq!(
        ward.active("digits").expect("status").as_deref(),
        Some("1.0.0")
    );
}
