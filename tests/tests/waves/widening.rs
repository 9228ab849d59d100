//! Waves that widen, wait and end.

use std::time::{Duration, Instant};

use edgeward_tests::wait;
use serde_json::Value;

use crate::ward::{GROUP, Ward};

#[test]
fn a_good_version_reaches_everybody_wave_by_wave_and_by_itself() {
    let ward = Ward::new(4);
    let started = Instant::now();
    let good = ward.fleet.package("digits-2.0.0");
    let said = ward.push(&good, &["--waves", "1,50%", "--soak", "2", "--json"]);
    assert_eq!(said.code, Some(0), "{said}");
    let outcome: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(outcome["outcome"], "complete", "{said}");
    let devices = outcome["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 4);
    for device in devices {
        assert_eq!(device["result"]["outcome"], "healthy", "{said}");
    }
    assert_eq!(ward.active(), ["2.0.0"; 4]);
    // Each wave was watched for its soak, one after the other.
    assert!(started.elapsed() > Duration::from_secs(3 * 2));
    let wave = |words: &str| {
        let found = said.stderr.find(words);
        found.unwrap_or_else(|| panic!("no {words:?} in {said}"))
    };
    let first = wave("wave 1 of 3: 1 of 1 devices healthy");
    let second = wave("wave 2 of 3: 2 of 2 devices healthy");
    assert!(first < second && second < wave("complete: 4 devices healthy"));
    let status = ward.devices[0].model_status("digits").expect("a status");
    assert_eq!(status["soak"], "passed");
    let left = ward.fleet.fleetctl(&["rollout", "list", "--json"]);
    assert!(left.expect_success().contains("\"rollouts\": []"));
}

#[test]
fn a_new_version_waits_for_the_window_of_its_device_and_says_so() {
    let mut ward = Ward::new(1);
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let other_day = today.date().saturating_add(jiff::ToSpan::days(3));
    let other_day = other_day.strftime("%a").to_string().to_lowercase();
    let closed =
        format!("[maintenance]\nwindows = [\"{other_day} 00:00-01:00\"]\ntime_zone = \"UTC0\"\n");
    let device = &mut ward.devices[0];
    device.stop();
    device.configure("[log]", &format!("{closed}\n[log]"));
    device.start();
    let good = ward.fleet.package("digits-2.0.0");
    ward.push(&good, &["--no-wait"]).expect_success();
    wait::until("it to wait for its window", wait::PATIENCE, || {
        let status = ward.devices[0].model_status("digits")?;
        let reason = status["reason"].as_str().unwrap_or_default();
        (status["phase"] == "waiting" && reason.contains("waiting for window"))
            .then_some(())
            .ok_or_else(|| status.to_string())
    });
    assert_eq!(ward.active(), ["1.0.0"]);
    let device = &mut ward.devices[0];
    device.stop();
    device.configure(&format!("{other_day} 00:00-01:00"), "mon-sun 00:00-24:00");
    device.start();
    ward.wait_all("2.0.0");
}

/// What matters is signed and retained, so it does not matter who is there to see it.
#[test]
fn a_restart_in_the_soak_goes_on_with_it_and_so_does_another_overseer() {
    let mut ward = Ward::new(2);
    let rollout = |verb: &str, more: &[&str]| {
        let verb = ["rollout", verb, "digits", "--group", GROUP];
        ward.fleet.fleetctl(&[&verb, more].concat())
    };
    let good = ward.fleet.package("digits-2.0.0");
    let waves = [
        "--canary",
        "ward-1",
        "--approve",
        "--soak",
        "8",
        "--no-wait",
    ];
    ward.push(&good, &waves).expect_success();
    ward.devices[0].wait_active("digits", "2.0.0");
    ward.wait_soak(0, "watching");
    let early = rollout("advance", &[]);
    assert_eq!(early.code, Some(2), "{early}");
    assert!(early.stderr.contains("no outcome yet"), "{early}");

    // Whatever it has watched by now is not watched again, and not forgotten: it is neither begun anew nor over.
    let pointer = ward.devices[0]
        .state_directory()
        .join("active/digits/pointer");
    let watched = || {
        // Absent for an instant while it is replaced.
        let text = std::fs::read_to_string(&pointer).ok()?;
        let pointers: Value = serde_json::from_str(text.split_once('\n')?.1).expect("JSON");
        pointers["soak"]["watched_seconds"].as_u64()
    };
    wait::until("the watch to be written down", wait::PATIENCE, || {
        (watched() >= Some(4))
            .then_some(())
            .ok_or_else(|| format!("{:?}", watched()))
    });
    ward.devices[0].kill();
    let before = watched();
    assert!(before.is_some(), "killed too late to prove anything");
    ward.devices[0].start();
    let status = ward.devices[0].model_status("digits").expect("a status");
    assert_eq!(status["active"]["version"], "2.0.0");
    assert_eq!(status["soak"], "watching", "{status}");
    assert!(watched() >= before);
    ward.wait_soak(0, "passed");

    let rollout = |verb: &str, more: &[&str]| {
        let verb = ["rollout", verb, "digits", "--group", GROUP];
        ward.fleet.fleetctl(&[&verb, more].concat())
    };
    assert_eq!(ward.active(), ["2.0.0", "1.0.0"], "nobody has approved");
    wait::until("its word to reach the operator", wait::PATIENCE, || {
        let said = rollout("advance", &[]);
        (said.code == Some(0))
            .then_some(())
            .ok_or_else(|| said.to_string())
    });
    rollout("watch", &[]).expect_success();
    assert_eq!(ward.active(), ["2.0.0"; 2]);
}
