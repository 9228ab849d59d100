//! Requests and answers whose tensors travel in different forms: as JSON and as bytes behind it.

use edgeward_tests::fleet::path;
use edgeward_tests::http::{Client, Response};
use edgeward_tests::{Package, Site, python};
use serde_json::{Value, json};

const X: [f32; 3] = [1.5, -2.0, 0.25];
const Y: [f32; 3] = [4.0, 0.5, f32::NAN];

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn tensor(name: &str, values: &[f32], binary: bool) -> Value {
    let mut tensor = json!({"name": name, "datatype": "FP32", "shape": [1, 3]});
    if binary {
        tensor["parameters"] = json!({"binary_data_size": 12});
    } else {
        tensor["data"] = json!(values);
    }
    tensor
}

fn ask(client: &mut Client, request: &Value, binary: &[u8]) -> Response {
    let json = request.to_string();
    let length = json.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    let body = [json.as_bytes(), binary].concat();
    let response = client.request("POST", "/v2/models/both/infer", &headers, &body);
    response.expect("an answer")
}

/// An output in whatever form it has.
fn output(response: &Response, name: &str) -> Vec<f32> {
    let json = response.header("inference-header-content-length");
    let json = json.map_or(response.body.len(), |l| l.parse().expect("a length"));
    let (json, mut binary) = response.body.split_at(json);
    let json: Value = serde_json::from_slice(json).expect("JSON");
    for output in json["outputs"].as_array().expect("outputs") {
        let size = output["parameters"]["binary_data_size"].as_u64();
        let own = match size {
            Some(size) => {
                let (own, rest) = binary.split_at(size as usize);
                binary = rest;
                let values = own.chunks_exact(4).map(|b| b.try_into().expect("four"));
                values.map(f32::from_le_bytes).collect()
            }
            None => {
                let values = output["data"].as_array().expect("data").iter();
                values
                    .map(|v| v.as_f64().expect("a number") as f32)
                    .collect()
            }
        };
        if output["name"] == name {
            return own;
        }
    }
    panic!("no output {name} in {json}");
}

#[test]
fn each_tensor_of_a_request_and_of_an_answer_has_its_own_form() {
    let site = Site::new(|_| {});
    let file = site.fleet.directory().join("both.tflite");
    python::run("two_inputs.py", [path(&file)]).expect_success();
    let package = Package::of_tflite(&file, "both", site.fleet.directory());
    site.install(package.path());
    let mut client = site.device.unix();
    let finite = [Y[0], Y[1], 8.0];
    let expected: [Vec<f32>; 2] = [
        X.iter().zip(finite).map(|(x, y)| x + y).collect(),
        X.iter().zip(finite).map(|(x, y)| x * y).collect(),
    ];
    for form in 0..16u32 {
        let is = |bit: u32| form & (1 << bit) != 0;
        // In either order: the bytes follow the order of the inputs in the JSON.
        let mut inputs = [
            (tensor("x", &X, is(0)), &X, is(0)),
            (tensor("y", &finite, is(1)), &finite, is(1)),
        ];
        if form % 3 == 0 {
            inputs.reverse();
        }
        let parts = inputs.iter().filter(|(_, _, binary)| *binary);
        let binary: Vec<u8> = parts
            .flat_map(|(_, values, _)| bytes(&values[..]))
            .collect();
        let inputs: Vec<&Value> = inputs.iter().map(|(tensor, _, _)| tensor).collect();
        let wish = |name, binary| json!({"name": name, "parameters": {"binary_data": binary}});
        let outputs = json!([wish("product", is(2)), wish("sum", is(3))]);
        let response = ask(
            &mut client,
            &json!({"inputs": inputs, "outputs": outputs}),
            &binary,
        );
        let response = response.expect_ok();
        assert_eq!(output(&response, "sum"), expected[0], "form {form:04b}");
        assert_eq!(output(&response, "product"), expected[1], "form {form:04b}");
    }

    // NaN goes in as bytes and comes out as bytes, bit by bit, and as nothing else.
    let inputs = json!([tensor("x", &X, false), tensor("y", &Y, true)]);
    let request = json!({"inputs": inputs, "parameters": {"binary_data_output": true}});
    let response = ask(&mut client, &request, &bytes(&Y)).expect_ok();
    let product = output(&response, "product");
    assert_eq!(product[..2], expected[1][..2]);
    assert!(product[2].is_nan());
    let response = ask(&mut client, &json!({"inputs": inputs}), &bytes(&Y));
    assert_eq!(response.status, 422, "{}", response.text());
    assert!(
        response.text().contains("binary_data"),
        "{}",
        response.text()
    );

    // The body alone does not say which input it is.
    let headers = [("Inference-Header-Content-Length", "0")];
    let response = client.request("POST", "/v2/models/both/infer", &headers, &bytes(&X));
    let response = response.expect("an answer");
    assert_eq!(response.status, 400);
    assert!(response.text().contains("one input"), "{}", response.text());
}
