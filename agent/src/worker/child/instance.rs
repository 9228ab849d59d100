//! One interpreter at work: shapes, input memory and outputs of one job after another.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::tflite::{Canceller, Graph, Interpreter, Nodes, TfliteError};
use crate::worker::memory::{Memory, aligned};
use crate::worker::wire::{Shape, TensorRef};

/// An interpreter with what it was last prepared for.
pub struct Instance {
    interpreter: Interpreter,
    /// Inputs are read where the request put them, not copied.
    in_place: bool,
    /// The manifest's signatures, in its order.
    functions: Vec<Function>,
}

/// One signature.
struct Function {
    graph: Graph,
    /// The shapes that it is allocated for; `None` before the first time and after a failure.
    shapes: Option<Vec<Shape>>,
}

/// A job's inputs: where they lie, and the area that they must not leave.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub memory: &'a Memory,
    pub begin: usize,
    pub area: usize,
    pub tensors: &'a [TensorRef],
}

/// Where the outputs of a job went.
pub struct Outputs {
    pub tensors: Vec<TensorRef>,
    /// Memory of their own, where they do not fit into the slot.
    pub own_memory: Option<(OwnedFd, usize)>,
}

/// Cancelled although nobody meant this job: a late wish for the one before it. More often than this is a
/// delegate that cancels on its own.
const MAX_RETRIES: u32 = 3;

impl Instance {
    /// `graphs`: of the manifest's signatures. Reading `in_place` works for the main graph alone.
    pub fn new(interpreter: Interpreter, graphs: Vec<Graph>, in_place: bool) -> Self {
        let function = |graph| Function {
            graph,
            shapes: None,
        };
        Self {
            in_place: in_place && graphs == [Graph::Main],
            interpreter,
            functions: graphs.into_iter().map(function).collect(),
        }
    }

    pub fn nodes(&self) -> Nodes {
        self.interpreter.nodes()
    }

    pub fn canceller(&self) -> Canceller {
        self.interpreter.canceller()
    }

    /// Makes a signature ready for these inputs. Returns its graph.
    pub fn prepare(&mut self, signature: usize, inputs: Inputs<'_>) -> Result<Graph, String> {
        let function = self.functions.get_mut(signature);
        let function = function.ok_or_else(|| format!("the model has no signature {signature}"))?;
        let graph = function.graph;
        let (takes, brings) = (self.interpreter.input_count(graph), inputs.tensors.len());
        if brings != takes {
            return Err(format!("the model takes {takes} inputs, not {brings}"));
        }
        let shapes = inputs.tensors.iter().map(|input| input.shape);
        let known = function.shapes.as_deref().unwrap_or_default();
        let same = function.shapes.is_some() && known.iter().copied().eq(shapes.clone());
        if !same {
            // Until all of it has worked, nothing of it counts.
            function.shapes = None;
            for (index, shape) in shapes.clone().enumerate() {
                self.interpreter
                    .resize_input(graph, index, shape.dimensions())
                    .map_err(text)?;
            }
        }
        // Memory that is read in place must be known before tensors are planned, the rest after.
        if !same && !self.in_place {
            self.interpreter.allocate(graph).map_err(text)?;
        }
        for index in 0..brings {
            self.give(graph, index, inputs)?;
        }
        if !same && self.in_place {
            self.interpreter.allocate(graph).map_err(text)?;
        }
        if !same {
            self.functions[signature].shapes = Some(shapes.collect());
        }
        Ok(graph)
    }

