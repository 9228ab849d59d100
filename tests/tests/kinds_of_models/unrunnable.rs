//! What cannot run is refused in the runtime's own words, and the version before serves on.

use std::path::Path;

use edgeward_tests::{Package, Site};
use serde_json::json;

use super::{infer, output, serving, tensor};

/// Signs a file as the next version of the model `two`, under its manifest where fleetctl would not take it alone.
/// Returns what the status says of it.
fn refusal(site: &Site, good: &Package, file: &[u8], version: &str) -> String {
    let package = good.copy(site.fleet.directory()).with_model(file);
    let package = package.version(version).edit(|manifest| {
        // Its signatures are those of the wrong file, where that has any.
        if let Ok(own) = edgeward_models::tflite_file::signatures(file) {
            manifest.signatures = own;
        }
    });
    site.sign(package.path(), &[]).expect_success();
    assert_eq!(site.carry().code, Some(1), "{version} was taken");
    let status = site.device.model_status("two").expect("a status");
    assert_eq!(status["target"], version, "{status}");
    assert_eq!(status["phase"], "refused", "{status}");
    assert_eq!(status["active"]["version"], "1.0.0", "{status}");
    status["reason"].as_str().unwrap_or_default().to_owned()
}

fn read(directory: &Path, name: &str) -> Vec<u8> {
    std::fs::read(directory.join(format!("{name}.tflite"))).expect("read a model")
}

#[test]
fn operators_that_are_not_there_and_files_that_are_none_are_refused_with_the_reason() {
    let (site, directory) = serving(&["two"]);
    let parent = site.fleet.directory();
    let good = Package::of_tflite(&directory.join("two.tflite"), "two", parent);
    let whole = read(&directory, "two");
    let noise: Vec<u8> = (0..4096u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let named = [&b"\x1c\0\0\0TFL3"[..], &noise].concat();
    let cases: [(Vec<u8>, &[&str]); 7] = [
        (
            read(&directory, "custom"),
            &[
                "uses operators that this TFLite library does not have",
                "custom op: SharpenScan",
            ],
        ),
        (
            read(&directory, "flex"),
            &["FlexErf", "Select TensorFlow op"],
        ),
        (read(&directory, "newer"), &["SOFTMAX", "version '99'"]),
        (whole[..whole.len() - 20].to_vec(), &["flatbuffer"]),
        (whole[..40].to_vec(), &["flatbuffer"]),
        (named, &["flatbuffer"]),
        (noise, &["flatbuffer"]),
    ];
    for (number, (file, words)) in cases.iter().enumerate() {
        let version = format!("2.0.{number}");
        let reason = refusal(&site, &good, file, &version);
        for word in *words {
            let lower = reason.to_lowercase();
            assert!(
                lower.contains(&word.to_lowercase()),
                "{word:?} is not in {reason:?}"
            );
        }
        // One line for each delegate at most, in words.
        assert!(reason.len() < 2000 && !reason.contains('\n'), "{reason:?}");
    }
    let client = &mut site.device.unix();
    let request = json!({"inputs": [tensor("x", "FP32", &[1, 4], json!([1.0, 2.0, 3.0, 4.0]))]});
    let (_, data) = output(infer(client, "two", &request), "y");
    assert_eq!(data, json!([-1.0, -2.0, -3.0, -4.0]));
}
