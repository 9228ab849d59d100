//! A model of several functions, of which a request chooses one.

use serde_json::json;

use super::{expect_refusal, infer, metadata, output, serving, tensor};

#[test]
fn a_request_chooses_a_signature_and_the_metadata_says_which_there_are() {
    let (site, _) = serving(&["two"]);
    let client = &mut site.device.unix();
    let described = metadata(client, "two");
    let names = described["properties"]["signature_names"].as_str();
    assert_eq!(names, Some("negate,double"), "{described}");
    assert_eq!(described["properties"]["signature_name"], "negate");
    let signatures = described["signatures"].as_array().expect("signatures");
    assert_eq!(signatures.len(), 2);
    for signature in signatures {
        assert_eq!(
            signature["inputs"],
            json!([{"name": "x", "datatype": "FP32", "shape": [1, 4]}])
        );
        assert_eq!(signature["outputs"][0]["name"], "y");
    }

    let x = tensor("x", "FP32", &[1, 4], json!([1.0, -2.0, 0.5, 0.0]));
    for (name, expected) in [
        (None, [-1.0, 2.0, -0.5, -0.0]),
        (Some("double"), [2.0, -4.0, 1.0, 0.0]),
        (Some("negate"), [-1.0, 2.0, -0.5, -0.0]),
        (Some("double"), [2.0, -4.0, 1.0, 0.0]),
    ] {
        let mut request = json!({ "inputs": [x] });
        if let Some(name) = name {
            request["parameters"] = json!({ "signature_name": name });
        }
        let (_, data) = output(infer(client, "two", &request), "y");
        assert_eq!(data, json!(expected), "{name:?}");
    }
    let request = json!({"inputs": [x], "parameters": {"signature_name": "halve"}});
    let response = infer(client, "two", &request);
    expect_refusal(&response, 400, &["halve", "negate, double"]);
}
