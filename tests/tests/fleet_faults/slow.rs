//! A broker that is slow beyond use, and a person with a stick.

use std::time::{Duration, Instant};

use edgeward_tests::fleet::path;
use edgeward_tests::relay::Relay;
use edgeward_tests::{BrokerKind, Fleet, wait};

/// The broker's way would take a quarter of an hour.
const MODEL_BYTES: usize = 2 << 20;
const BYTES_PER_SECOND: u64 = 2_000;

#[test]
fn a_person_with_a_stick_does_not_wait_for_a_slow_broker() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let relay = Relay::to(fleet.port());
    ward.use_broker_port(relay.port());
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let package = fleet
        .package("digits-2.0.0")
        .version("2.0.0")
        .padded(MODEL_BYTES, 3);
    relay.limit(BYTES_PER_SECOND);
    fleet.push(package.path(), "radiology").expect_success();
    let stick = fleet.export("stick");
    // It is at it, or still looking.
    let active = ward.active("digits").expect("a status");
    assert_eq!(active.as_deref(), Some("1.0.0"));
    let started = Instant::now();
    let imported = std::thread::scope(|scope| {
        let import = scope.spawn(|| ward.edgeward(&["import", path(&stick)]));
        while !import.is_finished() {
            if started.elapsed() > wait::PATIENCE {
                // So that the failure is one, and no hang.
                relay.limit(0);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        import.join().expect("the import")
    });
    let said = imported.expect_success();
    assert!(said.contains("digits 2.0.0 is active"), "{said}");
    assert!(
        started.elapsed() < wait::PATIENCE,
        "it waited for the broker"
    );
    ward.answers_as("digits", "digits-2.0.0")
        .expect("the known answer");
}
