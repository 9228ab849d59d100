//! Versions that are not good, each in a way of its own, met by callers who never stop asking.

use edgeward_tests::load::Load;
use edgeward_tests::package::known;
use serde_json::Value;

use crate::ward::{Ward, on_driver};

/// Whatever happens, an answer is right.
fn keep_asking(ward: &Ward, device: usize) -> Load {
    let question = known("digits-1.0.0", 0);
    let request = question.request.clone();
    Load::start(ward.devices[device].unix(), "digits", request, move |a| {
        question.check(a)
    })
}

/// Pushes a version to the canary first, which must end in a halt with these words about it.
fn halts(ward: &Ward, package: &edgeward_tests::Package, words: &[&str]) -> Value {
    let waves = ["--canary", "ward-2", "--waves", "50%", "--soak", "8"];
    let said = ward.push(package, &[&waves[..], &["--json"]].concat());
    assert_eq!(said.code, Some(1), "{said}");
    let outcome: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(outcome["outcome"], "halted", "{said}");
    let devices = outcome["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 1, "only the canary moved: {said}");
    assert_eq!(devices[0]["device"], "ward-2", "{said}");
    assert_eq!(devices[0]["result"]["outcome"], "failed", "{said}");
    let reason = devices[0]["result"]["reason"].as_str().unwrap_or_default();
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason:?}\n{said}");
    }
    // It is back before the command ends, and nobody else ever left.
    assert_eq!(devices[0]["back"]["outcome"], "active", "{said}");
    assert_eq!(ward.active(), ["1.0.0"; 4]);
    outcome
}

#[test]
fn a_version_that_is_not_good_halts_by_itself_and_the_fleet_is_back_on_the_one_before() {
    let ward = Ward::new(4);
    let fleet = &ward.fleet;

    // It crashes when it has answered for a while.
    let load = keep_asking(&ward, 1);
    let crashes = [("crash", "invoke"), ("from_invoke", "400")];
    halts(
        &ward,
        &on_driver(fleet, "1.1.0", &crashes),
        &["1.1.0 failed", "crashed 1 time", "SIGSEGV"],
    );
    let tally = load.stop();
    assert!(tally.by_version.contains_key("1.1.0"), "{tally:?}");
    // The one that crashed; the version before was still at hand for the next.
    assert_eq!(tally.failed, 1, "{:?}", tally.failures);

    // It answers other than its golden vectors say: it never serves.
    let wrong = fleet
        .package("digits-2.0.0")
        .version("1.2.0")
        .with_golden_of("digits-1.0.0");
    let load = keep_asking(&ward, 1);
    halts(&ward, &wrong, &["golden vector"]);
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);

    // It becomes slow.
    let load = keep_asking(&ward, 1);
    let slow = [("slow_ms", "25"), ("from_invoke", "50")];
    halts(&ward, &on_driver(fleet, "1.3.0", &slow), &["it is slow"]);
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
    assert!(tally.by_version.contains_key("1.3.0"), "{tally:?}");

    // It fails requests without crashing.
    let load = keep_asking(&ward, 1);
    let fails = [("fail", "invoke"), ("from_invoke", "400")];
    let failing = on_driver(fleet, "1.4.0", &fails);
    halts(&ward, &failing, &["1.4.0 failed"]);
    load.stop();

    // The group still takes a good one.
    let good = fleet.package("digits-2.0.0");
    ward.push(&good, &["--waves", "50%", "--soak", "1"])
        .expect_success();
    assert_eq!(ward.active(), ["2.0.0"; 4]);
}
