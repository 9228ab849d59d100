//! What `ai-edge-litert`, Google's own interpreter for Python, answers, and the agent's answers beside it.
//!
//! A model is served twice, on the built-in kernels and on XNNPACK, and each is compared with the same kernels of the
//! reference on the same inputs. Values come and go as binary tensors, so nothing is rounded on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeward_models::manifest::{Datatype, DelegateChoice, Signature, Tolerance};
use edgeward_models::tflite_file;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::{Client, Response};
use crate::{Package, Site, python};

pub const KERNELS: [&str; 2] = ["builtin", "xnnpack"];

/// One answer of the reference interpreter.
#[derive(Deserialize)]
pub struct Reference {
    pub model: PathBuf,
    pub kernels: String,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
pub struct Tensor {
    pub datatype: String,
    pub shape: Vec<u64>,
    /// Little-endian bytes in hexadecimal digits.
    data: String,
}

impl Tensor {
    fn bytes(&self) -> Vec<u8> {
        hex::decode(&self.data).expect("hexadecimal digits")
    }

    pub fn values(&self) -> Vec<f64> {
        values(&self.datatype, &self.bytes())
    }
}

/// A model under comparison.
pub struct Subject {
    pub name: String,
    pub file: PathBuf,
    /// Shapes of its first input to compare at, such as `1x1280,1x17920`; its own where none is given.
    pub shapes: &'static str,
    /// The sample that it is, with a manifest of its own.
    pub sample: Option<&'static str>,
}

/// Asks the reference interpreter about models, on these kernels.
pub fn ask(subjects: &[Subject], kernels: &[&str], directory: &Path) -> Vec<Reference> {
    let output = directory.join("reference.json");
    let model = |s: &Subject| match s.shapes {
        "" => s.file.display().to_string(),
        shapes => format!("{}={shapes}", s.file.display()),
    };
    let mut arguments = vec![output.display().to_string(), kernels.join(",")];
    arguments.extend(subjects.iter().map(model));
    python::run("reference.py", arguments).expect_success();
    let text = std::fs::read(&output).expect("read the reference");
    serde_json::from_slice(&text).expect("the reference")
}

/// Serves all subjects on both kinds of kernels and compares every answer; returns how many outputs were compared.
pub fn assert_equal(site: &Site, subjects: &[Subject]) -> usize {
    let references = ask(subjects, &KERNELS, site.fleet.directory());
    let parent = site.fleet.directory().join("packages");
    let mut served = BTreeMap::new();
    for subject in subjects {
        for kernels in KERNELS {
            let package = package(subject, kernels, &parent);
            site.sign(package.path(), &[]).expect_success();
            let signature = package.manifest().default_signature().clone();
            served.insert((&subject.file, kernels), signature);
        }
    }
    site.carry().expect_success();

    let mut client = site.device.unix();
    let mut compared = 0;
    let mut wrong = Vec::new();
    for reference in &references {
        let subject = subjects.iter().find(|s| s.file == reference.model);
        let subject = subject.expect("a known model");
        let model = format!("{}-{}", subject.name, reference.kernels);
        let signature = &served[&(&subject.file, reference.kernels.as_str())];
        let active = site.active(&model);
        assert_eq!(active["delegate"], json!(reference.kernels), "{active}");
        let (outputs, differing) = compare(&mut client, &model, signature, reference, 1e-5);
        compared += outputs;
        wrong.extend(differing);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    compared
}

/// The model on one kind of kernels, under a name of its own.
fn package(subject: &Subject, kernels: &str, parent: &Path) -> Package {
    let name = format!("{}-{kernels}", subject.name);
    let package = match subject.sample {
        Some(sample) => Package::copy_of(sample, parent),
        None => Package::of_tflite(&subject.file, &name, parent),
    };
    package.edit(|manifest| {
        manifest.model = name.parse().expect("a model name");
        if manifest.max_request_bytes == 0 && !subject.shapes.is_empty() {
            manifest.max_request_bytes = 7 * manifest.request_bytes();
        }
        let mut delegate = DelegateChoice::new(kernels.parse().expect("a delegate's name"));
        let like = manifest
            .delegates
            .iter()
            .find(|d| d.delegate == delegate.delegate);
        delegate.tolerance = match (like, subject.sample) {
            (Some(like), Some(_)) => like.tolerance,
            // How far XNNPACK is from the built-in kernels is for an author to decide. Here both are measured, each
            // by its like.
            _ => Tolerance {
                float: 0.05,
                integer_steps: 32,
            },
        };
        manifest.delegates = vec![delegate];
    })
}

/// Asks a served model the reference's question. Integers must be equal, reals within `float` of the largest; returns
/// how many outputs were compared and what is wrong.
pub fn compare(
    client: &mut Client,
    model: &str,
    signature: &Signature,
    reference: &Reference,
    float: f64,
) -> (usize, Vec<String>) {
    let mut wrong = Vec::new();
    let file = std::fs::read(&reference.model).expect("read a model");
    // Then each question is a sequence of its own: the reference's interpreter is a fresh one, too.
    let keeps_state = tflite_file::keeps_state(&file).expect("a model");
    let answers = infer(client, model, signature, reference, keeps_state);
    assert_eq!(answers.len(), reference.outputs.len(), "{model}");
    for (answer, expected) in answers.iter().zip(&reference.outputs) {
        assert_eq!(answer.datatype, expected.datatype, "{model}");
        assert_eq!(answer.shape, expected.shape, "{model}");
        let expected_values = expected.values();
        assert_eq!(answer.values.len(), expected_values.len(), "{model}");
        let limit = allowed(expected, float);
        for (a, b) in answer.values.iter().zip(expected_values) {
            let difference = (a - b).abs();
            // A NaN is no number within any limit.
            if difference.is_nan() || difference > limit {
                let shape = &reference.inputs[0].shape;
                wrong.push(format!("{model} at {shape:?}: {a} instead of {b}"));
            }
        }
    }
    (answers.len(), wrong)
}

/// The largest difference that is allowed between two values of this tensor.
fn allowed(tensor: &Tensor, float: f64) -> f64 {
    if tensor.datatype != Datatype::Fp32.name() {
        return 0.0;
    }
    float * tensor.values().iter().fold(1.0, |a: f64, b| a.max(b.abs()))
}

/// One output as the agent answered it.
struct Answer {
    datatype: String,
    shape: Vec<u64>,
    values: Vec<f64>,
}

/// Asks the agent the reference's question, all in binary.
fn infer(
    client: &mut Client,
    model: &str,
    signature: &Signature,
    question: &Reference,
    keeps_state: bool,
) -> Vec<Answer> {
    let mut tensors = Vec::new();
    let mut inputs = Vec::new();
    for (spec, tensor) in signature.inputs.iter().zip(&question.inputs) {
        let bytes = tensor.bytes();
        inputs.push(
            json!({"name": spec.name, "shape": tensor.shape, "datatype": tensor.datatype,
            "parameters": {"binary_data_size": bytes.len()}}),
        );
        tensors.extend(bytes);
    }
    let mut header = json!({"inputs": inputs, "parameters": {"binary_data_output": true}});
    if keeps_state {
        header["parameters"]["sequence_id"] = json!("only");
        header["parameters"]["sequence_start"] = json!(true);
        header["parameters"]["sequence_end"] = json!(true);
    }
    let header = header.to_string();
    let length = header.len().to_string();
    let headers = [("inference-header-content-length", length.as_str())];
    let body = [header.as_bytes(), &tensors].concat();
    let path = format!("/v2/models/{model}/infer");
    let answer = client.request("POST", &path, &headers, &body);
    outputs(&answer.expect("an answer").expect_ok())
}

/// The outputs of a binary answer.
fn outputs(answer: &Response) -> Vec<Answer> {
    let length = answer
        .header("inference-header-content-length")
        .expect("a header length");
    let (header, mut rest) = answer.body.split_at(length.parse().expect("a number"));
    let header: Value = serde_json::from_slice(header).expect("JSON");
    let outputs = header["outputs"].as_array().expect("outputs").iter();
    let read = |output: &Value| {
        let size = output["parameters"]["binary_data_size"]
            .as_u64()
            .expect("a size") as usize;
        let (bytes, after) = rest.split_at(size);
        rest = after;
        let shape = output["shape"].as_array().expect("a shape").iter();
        let shape = shape.map(|d| d.as_u64().expect("a dimension")).collect();
        let datatype = output["datatype"].as_str().expect("a datatype").to_owned();
        let values = values(&datatype, bytes);
        Answer {
            datatype,
            shape,
            values,
        }
    };
    outputs.map(read).collect()
}

fn values(datatype: &str, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        let chunks = bytes.chunks_exact(N);
        chunks
            .map(|c| read(c.try_into().expect("whole elements")))
            .collect()
    }
    match datatype {
        "FP32" => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        "INT8" => each(bytes, |[b]: [u8; 1]| f64::from(b as i8)),
        "UINT8" => each(bytes, |[b]: [u8; 1]| f64::from(b)),
        "INT32" => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        other => panic!("no case of these tests has {other}"),
    }
}
