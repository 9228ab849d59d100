//! A model that takes words and gives words back.

use edgeward_models::Digest;
use edgeward_models::manifest::{FileEntry, Manifest};
use edgeward_tests::http::Client;
use edgeward_tests::{Package, Site};
use serde_json::{Value, json};

use super::{expect_refusal, infer, infer_binary, metadata, output, serving, tensor};

fn words(all: &[&str]) -> Value {
    tensor("words", "BYTES", &[all.len()], json!(all))
}

fn picks(all: &[i32]) -> Value {
    tensor("picks", "INT32", &[all.len()], json!(all))
}

fn elements(all: &[&[u8]]) -> Vec<u8> {
    let element = |one: &&[u8]| [&(one.len() as u32).to_le_bytes(), *one].concat();
    all.iter().flat_map(element).collect()
}

fn binary_words(count: usize, bytes: usize) -> Value {
    json!({"name": "words", "datatype": "BYTES", "shape": [count],
        "parameters": {"binary_data_size": bytes}})
}

#[test]
fn words_come_and_go_as_json_and_as_bytes() {
    let (site, _) = serving(&["words"]);
    let active = site.active("words");
    assert_eq!(active["delegate"], "xnnpack", "{active}");
    let client = &mut site.device.unix();
    let described = metadata(client, "words");
    assert_eq!(
        described["inputs"][0],
        json!({"name": "words", "datatype": "BYTES", "shape": [-1]})
    );

    json_both_ways(client);
    bytes_both_ways(client);
    wrong_words_are_refused(client);
    too_many_words_are_refused(client);
    // None of that cost the worker its life.
    assert_eq!(site.active("words"), active);
}

fn json_both_ways(client: &mut Client) {
    let all = ["plain", "", "zwölf \"Boxkämpfer\"\n", "\0", "😀"];
    let request = json!({"inputs": [words(&all), picks(&[4, 2, 2, 1])]});
    let response = infer(client, "words", &request);
    let (shape, data) = output(response, "picked");
    assert_eq!(shape, json!([4]));
    assert_eq!(data, json!([all[4], all[2], all[2], ""]));
    // Other counts and lengths, one after the other, on the same interpreter.
    for count in [1, 400, 3] {
        let long = "ab".repeat(count);
        let all = vec![long.as_str(); count];
        let request = json!({"inputs": [words(&all), picks(&[count as i32 - 1])]});
        let response = infer(client, "words", &request);
        let (shape, data) = output(response, "listed");
        assert_eq!(shape, json!([count, 1]));
        assert_eq!(data, json!(all));
    }
}

fn bytes_both_ways(client: &mut Client) {
    let sent = elements(&[b"\xff\xfe\0", b"", b"text"]);
    let mut request = json!({
        "inputs": [binary_words(3, sent.len()), picks(&[2, 0])],
        "parameters": {"binary_data_output": true},
    });
    let response = infer_binary(client, "words", &request, &sent).expect_ok();
    let header = response.header("inference-header-content-length");
    let header = header.expect("a length").parse().expect("a number");
    let (json, values) = response.body.split_at(header);
    let json: Value = serde_json::from_slice(json).expect("JSON");
    let picked = elements(&[b"text", b"\xff\xfe\0"]);
    assert_eq!(
        json["outputs"][0]["parameters"]["binary_data_size"],
        picked.len()
    );
    assert_eq!(values, [picked, sent.clone()].concat());

    // Bytes that are no text have no JSON; the output that is text has.
    request["parameters"] = json!({});
    let response = infer_binary(client, "words", &request, &sent);
    expect_refusal(
        &response,
        422,
        &["picked", "element 1", "UTF-8", "binary_data"],
    );
    request["inputs"][1] = picks(&[2]);
    request["outputs"] = json!([{"name": "picked"}]);
    let response = infer_binary(client, "words", &request, &sent);
    assert_eq!(output(response, "picked").1, json!(["text"]));
}

