//! Golden vectors as cases, generated inputs, and what counts as the same answer.

use super::*;
use edgeward_models::manifest::Tolerance;

fn sample(name: &str) -> (Manifest, GoldenVectors) {
    let directory = format!("{}/../models/samples/{name}", env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read(format!("{directory}/{file}")).expect("sample file");
    (
        Manifest::parse(&read("manifest.json")).expect("manifest"),
        serde_json::from_slice(&read("golden.json")).expect("golden"),
    )
}

fn expect(datatype: Datatype, values: &[f64]) -> Expected {
    Expected {
        output: 0,
        name: "y".to_owned(),
        datatype,
        shape: vec![values.len() as i64],
        values: Values::Numbers(values.to_vec()),
    }
}

fn encode(datatype: Datatype, values: &[f64]) -> Result<Vec<u8>, String> {
    Values::Numbers(values.to_vec()).to_bytes(datatype)
}

fn try_compare(expected: &Expected, answer: &[f64], tolerance: Tolerance) -> Result<(), String> {
    let bytes = encode(expected.datatype, answer).expect("encode");
    compare(expected, &[answer.len() as i64], &bytes, tolerance)
}

#[test]
fn every_sample_has_golden_vectors_that_fit_its_manifest() {
    for name in [
        "digits-1.0.0",
        "digits-int8-1.0.0",
        "breast-cancer-1.0.0",
        "accumulator-1.0.0",
    ] {
        let (manifest, vectors) = sample(name);
        let cases = cases(&manifest, &vectors).expect(name);
        assert_eq!(cases.len(), vectors.vectors.len());
        let (case, expected) = &cases[0];
        assert_eq!(case.inputs.len(), manifest.signatures[0].inputs.len());
        assert_eq!(expected.len(), 1);
    }
}

#[test]
fn a_value_that_its_datatype_cannot_hold_is_refused_with_vector_and_tensor_named() {
    let (manifest, mut vectors) = sample("digits-int8-1.0.0");
    let image = vectors.vectors[1].inputs.get_mut("image").expect("image");
    image.data[3] = 0.5;
    let error = cases(&manifest, &vectors).expect_err("half a step");
    assert!(
        error.starts_with("golden vector 2: input \"image\": 0.5"),
        "{error}"
    );
    let none = GoldenVectors { vectors: vec![] };
    assert!(cases(&manifest, &none).is_err());
}

#[test]
fn integers_outside_their_type_and_halves_are_refused() {
    for (datatype, value) in [
        (Datatype::Int8, 128.0),
        (Datatype::Uint8, -1.0),
        (Datatype::Int32, 0.5),
        (Datatype::Bool, 2.0),
        (Datatype::Uint16, f64::NAN),
    ] {
        assert!(encode(datatype, &[value]).is_err(), "{datatype:?} {value}");
    }
}

#[test]
fn float_tolerance_grows_with_the_largest_expected_value_but_not_below_one() {
    let tolerance = Tolerance {
        float: 0.01,
        integer_steps: 0,
    };
    let small = expect(Datatype::Fp32, &[0.5, 0.0]);
    assert!(try_compare(&small, &[0.5, 0.0099], tolerance).is_ok());
    let error = try_compare(&small, &[0.5, 0.02], tolerance).expect_err("too far");
    assert!(error.contains("element 1"), "{error}");
    let large = expect(Datatype::Fp64, &[-1000.0, 0.0]);
    assert!(try_compare(&large, &[-1000.0, 9.0], tolerance).is_ok());
    assert!(try_compare(&large, &[-1000.0, 11.0], tolerance).is_err());
}

#[test]
fn integer_steps_are_exact_and_booleans_must_be_equal() {
    let one = Tolerance {
        float: 1e9,
        integer_steps: 1,
    };
    let bytes = expect(Datatype::Int8, &[-128.0, 127.0]);
    assert!(try_compare(&bytes, &[-127.0, 126.0], one).is_ok());
    assert!(try_compare(&bytes, &[-126.0, 127.0], one).is_err());
    let flags = expect(Datatype::Bool, &[0.0, 1.0]);
    assert!(try_compare(&flags, &[0.0, 1.0], one).is_ok());
    assert!(try_compare(&flags, &[1.0, 1.0], one).is_err());
}

#[test]
fn a_nan_is_right_only_where_one_is_expected() {
    let loose = Tolerance {
        float: 1e300,
        integer_steps: 0,
    };
    let plain = expect(Datatype::Fp32, &[1.0]);
    assert!(try_compare(&plain, &[f64::NAN], loose).is_err());
    assert!(try_compare(&plain, &[f64::INFINITY], loose).is_err());
    let nan = expect(Datatype::Fp32, &[f64::NAN]);
    assert!(try_compare(&nan, &[f64::NAN], loose).is_ok());
    assert!(try_compare(&nan, &[0.0], loose).is_err());
}

#[test]
fn another_shape_or_a_short_answer_is_wrong() {
    let expected = expect(Datatype::Fp32, &[1.0, 2.0]);
    let bytes = encode(Datatype::Fp32, &[1.0, 2.0]).expect("encode");
    let exact = Tolerance::default();
    assert!(compare(&expected, &[2], &bytes, exact).is_ok());
    assert!(compare(&expected, &[1, 2], &bytes, exact).is_err());
    assert!(compare(&expected, &[2], &bytes[..4], exact).is_err());
}

#[test]
fn strings_are_right_when_they_are_equal_to_the_last_byte() {
    let strings = |all: &[&str]| {
        let all = all.iter().map(|s| s.as_bytes().to_vec());
        Values::Strings(all.collect())
    };
    let expected = Expected {
        values: strings(&["yes", ""]),
        ..expect(Datatype::Bytes, &[0.0, 0.0])
    };
    let answered = |all: &[&str], shape: i64| {
        let bytes = strings(all).to_bytes(Datatype::Bytes).expect("bytes");
        compare(&expected, &[shape], &bytes, Tolerance::default())
    };
    assert_eq!(answered(&["yes", ""], 2), Ok(()));
    assert!(answered(&["yes"], 1).is_err());
    let error = answered(&["yes", " "], 2).expect_err("a space");
    assert!(error.contains("element 1"), "{error}");
    assert!(compare(&expected, &[2], b"\x09\0\0\0yes", Tolerance::default()).is_err());
}

fn with_inputs(inputs: serde_json::Value) -> Manifest {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../models/samples/digits-int8-1.0.0/manifest.json"
    );
    let bytes = std::fs::read(path).expect("sample");
    let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    manifest["signatures"][0]["inputs"] = inputs;
    Manifest::parse(&serde_json::to_vec(&manifest).expect("JSON")).expect("a manifest")
}

