//! Models of kinds that the samples are not, packaged from the bare file and asked as a user would: strings, shapes
//! that a request decides on, outputs whose shape the values decide on, several signatures, and what cannot
//! run at all.

mod shapes;
mod signatures;
mod strings;
mod unrunnable;

use std::path::PathBuf;

use edgeward_tests::fleet::path;
use edgeward_tests::http::{Client, Response};
use edgeward_tests::{Package, Site, python};
use serde_json::{Value, json};

/// A device with some of the models of `odd_models.py`, and where the files of all of them lie.
fn serving(models: &[&str]) -> (Site, PathBuf) {
    let site = Site::new(|_| {});
    let directory = site.fleet.directory().join("odd");
    python::run("odd_models.py", [path(&directory)]).expect_success();
    for model in models {
        let file = directory.join(format!("{model}.tflite"));
        let package = Package::of_tflite(&file, model, site.fleet.directory());
        site.install(package.path());
    }
    (site, directory)
}

fn infer(client: &mut Client, model: &str, request: &Value) -> Response {
    client.infer(model, request).expect("an answer")
}

/// Asks with a JSON header and what follows it.
fn infer_binary(client: &mut Client, model: &str, request: &Value, binary: &[u8]) -> Response {
    let json = request.to_string();
    let length = json.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    let body = [json.as_bytes(), binary].concat();
    let path = format!("/v2/models/{model}/infer");
    client
        .request("POST", &path, &headers, &body)
        .expect("an answer")
}

fn expect_refusal(response: &Response, status: u16, words: &[&str]) {
    assert_eq!(response.status, status, "{}", response.text());
    let json = response.json();
    let text = json["error"].as_str().expect("a reason");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

fn tensor(name: &str, datatype: &str, shape: &[usize], data: Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

/// An output of a JSON answer: its shape and its values.
fn output(response: Response, name: &str) -> (Value, Value) {
    let answer = response.expect_ok().json();
    let outputs = answer["outputs"].as_array().expect("outputs").iter();
    let mut found = outputs.filter(|output| output["name"] == name);
    let output = found.next().expect("the output");
    (output["shape"].clone(), output["data"].clone())
}

/// What the model says of itself.
fn metadata(client: &mut Client, model: &str) -> Value {
    let path = format!("/v2/models/{model}");
    client.get(&path).expect("an answer").expect_ok().json()
}
