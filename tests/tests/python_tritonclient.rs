//! The tritonclient package, as its users have it, against the TLS door.

use edgeward_tests::{Site, binaries, device, python};

const SAMPLES: [&str; 3] = ["digits-1.0.0", "digits-int8-1.0.0", "breast-cancer-1.0.0"];

#[test]
fn tritonclient_infers_and_asks_for_health_and_metadata_over_tls() {
    let site = Site::new(|_| {});
    for sample in SAMPLES {
        site.sign(&binaries::sample(sample), &[]).expect_success();
    }
    site.carry().expect_success();
    let url = format!("localhost:{}", site.device.tls_port());
    let ca = site.device.ca_path().display().to_string();
    let packages = SAMPLES.map(|sample| binaries::sample(sample).display().to_string());
    let mut arguments = vec!["--url", &url, "--ca", &ca, "--token", device::TOKEN];
    for package in &packages {
        arguments.extend(["--package", package]);
    }
    python::run("tritonclient_checks.py", arguments).expect_success();
}
