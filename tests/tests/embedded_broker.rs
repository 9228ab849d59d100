//! The main round once more, with the broker that fleetctl brings.

use edgeward_tests::{BrokerKind, Fleet};

#[test]
fn push_second_version_and_rollback_work_with_the_embedded_broker() {
    let fleet = Fleet::with(BrokerKind::Embedded);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");
    fleet.rollback("digits", "radiology");
    ward.wait_active("digits", "1.0.0");
    ward.answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
}

#[test]
fn sync_fills_an_embedded_broker_that_was_started_anew() {
    let mut fleet = Fleet::with(BrokerKind::Embedded);
    let mut ward = fleet.device("ward-1", "radiology");
    // A version of several chunks, pushed while the device is off.
    let package = fleet.package("digits-1.0.0").padded(300_000, 1);
    fleet.push(package.path(), "radiology").expect_success();
    fleet.broker().restart();
    fleet.fleetctl(&["sync"]).expect_success();
    ward.start();
    ward.wait_active("digits", "1.0.0");
}