#[test]
fn generated_inputs_are_the_same_every_time_and_fill_their_tensors() {
    let manifest = with_inputs(serde_json::json!([
        {"name": "image", "datatype": "INT8", "shape": [1, 64]},
        {"name": "words", "datatype": "BYTES", "shape": [3]},
    ]));
    let shapes = candidates(&manifest, &manifest.signatures[0]);
    assert_eq!(shapes, [[vec![1, 64], vec![3]]]);
    let cases = generated(&manifest, 0, &shapes[0]).expect("generate");
    assert_eq!(
        cases,
        generated(&manifest, 0, &shapes[0]).expect("generate")
    );
    assert_eq!(cases.len(), 3);
    assert!(cases[0].inputs[0].bytes.iter().all(|&b| b == 0));
    assert_eq!(cases[0].inputs[1].bytes, [0; 12]);
    assert_eq!(cases[1].inputs[0].bytes.len(), 64);
    assert_ne!(cases[1].inputs, cases[2].inputs);
    for case in &cases {
        assert_eq!(crate::strings::check(&case.inputs[1].bytes, &[3]), Ok(()));
    }
}

#[test]
fn free_dimensions_are_tried_from_small_to_large_and_never_beyond_a_request() {
    let mut manifest = with_inputs(serde_json::json!([
        {"name": "sound", "datatype": "FP32", "shape": [-1, -1]},
    ]));
    manifest.max_request_bytes = 256 << 10;
    let tried = candidates(&manifest, &manifest.signatures[0]);
    let tried: Vec<_> = tried.iter().map(|shapes| shapes[0].clone()).collect();
    assert_eq!(tried[..3], [[1, 1], [1, 16], [16, 16]]);
    assert!(tried.contains(&vec![1, 16384]), "{tried:?}");
    let largest = tried.iter().map(|shape| shape[0] * shape[1] * 4).max();
    assert_eq!(largest, Some(256 << 10), "{tried:?}");
}
