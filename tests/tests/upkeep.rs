//! What a fleet needs over the years: keys that change, certificates that end.

use std::path::Path;

use edgeward_tests::fleet::path;
use edgeward_tests::load::Load;
use edgeward_tests::package::known;
use edgeward_tests::{BrokerKind, Device, Fleet, wait};
use jiff::{SignedDuration, Timestamp};

const ROLES: [&str; 6] = [
    "root",
    "targets",
    "releases",
    "rollouts",
    "snapshot",
    "timestamp",
];

#[test]
fn devices_follow_rotated_keys_over_the_broker_and_after_a_long_absence() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let mut absent = fleet.device("ward-2", "radiology");
    ward.start();
    absent.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    absent.wait_active("digits", "1.0.0");
    absent.stop();
    fleet
        .fleetctl(&[&["key", "rotate"], &ROLES[..]].concat())
        .expect_success();
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");
    for _ in 0..3 {
        fleet
            .fleetctl(&["key", "rotate", "root", "timestamp"])
            .expect_success();
    }
    fleet.fleetctl(&["key", "renew"]).expect_success();
    let third = fleet.package("digits-1.0.0").version("3.0.0");
    fleet.push(third.path(), "radiology").expect_success();
    ward.wait_active("digits", "3.0.0");
    // Five roots later, each proven by the one before it.
    absent.start();
    absent.wait_active("digits", "3.0.0");
    absent
        .answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
}

/// A device whose certificate was made this long ago.
fn enrolled_ago(fleet: &Fleet, id: &str, days: i64) -> Device {
    let device = Device::new(id, fleet.directory());
    let file = |end: &str| fleet.directory().join(format!("{id}.{end}"));
    let (request, bundle) = (file("csr.pem"), file("bundle.json"));
    device
        .edgeward(&["enroll", "--request", path(&request)])
        .expect_success();
    let then = Timestamp::now() - SignedDuration::from_hours(24 * days);
    let enroll = [
        "device",
        "enroll",
        path(&request),
        "--id",
        id,
        "--out",
        path(&bundle),
    ];
    // In no group yet: nothing is signed with a clock that is behind.
    fleet.fleetctl_at(then, &enroll).expect_success();
    device
        .edgeward(&["enroll", "--accept", path(&bundle)])
        .expect_success();
    fleet
        .fleetctl(&["group", "add", "radiology", id])
        .expect_success();
    device
}

fn certificate(device: &Device) -> String {
    let file = Path::new("identity/certificate.pem");
    std::fs::read_to_string(device.state_directory().join(file)).expect("a certificate")
}

fn ending(warnings: &[String]) -> bool {
    warnings.iter().any(|w| w.contains("certificate ends on"))
}

#[test]
fn certificates_are_renewed_while_devices_serve_over_the_broker_and_by_file() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = enrolled_ago(&fleet, "ward-1", 310);
    let mut island = enrolled_ago(&fleet, "island-1", 310);
    island.without_fleet();
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let (old, pid) = (certificate(&ward), ward.pid());
    let key = || std::fs::read(ward.state_directory().join("identity/key.pem")).expect("a key");
    let own_key = key();

    // Everybody is told in time.
    ward.wait_warnings("the end to be in sight", ending);
    wait::until("the operator to be told", wait::PATIENCE, || {
        let said = fleet.fleetctl(&["status"]);
        let all = format!("{said}");
        let told = said
            .stdout
            .contains("WARNING: this device's certificate ends on")
            && all.contains("warning: the certificate of device island-1 ends on");
        told.then_some(()).ok_or(all)
    });
    let doctor = fleet.fleetctl(&["doctor"]);
    assert_eq!(doctor.code, Some(1), "{doctor}");
    assert!(doctor.stdout.contains("fleetctl device renew"), "{doctor}");

    let request = known("digits-1.0.0", 0).request;
    let load = Load::start(ward.unix(), "digits", request, |_| Ok(()));
    // What the daily timer runs.
    fleet.fleetctl(&["refresh"]).expect_success();
    ward.wait_warnings("the renewed certificate", |warnings| !ending(warnings));
    assert_ne!(certificate(&ward), old);
    assert!(key() == own_key, "the key is the device's for good");
    // The next connection is made with it.
    fleet.broker().restart();
    fleet.fleetctl(&["sync"]).expect_success();
    fleet.push_sample("digits-2.0.0", "radiology");
    wait::until("the second version to serve", wait::PATIENCE, || {
        let active = ward.active("digits")?;
        (active.as_deref() == Some("2.0.0"))
            .then_some(())
            .ok_or_else(|| format!("{active:?}"))
    });
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
    assert!(tally.succeeded() > 0 && ward.pid() == pid);

    // By file, to a device that no line reaches.
    let old = certificate(&island);
    let stick = fleet.export("stick");
    island.start();
    island.edgeward(&["import", path(&stick)]).expect_success();
    assert_ne!(certificate(&island), old);
    island.wait_warnings("the renewed certificate", |warnings| !ending(warnings));
    let log = island
        .edgeward(&["audit", "show", "--event", "certificate-renewed"])
        .expect_success();
    assert_eq!(log.lines().count(), 1, "{log}");
    island.edgeward(&["audit", "verify"]).expect_success();
    fleet.fleetctl(&["doctor"]).expect_success();
}
