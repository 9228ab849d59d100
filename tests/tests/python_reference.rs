//! The agent's answers beside those of `ai-edge-litert`, Google's own interpreter for Python, on the same inputs.
//!
//! Every sample and every public model of pyopen-wakeword is served twice, on the built-in kernels and on
//! XNNPACK, and each is compared with the same kernels of the reference. Values come and go as binary tensors,
//! so nothing is rounded on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeward_models::manifest::{
    Datatype, DelegateChoice, GoldenTensor, GoldenVector, GoldenVectors, Signature,
};
use edgeward_models::tflite_file;
use edgeward_tests::http::{Client, Response};
use edgeward_tests::{Package, Site, binaries, python};
use serde::Deserialize;
use serde_json::{Value, json};

/// Samples, with the shapes of their input to compare at; the fixtures' own shape where none is given.
const SAMPLES: [(&str, &str); 6] = [
    ("digits-1.0.0", "1x8x8x1,7x8x8x1"),
    ("digits-2.0.0", "1x8x8x1,7x8x8x1"),
    ("digits-int8-1.0.0", "1x8x8x1,7x8x8x1"),
    ("digits-int8-2.0.0", "1x8x8x1,7x8x8x1"),
    ("breast-cancer-1.0.0", ""),
    (STATEFUL, ""),
];
/// Keeps state, so each question is a sequence of its own: the reference's interpreter is a fresh one, too.
const STATEFUL: &str = "accumulator-1.0.0";

/// Public models; the spectrogram takes any length of sound.
const PUBLIC: [(&str, &str); 7] = [
    ("alexa", ""),
    ("embedding_model", ""),
    ("hey_jarvis", ""),
    ("hey_mycroft", ""),
    ("hey_rhasspy", ""),
    ("melspectrogram", SPECTROGRAM_SHAPES),
    ("okay_nabu", ""),
];
const SPECTROGRAM: &str = "melspectrogram";
const SPECTROGRAM_SHAPES: &str = "1x1280,1x12480,1x17920";
const KERNELS: [&str; 2] = ["builtin", "xnnpack"];

/// Integers are compared exactly, but for these, which may differ by one step: model, kernels, why.
const ONE_STEP: [(&str, &str, &str); 0] = [];

#[derive(Deserialize)]
struct Reference {
    model: PathBuf,
    kernels: String,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    datatype: String,
    shape: Vec<u64>,
    /// Little-endian bytes in hexadecimal digits.
    data: String,
}

impl Tensor {
    fn bytes(&self) -> Vec<u8> {
        hex::decode(&self.data).expect("hexadecimal digits")
    }

    fn values(&self) -> Vec<f64> {
        values(&self.datatype, &self.bytes())
    }
}

/// A model under comparison.
struct Subject {
    name: String,
    file: PathBuf,
    shapes: &'static str,
    sample: Option<&'static str>,
}

fn subjects() -> Vec<Subject> {
    let samples = SAMPLES.iter().map(|&(sample, shapes)| Subject {
        // Two versions of one model are two names here: both are served at once.
        name: sample.replace(".0.0", ""),
        file: binaries::sample(sample).join("model.tflite"),
        shapes,
        sample: Some(sample),
    });
    let public = PUBLIC.iter().map(|&(name, shapes)| Subject {
        name: name.to_owned(),
        file: python::public_model(name),
        shapes,
        sample: None,
    });
    samples.chain(public).collect()
}

fn ask_reference(subjects: &[Subject], directory: &Path) -> Vec<Reference> {
    let output = directory.join("reference.json");
    let model = |s: &Subject| match s.shapes {
        "" => s.file.display().to_string(),
        shapes => format!("{}={shapes}", s.file.display()),
    };
    let mut arguments = vec![output.display().to_string()];
    arguments.extend(subjects.iter().map(model));
    python::run("reference.py", arguments).expect_success();
    let text = std::fs::read(&output).expect("read the reference");
    serde_json::from_slice(&text).expect("the reference")
}

