//! Several inputs, several outputs, several signatures. The models are a few hand-written operators:
//! `arithmetic` gives a + b and a · b, `negate` gives −x.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use edgeward_agent::worker::{Answer, Worker, WorkerSpec};
use edgeward_models::manifest::{Datatype, Signature, TensorSpec};

use crate::support::{MINUTE, refusal, sample, spawner};

fn tensors(names: &[&str], width: i64) -> Vec<TensorSpec> {
    let tensor = |name: &&str| TensorSpec {
        name: (*name).to_owned(),
        datatype: Datatype::Fp32,
        shape: vec![-1, width],
        quantization: None,
    };
    names.iter().map(tensor).collect()
}

fn arithmetic() -> Signature {
    Signature {
        name: "arithmetic".to_owned(),
        inputs: tensors(&["a", "b"], 4),
        outputs: tensors(&["sum", "product"], 4),
    }
}

fn negate() -> Signature {
    Signature {
        name: "negate".to_owned(),
        inputs: tensors(&["x"], 2),
        outputs: tensors(&["y"], 2),
    }
}

fn spec(model: &str, delegate: &str, signatures: Vec<Signature>) -> WorkerSpec {
    let mut sample = sample("digits-1.0.0");
    sample.manifest.signatures = signatures;
    let mut spec = sample.spec(delegate);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/worker/models");
    spec.model_path = models.join(model);
    spec.manifest = Arc::new(sample.manifest);
    spec.request_bytes = 1024;
    spec
}

async fn infer(worker: &Worker, signature: usize, width: i64, inputs: &[&[f32]]) -> Answer {
    let total = inputs.iter().map(|values| values.len() * 4).sum();
    let mut slot = worker.lease(total, MINUTE).await.expect("slot");
    for values in inputs {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = [values.len() as i64 / width, width];
        slot.input(&shape, bytes.len())
            .expect("input")
            .copy_from_slice(&bytes);
    }
    slot.invoke(signature, Instant::now() + MINUTE)
        .await
        .expect("answer")
}

fn values(answer: &Answer, output: usize) -> Vec<f32> {
    let chunks = answer.output(output).chunks_exact(4);
    chunks
        .map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")))
        .collect()
}

async fn assert_arithmetic(worker: &Worker, batch: usize) {
    let a: Vec<f32> = (0..batch * 4).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..batch * 4).map(|i| i as f32 * 0.5 - 3.0).collect();
    let answer = infer(worker, 0, 4, &[&a, &b]).await;
    let both = || a.iter().zip(&b);
    assert_eq!(
        values(&answer, 0),
        both().map(|(a, b)| a + b).collect::<Vec<_>>()
    );
    assert_eq!(
        values(&answer, 1),
        both().map(|(a, b)| a * b).collect::<Vec<_>>()
    );
    assert_eq!(answer.shape(1), [batch as i64, 4]);
}

#[tokio::test]
async fn inputs_and_outputs_keep_their_order() {
    let spawner = spawner();
    for delegate in ["builtin", "xnnpack"] {
        let spec = spec("two-inputs.tflite", delegate, vec![arithmetic()]);
        let worker = Worker::start(&spawner, spec).await.expect("start");
        for batch in [1, 5, 1] {
            assert_arithmetic(&worker, batch).await;
        }
    }
}

#[tokio::test]
async fn every_signature_of_a_model_answers() {
    let spawner = spawner();
    for delegate in ["builtin", "xnnpack"] {
        let spec = spec(
            "two-signatures.tflite",
            delegate,
            vec![arithmetic(), negate()],
        );
        let worker = Worker::start(&spawner, spec).await.expect("start");
        worker.seal().await.expect("seal");
        for batch in [1, 3, 1] {
            assert_arithmetic(&worker, batch).await;
            let answer = infer(&worker, 1, 2, &[&[1.5, -2.0]]).await;
            assert_eq!(values(&answer, 0), [-1.5, 2.0]);
        }
    }
}

#[tokio::test]
async fn a_signature_that_the_model_lacks_is_refused_by_name() {
    let mut other = negate();
    other.name = "invert".to_owned();
    let spec = spec(
        "two-signatures.tflite",
        "builtin",
        vec![arithmetic(), other],
    );
    let reason = refusal(spec).await;
    assert!(reason.contains("signature \"invert\""), "{reason}");
}

/// The input is widened and narrowed again: what comes back is what was sent, bit for bit.
#[tokio::test]
async fn half_precision_comes_and_goes_as_it_is() {
    let tensor = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: Datatype::Fp16,
        shape: vec![1, 4],
        quantization: None,
    };
    let signature = Signature {
        name: "serving_default".to_owned(),
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
    };
    let halves: Vec<u8> = [0x3c00u16, 0xae66, 0x7bff, 0x0001]
        .iter()
        .flat_map(|bits| bits.to_le_bytes())
        .collect();
    let spawner = spawner();
    for delegate in ["builtin", "xnnpack"] {
        let spec = spec("half.tflite", delegate, vec![signature.clone()]);
        let worker = Worker::start(&spawner, spec).await.expect("start");
        let mut slot = worker.lease(halves.len(), MINUTE).await.expect("slot");
        let place = slot.input(&[1, 4], halves.len()).expect("input");
        place.copy_from_slice(&halves);
        let answer = slot.invoke(0, Instant::now() + MINUTE).await;
        assert_eq!(answer.expect("answer").output(0), halves, "{delegate}");
    }
}
