//! A device with less memory than models: who is not asked goes, who is asked comes back, who is pinned stays.

use std::time::{Duration, Instant};

use edgeward_tests::{Device, Site};
use serde_json::Value;

/// What a small model is taken for before it was measured.
const GUESS: u64 = 8 << 20;

fn workers(device: &Device) -> Vec<Value> {
    let report = device.edgeward(&["status", "--json"]).expect_success();
    let report: Value = serde_json::from_str(&report).expect("JSON");
    report["workers"].as_array().expect("workers").clone()
}

fn worker(device: &Device, model: &str) -> Value {
    let mut workers = workers(device).into_iter();
    let found = workers.find(|worker| worker["model"] == model);
    found.unwrap_or_else(|| panic!("no worker of {model}"))
}

fn bytes(device: &Device) -> u64 {
    let workers = workers(device);
    workers
        .iter()
        .filter_map(|w| w["memory_bytes"].as_u64())
        .sum()
}

fn is_loaded(device: &Device, model: &str) -> bool {
    worker(device, model)["unloaded"].is_null()
}

#[test]
fn models_share_a_device_that_has_not_memory_for_all_of_them() {
    let mut site = Site::new(|_| {});
    site.install(site.fleet.package("digits-1.0.0").path());
    let one = bytes(&site.device);
    site.install(site.fleet.package("breast-cancer-1.0.0").path());
    let two = bytes(&site.device);
    assert!(one > 0 && two > one, "{one} and {two} bytes");

    // From now on two have room, and a third has not.
    let budget = two.max(one + GUESS) + GUESS / 4;
    assert!(two + GUESS > budget, "{one} and {two} bytes");
    let device = &mut site.device;
    device.stop();
    device.configure(
        "\n[tflite]\n",
        &format!(
            "\n[models.digits]\npinned = true\n[models.accumulator]\nidle_unload_after_seconds = 1\n\
             [tflite]\nmemory_budget_bytes = {budget}\n"
        ),
    );
    device.start();
    site.device.wait_active("digits", "1.0.0");
    site.device.wait_active("breast-cancer", "1.0.0");
    site.install(site.fleet.package("accumulator-1.0.0").path());
    let device = &site.device;
    assert!(!is_loaded(device, "breast-cancer"));
    assert!(bytes(device) <= budget);
    // Unloaded is not gone: it is ready, and answers.
    let ready = device.unix().get("/v2/models/breast-cancer/ready");
    ready.expect("an answer").expect_ok();
    device
        .answers_as("breast-cancer", "breast-cancer-1.0.0")
        .expect("it is loaded again");
    assert!(is_loaded(device, "breast-cancer"));

    // The third is unloaded when nobody asks for it, if it did not make room before.
    let deadline = Instant::now() + Duration::from_secs(60);
    while is_loaded(device, "accumulator") {
        assert!(Instant::now() < deadline, "it stays loaded");
        std::thread::sleep(Duration::from_millis(50));
    }
    device
        .answers_as("digits", "digits-1.0.0")
        .expect("an answer");
    device
        .unix()
        .get("/v2/health/ready")
        .expect("an answer")
        .expect_ok();
    assert!(bytes(device) <= budget);
    // That of the restart gives no reason.
    let log = device.log();
    let unloads: Vec<_> = log
        .lines()
        .filter(|l| l.contains("version unloaded") && l.contains("reason="))
        .collect();
    assert!(
        unloads.iter().all(|line| !line.contains("digits")),
        "{unloads:?}"
    );
}
