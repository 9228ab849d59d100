//! A device whose battery is empty boots in 1970, one that was set by a wrong hand in 2099. Neither costs what
//! serves, nor anything that lasts beyond the mending of the clock.

use edgeward_tests::fleet::path;
use edgeward_tests::{BrokerKind, Device, Fleet, wait};
use jiff::Timestamp;

fn moment(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// Checks that the device really lives in another year.
fn lives_in(device: &Device, year: &str) {
    let at = device.status().expect("a status")["at"]
        .as_i64()
        .expect("seconds");
    let shown = Timestamp::from_second(at).expect("a time").to_string();
    assert!(shown.starts_with(year), "{shown} is not in {year}");
}

fn answers(device: &Device, sample: &str) {
    device
        .answers_as("digits", sample)
        .expect("the known answer");
}

#[test]
fn a_boot_in_1970_still_connects_and_takes_versions() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.set_clock(moment("1970-01-01T00:10:00Z"));
    ward.start();
    lives_in(&ward, "1970");
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    answers(&ward, "digits-1.0.0");
    // Also with what it trusts already, and from a directory.
    ward.kill();
    ward.start();
    answers(&ward, "digits-1.0.0");
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");
    let said = ward.edgeward(&["import", path(&fleet.export("stick"))]);
    assert_eq!(said.code, Some(0), "{said}");
    let status = ward.status().expect("a status");
    assert_eq!(status["stale"], false, "{status}");
    // Time goes on for it when somebody sets the clock.
    ward.stop();
    ward.mend_clock();
    ward.start();
    fleet.push_sample("breast-cancer-1.0.0", "radiology");
    ward.wait_active("breast-cancer", "1.0.0");
}

#[test]
fn a_boot_in_2099_takes_nothing_new_and_leaves_no_trace_once_the_clock_is_mended() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    ward.stop();
    ward.set_clock(moment("2099-06-01T00:00:00Z"));
    ward.start();
    lives_in(&ward, "2099");
    answers(&ward, "digits-1.0.0");
    fleet.push_sample("digits-2.0.0", "radiology");
    let stick = fleet.export("stick");
    let said = ward.edgeward(&["import", path(&stick)]).expect_failure();
    assert!(
        said.contains("expired") || said.contains("days old"),
        "{said}"
    );
    let status = ward.status().expect("a status");
    assert_eq!(status["stale"], true, "{status}");
    answers(&ward, "digits-1.0.0");
    ward.stop();
    ward.mend_clock();
    ward.start();
    ward.wait_active("digits", "2.0.0");
    answers(&ward, "digits-2.0.0");
    wait::until("the device to be up to date again", wait::PATIENCE, || {
        let status = ward.status()?;
        (status["stale"] == false)
            .then_some(())
            .ok_or_else(|| status.to_string())
    });
}
