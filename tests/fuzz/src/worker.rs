//! What passes between agent and worker: neither believes the other.

use edgeward_agent::worker::check_output;
use edgeward_agent::worker::wire::{FromWorker, Job, Outcome, Reply, ToWorker};
use edgeward_models::manifest::{Datatype, TensorSpec};

/// Where outputs may lie.
const BEGIN: usize = 4096;
const AREA: usize = 1 << 16;

/// A message of either side; the first byte says of which kind.
pub fn wire(data: &[u8]) {
    let [kind, message @ ..] = data else {
        return;
    };
    let mut again = Vec::new();
    match kind % 3 {
        0 => {
            if let Ok(job) = Job::decode(message) {
                job.encode(&mut again);
                assert_eq!(again, message, "a job that is written otherwise");
            }
        }
        1 => {
            let Ok(reply) = Reply::decode(message) else {
                return;
            };
            reply.encode(&mut again);
            match &reply.outcome {
                // Cut, and made readable.
                Outcome::Failed(_) => {}
                Outcome::Cancelled => assert_eq!(again, message),
                Outcome::Done(done) => {
                    assert_eq!(again, message, "a reply that is written otherwise");
                    outputs(done);
                }
            }
        }
        _ => {
            if let Ok(message) = serde_json::from_slice::<FromWorker>(message) {
                let again = serde_json::to_vec(&message).expect("what was read can be written");
                let again: FromWorker = serde_json::from_slice(&again).expect("and read");
                assert_eq!(again, message);
            }
            let _ = serde_json::from_slice::<ToWorker>(message);
        }
    }
}

/// Outputs that are let through lie where they may, and are as long as their shapes say.
fn outputs(done: &edgeward_agent::worker::wire::Done) {
    let spec = TensorSpec {
        name: "y".to_owned(),
        datatype: Datatype::Fp32,
        shape: vec![-1, 10],
        quantization: None,
    };
    for tensor in &done.outputs {
        let Ok(output) = check_output(&spec, tensor, BEGIN, AREA) else {
            continue;
        };
        assert!(output.offset >= BEGIN && output.offset + output.length <= BEGIN + AREA);
        assert!(output.shape.len() == 2 && output.shape[1] == 10);
        assert_eq!(output.length as i64, 4 * output.shape[0] * output.shape[1]);
    }
}
