//! The broker is a cache that can lose everything, at any moment.

use std::time::Duration;

use edgeward_tests::load::Load;
use edgeward_tests::relay::Relay;
use edgeward_tests::{BrokerKind, Fleet, package::known, wait};

const MODEL_BYTES: usize = 6 << 20;

#[test]
fn a_transfer_that_lost_its_broker_resumes_after_sync_without_fetching_again_what_is_there() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let relay = Relay::to(fleet.port());
    ward.use_broker_port(relay.port());
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let question = known("digits-1.0.0", 0);
    let request = question.request.clone();
    let load = Load::start(ward.unix(), "digits", request, move |a| question.check(a));

    // About four seconds for the whole transfer: it is stopped in its midst.
    relay.limit(1_500_000);
    let start = relay.bytes();
    let package = fleet
        .package("digits-1.0.0")
        .version("1.1.0")
        .padded(MODEL_BYTES, 7);
    fleet.push(package.path(), "radiology").expect_success();
    let (here, _) = wait::until("a third of the chunks", wait::PATIENCE, || {
        let cached = ward.cached_chunks();
        (cached.1 > MODEL_BYTES as u64 / 3)
            .then_some(cached)
            .ok_or_else(|| format!("{cached:?}"))
    });
    fleet.broker().kill();
    let (kept, kept_bytes) = ward.cached_chunks();
    assert!(kept >= here);
    assert!(
        kept_bytes < MODEL_BYTES as u64 * 9 / 10,
        "the broker was killed too late to prove anything"
    );
    let first = relay.bytes() - start;

    // A new broker knows nothing; nothing happens until the operator fills it again.
    fleet.broker().restart();
    let before = relay.bytes();
    wait::stays("1.0.0", Duration::from_secs(2), || {
        match ward.active("digits")?.as_deref() {
            Some("1.0.0") => Ok(()),
            other => Err(format!("{other:?} is active")),
        }
    });
    relay.limit(0);
    fleet.fleetctl(&["sync"]).expect_success();
    ward.wait_active("digits", "1.1.0");
    let second = relay.bytes() - before;
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);

    // What was on the disk did not come again: metadata, lists and the chunks in flight are the allowance.
    let missing = MODEL_BYTES as u64 - kept_bytes;
    let allowance = 600_000;
    assert!(
        second < missing + allowance,
        "{kept_bytes} bytes were kept of {MODEL_BYTES} ({first} travelled), yet {second} came after the loss"
    );
}

#[test]
fn a_device_serves_on_without_its_broker_and_takes_the_next_version_when_it_is_back() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let question = known("digits-1.0.0", 0);
    let request = question.request.clone();
    let load = Load::start(ward.unix(), "digits", request, |_| Ok(()));
    for _ in 0..3 {
        fleet.broker().kill();
        std::thread::sleep(Duration::from_millis(300));
        fleet.broker().restart();
    }
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_active("digits", "2.0.0");
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
}
