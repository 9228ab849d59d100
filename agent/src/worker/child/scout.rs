//! Tries new shapes where they do no harm.
//!
//! A request may give free dimensions any size. The built-in kernels refuse a size that the model cannot take with
//! an error; delegates were seen to end the process instead, and a request must not be able to do that. So a
//! shape that comes for the first time is planned on the built-in kernels alone, and reaches the delegate only
//! if they took it.

use std::collections::HashSet;
use std::sync::Arc;

use edgeward_models::manifest::Signature;

use super::instance::refuse_empty;
use super::load::{graph, has_free_dimensions};
use crate::tflite::{Interpreter, Model};
use crate::worker::wire::Shape;

/// Shapes that are remembered; beyond them all are forgotten and tried again.
const MOST_KNOWN: usize = 256;

/// What is known of the shapes of one interpreter's model.
pub struct Scout {
    model: Arc<Model>,
    signatures: Vec<Signature>,
    /// Signature and shapes that were taken.
    known: HashSet<(usize, Vec<Shape>)>,
}

impl Scout {
    /// `None`: no dimension is free.
    pub fn new(model: &Arc<Model>, signatures: &[Signature]) -> Option<Self> {
        signatures.iter().any(has_free_dimensions).then(|| Self {
            model: Arc::clone(model),
            signatures: signatures.to_vec(),
            known: HashSet::new(),
        })
    }

    /// Whether a signature takes these shapes; the error is TFLite's.
    pub fn ask(&mut self, signature: usize, shapes: Vec<Shape>) -> Result<(), String> {
        let question = (signature, shapes);
        if self.known.contains(&question) {
            return Ok(());
        }
        let asked = self.signatures.get(signature);
        let asked = asked.ok_or_else(|| format!("the model has no signature {signature}"))?;
        let mut interpreter =
            Interpreter::build(&self.model, None, 1).map_err(|e| e.to_string())?;
        let graph = graph(&mut interpreter, asked, self.signatures.len())?;
        for (index, shape) in question.1.iter().enumerate() {
            interpreter
                .resize_input(graph, index, shape.dimensions())
                .map_err(|e| e.to_string())?;
        }
        match interpreter.allocate(graph) {
            Ok(()) => refuse_empty(&interpreter, graph)?,
            // Operators that only the delegate has: nothing can be said without it.
            Err(error) if error.is_unresolved() => {}
            Err(error) => return Err(error.to_string()),
        }
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        self.known.insert(question);
        Ok(())
    }
}
