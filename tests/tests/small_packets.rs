//! A broker that passes no packet over 64 KiB, metadata of more than a mebibyte and a large model.

use edgeward_tests::forge::Forgery;
use edgeward_tests::{BrokerKind, Fleet};
use serde_json::Value;

/// With `EDGEWARD_SOAK=1` (`make soak`) two hundred.
const MODEL_MEBIBYTES: usize = 4;

/// The most memory that a process has ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("VmHWM");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

#[test]
#[allow(clippy::print_stderr)]
fn large_metadata_and_a_large_model_pass_a_broker_of_small_packets() {
    let soak = std::env::var_os("EDGEWARD_SOAK").is_some();
    let mebibytes = if soak { 200 } else { MODEL_MEBIBYTES };
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    fleet.broker().configure("max_packet_size 65536");
    fleet.broker().restart();
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");

    // A fleet with a long past: thousands of versions in the signed list of releases.
    let (repository, keys) = (fleet.home().join("repository"), fleet.home().join("keys"));
    let mut length = 0;
    let add = |signed: &mut Value| {
        let entry = signed["targets"]["models/digits/1.0.0/manifest.json"].clone();
        for number in 0..7000 {
            signed["targets"][format!("models/archive/1.0.{number}/manifest.json")] = entry.clone();
        }
        length = signed.to_string().len();
    };
    Forgery::of(&repository, &keys)
        .newer("releases")
        .edit("releases", add)
        .write();
    assert!(length > 1 << 20, "{length} bytes of metadata");

    let started = std::time::Instant::now();
    let package = fleet
        .package("digits-1.0.0")
        .version("2.0.0")
        .padded(mebibytes << 20, 9);
    fleet.push(package.path(), "radiology").expect_success();
    let pushed = started.elapsed();
    ward.wait_active("digits", "2.0.0");
    ward.answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
    let peak = peak_kib(ward.pid()) / 1024;
    eprintln!(
        "{mebibytes} MiB: pushed in {pushed:.1?}, active after {:.1?}, agent's peak {peak} MiB",
        started.elapsed()
    );
    assert!(peak < 250, "the agent took {peak} MiB for it");
}
