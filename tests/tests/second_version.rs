//! A new version takes over, and the old one comes back, while a client keeps asking.

use edgeward_tests::load::{Load, Tally};
use edgeward_tests::{BrokerKind, Device, Fleet, package::known};

/// A client in a tight loop over the Unix socket. Whatever version answers, its answer must be that version's.
fn keep_asking(device: &Device) -> Load {
    let (one, two) = (known("digits-1.0.0", 0), known("digits-2.0.0", 0));
    let request = one.request.clone();
    Load::start(device.unix(), "digits", request.clone(), move |answer| {
        match answer["model_version"].as_str() {
            Some("1.0.0") => one.check(answer),
            Some("2.0.0") if two.request == request => two.check(answer),
            Some("2.0.0") => Ok(()),
            other => Err(format!("the answer says it is from version {other:?}")),
        }
    })
}

fn assert_none_failed(tally: &Tally) {
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
    for version in ["1.0.0", "2.0.0"] {
        let answers = tally.by_version.get(version).copied().unwrap_or(0);
        assert!(answers > 0, "no answer of {version}: {tally:?}");
    }
}

#[test]
fn no_request_fails_while_a_version_takes_over_or_is_rolled_back() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");

    let load = keep_asking(&ward);
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");
    assert_none_failed(&load.stop());

    let load = keep_asking(&ward);
    fleet.rollback("digits", "radiology");
    ward.wait_active("digits", "1.0.0");
    assert_none_failed(&load.stop());
}

#[test]
fn a_version_that_fails_its_golden_vectors_never_serves() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    // The second model with the answers of the first.
    let wrong = fleet
        .package("digits-2.0.0")
        .version("3.0.0")
        .with_golden_of("digits-1.0.0");
    fleet.push(wrong.path(), "radiology").expect_success();
    ward.wait_refusal("digits", &["3.0.0", "golden"]);
    ward.answers_as("digits", "digits-1.0.0")
        .expect("the answer of 1.0.0");
    assert_eq!(
        ward.active("digits").expect("status").as_deref(),
        Some("1.0.0")
    );
}
