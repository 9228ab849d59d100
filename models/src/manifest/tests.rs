//! Manifests as they are written and as they should not be.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn sample() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/samples/digits-1.0.0/manifest.json"
    );
    serde_json::from_slice(&std::fs::read(path).expect("sample")).expect("json")
}

fn refusal(edit: impl FnOnce(&mut Value)) -> String {
    let mut manifest = sample();
    edit(&mut manifest);
    let error =
        Manifest::parse(&serde_json::to_vec(&manifest).expect("json")).expect_err("was taken");
    std::error::Error::source(&error)
        .map_or(error.to_string(), |source| format!("{error}: {source}"))
}

#[test]
fn a_sample_survives_being_written_and_read() {
    let bytes = serde_json::to_vec(&sample()).expect("json");
    let manifest = Manifest::parse(&bytes).expect("sample");
    assert_eq!(manifest.request_bytes(), 8192);
    assert_eq!(
        Manifest::parse(&manifest.to_json()).expect("again"),
        manifest
    );
}

#[test]
fn each_wrong_field_is_named() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 15] = [
        (|m| m["format"] = json!(2), "format 2"),
        (|m| m["model"] = json!("../digits"), "model name"),
        (
            |m| m["model_file"] = json!("other.tflite"),
            "model_file other.tflite",
        ),
        (
            |m| m["golden_file"] = json!("none.json"),
            "golden_file none.json",
        ),
        (|m| m["signatures"] = json!([]), "signatures"),
        (|m| m["delegates"] = json!([]), "delegates"),
        (
            |m| m["delegates"][0]["least_share"] = json!(1.5),
            "least_share",
        ),
        (|m| m["instances"] = json!(0), "instances"),
        (|m| m["sequences"] = json!({"most": 0}), "sequences"),
        (|m| m["sequences"] = json!({"idle_seconds": 0}), "sequences"),
        (
            |m| m["signatures"][0]["inputs"][0]["shape"] = json!([0, 8]),
            "image",
        ),
        (
            |m| m["signatures"][0]["inputs"][0]["shape"] = json!([1 << 30, 1 << 30]),
            "image",
        ),
        (
            // More than 32 bits hold: it would be read as infinite.
            |m| {
                m["signatures"][0]["inputs"][0]["quantization"] =
                    json!({"scale": 1e39, "zero_point": 0})
            },
            "quantization.scale",
        ),
        (
            |m| m["signatures"][0]["outputs"][0]["name"] = json!(""),
            "output",
        ),
        (|m| m["surprise"] = json!(1), "surprise"),
    ];
    for (edit, expected) in cases {
        let text = refusal(edit);
        assert!(
            text.contains(expected),
            "{text:?} does not name {expected:?}"
        );
    }
}

#[test]
fn requests_can_run_together_only_where_every_first_dimension_is_free_and_nothing_is_a_string() {
    let of = |change: fn(&mut TensorSpec, &mut TensorSpec)| {
        let tensor = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape: vec![-1, 4],
            quantization: None,
        };
        let (mut x, mut y) = (tensor("x"), tensor("y"));
        change(&mut x, &mut y);
        let signature = Signature {
            name: "s".to_owned(),
            inputs: vec![x],
            outputs: vec![y],
        };
        signature.has_free_batch()
    };
    assert!(of(|_, _| {}));
    assert!(of(|x, _| x.shape = vec![-1]));
    assert!(!of(|x, _| x.shape = vec![1, 4]));
    assert!(!of(|x, _| x.shape = vec![4, -1]));
    assert!(!of(|_, y| y.shape = vec![1, 4]));
    assert!(!of(|_, y| y.shape = vec![]));
    assert!(!of(|x, _| x.datatype = Datatype::Bytes));
    assert!(!of(|_, y| y.datatype = Datatype::Bytes));
}

proptest! {
    #[test]
    fn any_bytes_parse_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Manifest::parse(&bytes);
    }
}
