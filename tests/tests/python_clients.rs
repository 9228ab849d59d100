//! The packages that clients of other servers use, as their users have them, against both doors.

use edgeward_tests::fleet::path;
use edgeward_tests::{Package, Site, binaries, device, python};

const SAMPLES: [&str; 3] = ["digits-1.0.0", "digits-int8-1.0.0", "breast-cancer-1.0.0"];
/// Of `odd_models.py`: strings, and two signatures.
const ODD: [&str; 2] = ["words", "two"];

fn serving_samples() -> Site {
    let site = Site::new(|_| {});
    for sample in SAMPLES {
        site.sign(&binaries::sample(sample), &[]).expect_success();
    }
    let directory = site.fleet.directory().join("odd");
    python::run("odd_models.py", [path(&directory)]).expect_success();
    for model in ODD {
        let file = directory.join(format!("{model}.tflite"));
        let package = Package::of_tflite(&file, model, site.fleet.directory());
        site.sign(package.path(), &[]).expect_success();
    }
    site.carry().expect_success();
    site
}

fn ask(site: &Site, script: &str, more: &[&str]) {
    let url = format!("localhost:{}", site.device.tls_port());
    let ca = site.device.ca_path().display().to_string();
    let packages = SAMPLES.map(|sample| binaries::sample(sample).display().to_string());
    let mut arguments = vec!["--url", &url, "--ca", &ca, "--token", device::TOKEN];
    arguments.extend(more);
    for package in &packages {
        arguments.extend(["--package", package]);
    }
    python::run(script, arguments).expect_success();
}

#[test]
fn tritonclient_and_kserve_infer_and_ask_for_health_and_metadata() {
    let site = serving_samples();
    ask(&site, "tritonclient_checks.py", &[]);
    let socket = site.device.socket_path().display().to_string();
    ask(&site, "kserve_checks.py", &["--socket", &socket]);
}

#[test]
fn clients_of_grpc_and_of_tensorflow_serving_and_grpcs_own_tools_find_all_they_ask_for() {
    let site = serving_samples();
    let file = site.fleet.directory().join("both.tflite");
    python::run("two_inputs.py", [path(&file)]).expect_success();
    let both = Package::of_tflite(&file, "both", site.fleet.directory());
    site.install(both.path());
    let socket = site.device.socket_path().display().to_string();
    let local = ["--socket", &socket];
    let two_inputs = [&local[..], &["--two-inputs", "both"]].concat();
    ask(&site, "tritonclient_grpc_checks.py", &two_inputs);
    ask(&site, "kserve_grpc_checks.py", &local);
    ask(&site, "ovmsclient_checks.py", &two_inputs);
    let protos = binaries::root().join("agent/protos").display().to_string();
    let with_protos = [&local[..], &["--protos", &protos]].concat();
    ask(&site, "grpc_tools_checks.py", &with_protos);
}