    /// Binds or copies one input.
    fn give(&mut self, graph: Graph, index: usize, inputs: Inputs<'_>) -> Result<(), String> {
        let outside = || "an input lies outside of its memory".to_owned();
        let input = &inputs.tensors[index];
        let (offset, length) = (
            usize::try_from(input.offset).map_err(|_| outside())?,
            usize::try_from(input.length).map_err(|_| outside())?,
        );
        if offset
            .checked_add(length)
            .is_none_or(|end| end > inputs.area)
        {
            return Err(outside());
        }
        let tensor = self.interpreter.input(graph, index);
        let expected = tensor.map_or(0, |t| t.byte_size());
        if expected != length {
            return Err(format!(
                "input {index} has {length} bytes; the model needs {expected} for this shape"
            ));
        }
        if length == 0 {
            return Ok(());
        }
        let place = inputs.begin + offset;
        if self.in_place {
            let start = inputs.memory.at(place, length).ok_or_else(outside)?;
            // SAFETY: in the mapping, which the caller keeps until this job is answered; the next job binds
            // every input anew before it allocates or invokes.
            return unsafe { self.interpreter.bind_input(index, start, length) }.map_err(text);
        }
        // SAFETY: input memory is not written in this process.
        let bytes = unsafe { inputs.memory.bytes(place, length) }.ok_or_else(outside)?;
        let tensor = self.interpreter.input_mut(graph, index);
        if tensor.is_some_and(|mut tensor| tensor.write(bytes)) {
            Ok(())
        } else {
            Err(format!("input {index} has no memory in the model"))
        }
    }

    /// Runs a prepared graph. `meant` says whether a cancellation was for this job.
    pub fn invoke(&mut self, graph: Graph, meant: impl Fn() -> bool) -> Result<(), Stopped> {
        let mut retries = 0;
        loop {
            match self.interpreter.invoke(graph) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_cancelled() && meant() => return Err(Stopped::Cancelled),
                Err(error) if error.is_cancelled() && retries < MAX_RETRIES => retries += 1,
                Err(error) => return Err(Stopped::Failed(text(error))),
            }
        }
    }

    /// Copies the outputs into the area of the slot, or into memory of their own.
    pub fn collect(
        &self,
        graph: Graph,
        memory: &Memory,
        begin: usize,
        area: usize,
    ) -> Result<Outputs, String> {
        let count = self.interpreter.output_count(graph);
        let mut tensors = Vec::with_capacity(count);
        let mut end = 0usize;
        for index in 0..count {
            let tensor = self.interpreter.output(graph, index);
            let tensor = tensor.ok_or_else(|| format!("output {index} is missing"))?;
            let shape = Shape::new(tensor.shape().map(i64::from))
                .filter(|_| tensor.rank() <= edgeward_models::manifest::MAX_DIMENSIONS)
                .ok_or_else(|| format!("output {index} has too many dimensions"))?;
            let length = tensor.byte_size();
            tensors.push(TensorRef {
                offset: end as u64,
                length: length as u64,
                shape,
            });
            end = aligned(length)
                .and_then(|l| l.checked_add(end))
                .ok_or_else(|| format!("output {index} is too large"))?;
        }
        let own = if end > area {
            let made = Memory::create("edgeward-answer", end);
            Some(made.map_err(|e| format!("no memory for an answer of {end} bytes: {e}"))?)
        } else {
            None
        };
        let (target, begin) = own.as_ref().map_or((memory, begin), |(_, own)| (own, 0));
        for (index, place) in tensors.iter().enumerate() {
            let tensor = self.interpreter.output(graph, index);
            let bytes = tensor.as_ref().and_then(|t| t.bytes());
            let bytes = bytes.ok_or_else(|| format!("output {index} has no data"))?;
            // SAFETY: output memory of this slot is written by the thread that runs its job alone.
            let to = unsafe { target.bytes_mut(begin + place.offset as usize, bytes.len()) };
            to.ok_or_else(|| format!("output {index} does not fit"))?
                .copy_from_slice(bytes);
        }
        Ok(Outputs {
            tensors,
            own_memory: own.map(|(descriptor, _)| (descriptor, end)),
        })
    }
}

/// Why an invoke gave no outputs.
pub enum Stopped {
    Cancelled,
    Failed(String),
}

fn text(error: TfliteError) -> String {
    error.to_string()
}