/// The model on one kind of kernels, under a name of its own.
fn package(subject: &Subject, kernels: &str, references: &[Reference], parent: &Path) -> Package {
    let name = format!("{}-{kernels}", subject.name);
    let mut package = match subject.sample {
        Some(sample) => Package::copy_of(sample, parent),
        None => Package::of_tflite(&subject.file, &name, parent),
    };
    if subject.name == SPECTROGRAM {
        // A model with free dimensions says how much one request may bring, and its own golden vectors: at
        // free dimensions of 1 this one cannot run at all.
        let shortest = references.iter().find(|r| r.model == subject.file);
        let shortest = shortest.expect("a reference");
        let golden = golden(&package.manifest().signatures[0], shortest);
        let file = "golden.json".parse().expect("a file name");
        package = package.with_file(&file, &golden).edit(|manifest| {
            manifest.golden_file = Some(file.clone());
            manifest.max_request_bytes = 17920 * 4;
        });
    }
    package.edit(|manifest| {
        manifest.model = name.parse().expect("a model name");
        if manifest.max_request_bytes == 0 {
            manifest.max_request_bytes = 7 * manifest.request_bytes();
        }
        let mut delegate = DelegateChoice::new(kernels.parse().expect("a delegate's name"));
        let like = manifest
            .delegates
            .iter()
            .find(|d| d.delegate == delegate.delegate);
        if let Some(like) = like {
            delegate.tolerance = like.tolerance;
        }
        manifest.delegates = vec![delegate];
    })
}

fn golden(signature: &Signature, reference: &Reference) -> Vec<u8> {
    let tensor = |t: &Tensor| GoldenTensor {
        shape: t.shape.clone(),
        data: t.values(),
        ..GoldenTensor::default()
    };
    let (input, output) = (&signature.inputs[0].name, &signature.outputs[0].name);
    let vector = GoldenVector {
        signature: None,
        inputs: BTreeMap::from([(input.clone(), tensor(&reference.inputs[0]))]),
        outputs: BTreeMap::from([(output.clone(), tensor(&reference.outputs[0]))]),
    };
    let vectors = vec![vector];
    serde_json::to_vec(&GoldenVectors { vectors }).expect("JSON")
}

/// One output as the agent answered it.
struct Answer {
    datatype: String,
    shape: Vec<u64>,
    values: Vec<f64>,
}

/// Asks the agent the reference's question, all in binary.
fn ask(
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
        "INT32" => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        other => panic!("no case of this test has {other}"),
    }
}

/// The largest difference that is allowed between two values of this tensor.
fn allowed(subject: &Subject, reference: &Reference, tensor: &Tensor) -> f64 {
    if tensor.datatype == Datatype::Fp32.name() {
        let largest = tensor.values().iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        return 1e-5 * largest;
    }
    let listed = |(model, kernels, _): &(&str, &str, &str)| {
        *model == subject.name && *kernels == reference.kernels
    };
    if ONE_STEP.iter().any(listed) {
        1.0
    } else {
        0.0
    }
}

#[test]
fn answers_are_those_of_the_reference_interpreter_on_the_same_kernels() {
    let site = Site::new(|_| {});
    let subjects = subjects();
    let references = ask_reference(&subjects, site.fleet.directory());
    let parent = site.fleet.directory().join("packages");
    let mut served = BTreeMap::new();
    for subject in &subjects {
        for kernels in KERNELS {
            let package = package(subject, kernels, &references, &parent);
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
        let file = std::fs::read(&subject.file).expect("read a model");
        let keeps_state = tflite_file::keeps_state(&file).expect("a model");
        assert!(keeps_state || subject.sample != Some(STATEFUL));
        let answers = ask(&mut client, &model, signature, reference, keeps_state);
        assert_eq!(answers.len(), reference.outputs.len(), "{model}");
        for (answer, expected) in answers.iter().zip(&reference.outputs) {
            assert_eq!(answer.datatype, expected.datatype, "{model}");
            assert_eq!(answer.shape, expected.shape, "{model}");
            let expected_values = expected.values();
            assert_eq!(answer.values.len(), expected_values.len(), "{model}");
            let limit = allowed(subject, reference, expected);
            for (a, b) in answer.values.iter().zip(expected_values) {
                let difference = (a - b).abs();
                // A NaN is no number within any limit.
                if difference.is_nan() || difference > limit {
                    let shape = &reference.inputs[0].shape;
                    wrong.push(format!("{model} at {shape:?}: {a} instead of {b}"));
                }
            }
            compared += 1;
        }
    }
    assert!(compared >= 2 * (SAMPLES.len() + PUBLIC.len()), "{compared}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
