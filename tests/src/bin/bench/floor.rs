//! The bare interpreter: the same library, model and kernels in a loop in this process, with nothing around.
//!
//! What the agent adds is measured against this. Only the call that runs the model is timed, not the copying
//! of its input, so the figure is the lowest there is.

use std::path::Path;
use std::time::{Duration, Instant};

use edgeward_agent::tflite::{Delegate, Graph, Interpreter, Library, Model};

use crate::measure::Run;

/// A model ready to run here.
pub struct Floor {
    interpreter: Interpreter,
}

impl Floor {
    /// As a worker does it: XNNPACK on one thread.
    pub fn new(library: &Path, model: &Path, shape: &[i32], input: &[u8]) -> Self {
        let library = Library::open(library).expect("load TFLite");
        let file = std::fs::File::open(model).expect("open a model");
        let model = Model::map(&library, file).expect("map a model");
        let delegate = Delegate::xnnpack(&library, 1).expect("make an XNNPACK delegate");
        let mut interpreter =
            Interpreter::build(&model, Some(delegate), 1).expect("build an interpreter");
        interpreter
            .resize_input(Graph::Main, 0, shape)
            .expect("resize");
        interpreter.allocate(Graph::Main).expect("allocate");
        let mut tensor = interpreter.input_mut(Graph::Main, 0).expect("an input");
        assert!(tensor.write(input), "the input has another length");
        let mut floor = Self { interpreter };
        floor.run(Duration::from_millis(50));
        floor
    }

    /// Runs the model for this long.
    pub fn run(&mut self, time: Duration) -> Run {
        let start = Instant::now();
        let mut latencies = Vec::new();
        let mut before = start;
        while before - start < time || latencies.is_empty() {
            self.interpreter.invoke(Graph::Main).expect("run a model");
            let now = Instant::now();
            latencies.push(now - before);
            before = now;
        }
        Run::new(latencies, start.elapsed())
    }

    /// The answer that the agent must give too.
    pub fn output(&self) -> Vec<u8> {
        let tensor = self.interpreter.output(Graph::Main, 0).expect("an output");
        tensor.bytes().expect("an output's bytes").to_vec()
    }
}
