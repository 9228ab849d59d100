//! Free dimensions that a model takes only at some sizes, and outputs whose shape is known when they are computed.

use edgeward_tests::{Package, python};
use serde_json::json;

use super::{expect_refusal, infer, metadata, output, serving, tensor};

/// One published model cannot be allocated at the shape that its file gives, and short sounds end a process that
/// runs it. Without golden vectors and without an edited manifest it is proven and answers at any length of sound.
#[test]
fn a_model_that_no_placeholder_shape_fits_is_served_as_it_comes() {
    let (site, _) = serving(&[]);
    let file = python::public_model("melspectrogram");
    let package = Package::of_tflite(&file, "spectrogram", site.fleet.directory());
    site.install(package.path());
    let active = site.active("spectrogram");
    assert_eq!(active["delegate"], "xnnpack", "{active}");
    assert_eq!(active["refused_delegates"], json!([]), "{active}");

    let client = &mut site.device.unix();
    let described = metadata(client, "spectrogram");
    assert_eq!(described["inputs"][0]["shape"], json!([-1, -1]));
    assert_eq!(described["outputs"][0]["shape"], json!([-1, 1, -1, 32]));
    let input = described["inputs"][0]["name"].as_str().expect("a name");
    let output_name = described["outputs"][0]["name"].as_str().expect("a name");
    let sound = |samples: usize| {
        let data = json!(vec![0.25; samples]);
        json!({"inputs": [tensor(input, "FP32", &[1, samples], data)]})
    };
    for (samples, frames) in [(1280, 5), (17_920, 109), (12_480, 75), (1280, 5)] {
        let response = infer(client, "spectrogram", &sound(samples));
        let (shape, data) = output(response, output_name);
        assert_eq!(shape, json!([1, 1, frames, 32]), "{samples} samples");
        assert_eq!(data.as_array().map(Vec::len), Some(frames * 32));
    }
    // What the model cannot take is the caller's mistake, and costs nobody anything.
    for samples in [1, 2, 256, 400, 511] {
        let response = infer(client, "spectrogram", &sound(samples));
        expect_refusal(&response, 400, &["does not run with", input]);
    }
    let response = infer(client, "spectrogram", &sound(70_000));
    expect_refusal(&response, 413, &["spectrogram", "262144"]);
    infer(client, "spectrogram", &sound(1280)).expect_ok();
    let metrics = client
        .get("/metrics")
        .expect("an answer")
        .expect_ok()
        .text();
    let crashes = |line: &&str| line.starts_with("edgeward_worker_crashes_total{");
    let crashes: Vec<&str> = metrics.lines().filter(crashes).collect();
    assert!(
        crashes.len() == 1 && crashes[0].ends_with(" 0"),
        "{metrics}"
    );
    // Nor does it speak against the version while that is watched.
    let failed = |line: &str| line.contains("outcome=\"failed\"") && !line.ends_with(" 0");
    assert!(!metrics.lines().any(failed), "{metrics}");
}

#[test]
fn outputs_have_the_shape_that_their_values_gave_them() {
    let (site, _) = serving(&["reshaped", "found"]);
    let client = &mut site.device.unix();

    let described = metadata(client, "found");
    assert_eq!(described["outputs"][0]["shape"], json!([-1, 1]));
    for (flags, places) in [
        (json!([false, true, true]), json!([1, 2])),
        (json!([false, false]), json!([])),
        (json!([true]), json!([0])),
    ] {
        let count = flags.as_array().map_or(0, Vec::len);
        let request = json!({"inputs": [tensor("flags", "BOOL", &[count], flags)]});
        let (shape, data) = output(infer(client, "found", &request), "places");
        let found = places.as_array().map_or(0, Vec::len);
        assert_eq!(shape, json!([found, 1]));
        assert_eq!(data, places);
    }

    let values = json!([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for shape in [
        json!([2, 3]),
        json!([6]),
        json!([1, 2, 1, 3]),
        json!([3, -1]),
    ] {
        let rank = shape.as_array().map_or(0, Vec::len);
        let request = json!({"inputs": [
            tensor("x", "FP32", &[6], values.clone()),
            tensor("shape", "INT32", &[rank], shape.clone()),
        ]});
        let (answered, data) = output(infer(client, "reshaped", &request), "y");
        let wanted = if shape == json!([3, -1]) {
            json!([3, 2])
        } else {
            shape
        };
        assert_eq!(answered, wanted);
        assert_eq!(data, values);
    }
    let request = json!({"inputs": [
        tensor("x", "FP32", &[6], values),
        tensor("shape", "INT32", &[2], json!([4, 4])),
    ]});
    let response = infer(client, "reshaped", &request);
    expect_refusal(&response, 400, &["reshaped"]);
}