fn wrong_words_are_refused(client: &mut Client) {
    let good = elements(&[b"one", b"two"]);
    let with = |at: usize, length: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    for (bytes, count, says) in [
        (with(0, 4), 2, "element 1"),
        (with(0, u32::MAX), 2, "element 0"),
        (with(7, 2), 2, "element 2"),
        (with(7, 1 << 31), 2, "element 1"),
        (good.clone(), 3, "2 elements, the shape needs 3"),
        (good.clone(), 1, "2 elements, the shape needs 1"),
        (good[..9].to_vec(), 2, "element 1"),
    ] {
        let request = json!({"inputs": [binary_words(count, bytes.len()), picks(&[0])]});
        let response = infer_binary(client, "words", &request, &bytes);
        expect_refusal(&response, 400, &["input \"words\"", says]);
    }
    for (data, says) in [
        (json!([1, 2]), "element 0 is not a JSON string"),
        (json!(["a", null]), "element 1 is not a JSON string"),
        (json!(["a"]), "1 elements, the shape needs 2"),
        (json!(["a", "b", "c"]), "more elements than the 2"),
    ] {
        let request = json!({"inputs": [tensor("words", "BYTES", &[2], data), picks(&[0])]});
        let response = infer(client, "words", &request);
        expect_refusal(&response, 400, &["input \"words\"", says]);
    }
}

fn too_many_words_are_refused(client: &mut Client) {
    // The package made room for two mebibytes and a little.
    let long = "x".repeat(3 << 20);
    let request = json!({"inputs": [words(&[&long]), picks(&[0])]});
    let response = infer(client, "words", &request);
    expect_refusal(&response, 413, &["words", "allows"]);
    let sent = elements(&[long.as_bytes()]);
    let request = json!({"inputs": [binary_words(1, sent.len()), picks(&[0])]});
    let response = infer_binary(client, "words", &request, &sent);
    expect_refusal(&response, 413, &["words", "allows"]);
    let request = json!({"inputs": [
        {"name": "words", "datatype": "BYTES", "shape": [1u64 << 62], "data": ["a"]},
        picks(&[0]),
    ]});
    expect_refusal(&infer(client, "words", &request), 400, &["words"]);
}

/// The sum of what is in `golden.json` and a version, under which it is pushed.
fn with_golden(package: Package, version: &str, picked: &str) -> Package {
    let vector = json!({
        "inputs": {
            "words": {"shape": [2], "strings": ["left", "right"]},
            "picks": {"shape": [1], "data": [1]},
        },
        "outputs": {"picked": {"shape": [1], "strings": [picked]}},
    });
    let golden = json!({"vectors": [vector]}).to_string();
    let name = "golden.json".parse().expect("a file name");
    let package = package.with_file(&name, golden.as_bytes());
    let entry = package.manifest().files[&name];
    assert_eq!(
        entry,
        FileEntry {
            length: golden.len() as u64,
            sha256: Digest::of(golden.as_bytes())
        }
    );
    package
        .edit(|manifest: &mut Manifest| manifest.golden_file = Some(name))
        .version(version)
}

#[test]
fn golden_vectors_of_strings_prove_a_model_or_refuse_it() {
    let (site, directory) = serving(&["words"]);
    let parent = site.fleet.directory();
    let package = || Package::of_tflite(&directory.join("words.tflite"), "words", parent);
    site.install(with_golden(package(), "1.1.0", "right").path());
    assert_eq!(site.active("words")["version"], "1.1.0");
    sign_refused(&site, &with_golden(package(), "1.2.0", "wrong"));
    let status = site.device.model_status("words").expect("a status");
    assert_eq!(status["active"]["version"], "1.1.0", "{status}");
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("golden vector 1: output \"picked\": element 0"),
        "{reason}"
    );
}

fn sign_refused(site: &Site, package: &Package) {
    site.sign(package.path(), &[]).expect_success();
    assert_eq!(site.carry().code, Some(1));
}
