//! One interpreter at work: shapes, input memory and outputs of one job after another.
//!
//! Numbers are read where the request put them, if the delegate allows it. Strings are always copied: they travel
//! in one form ([`crate::strings`]) and TFLite keeps them in another.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use edgeward_models::manifest::Datatype;

use super::batch::Rows;
use super::scout::Scout;
use crate::strings;
use crate::tflite::{Canceller, Graph, Interpreter, Nodes, TfliteError};
use crate::worker::memory::{Memory, aligned};
use crate::worker::wire::{Shape, TensorRef};

/// An interpreter with what it was last prepared for.
pub struct Instance {
    interpreter: Interpreter,
    /// Numbers are read where the request put them, not copied.
    in_place: bool,
    /// Asked before new shapes are given to a delegate.
    scout: Option<Scout>,
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
    pub fn new(
        interpreter: Interpreter,
        graphs: Vec<Graph>,
        in_place: bool,
        scout: Option<Scout>,
    ) -> Self {
        let function = |graph| Function {
            graph,
            shapes: None,
        };
        Self {
            in_place: in_place && graphs == [Graph::Main],
            scout,
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
            if let Some(scout) = &mut self.scout {
                scout.ask(signature, shapes.clone().collect())?;
            }
            for (index, shape) in shapes.clone().enumerate() {
                self.interpreter
                    .resize_input(graph, index, shape.dimensions())
                    .map_err(text)?;
            }
        }
        let in_place = |instance: &Self, index| {
            let tensor = instance.interpreter.input(graph, index);
            let strings = tensor.is_some_and(|t| t.datatype() == Some(Datatype::Bytes));
            instance.in_place && !strings
        };
        // Memory that is read in place must be known before tensors are planned, the rest after.
        for index in 0..brings {
            if in_place(self, index) {
                self.bind(graph, index, inputs)?;
            }
        }
        if !same {
            self.interpreter.allocate(graph).map_err(text)?;
            refuse_empty(&self.interpreter, graph)?;
        }
        for index in 0..brings {
            if !in_place(self, index) {
                self.copy(graph, index, inputs)?;
            }
        }
        if !same {
            self.functions[signature].shapes = Some(shapes.collect());
        }
        Ok(graph)
    }

    /// Where one input begins in its memory, and its length.
    fn place(index: usize, inputs: Inputs<'_>) -> Result<(usize, usize), String> {
        let input = &inputs.tensors[index];
        let (offset, length) = (
            usize::try_from(input.offset).map_err(|_| outside())?,
            usize::try_from(input.length).map_err(|_| outside())?,
        );
        let end = offset.checked_add(length).ok_or_else(outside)?;
        if end > inputs.area {
            return Err(outside());
        }
        Ok((inputs.begin + offset, length))
    }

    fn expect(&self, graph: Graph, index: usize, length: usize) -> Result<(), String> {
        let tensor = self.interpreter.input(graph, index);
        let expected = tensor.map_or(0, |t| t.byte_size());
        if expected == length {
            return Ok(());
        }
        Err(format!(
            "input {index} has {length} bytes; the model needs {expected} for this shape"
        ))
    }

    /// Lets the model read one input where it lies.
    fn bind(&mut self, graph: Graph, index: usize, inputs: Inputs<'_>) -> Result<(), String> {
        let (place, length) = Self::place(index, inputs)?;
        self.expect(graph, index, length)?;
        if length == 0 {
            return Ok(());
        }
        let start = inputs.memory.at(place, length).ok_or_else(outside)?;
        // SAFETY: in the mapping, which the caller keeps until this job is answered; the next job binds every
        // such input anew before it allocates or invokes.
        unsafe { self.interpreter.bind_input(index, start, length) }.map_err(text)
    }

    /// Copies one input into the model's own memory.
    fn copy(&mut self, graph: Graph, index: usize, inputs: Inputs<'_>) -> Result<(), String> {
        let (place, length) = Self::place(index, inputs)?;
        // SAFETY: input memory is not written in this process.
        let bytes = unsafe { inputs.memory.bytes(place, length) }.ok_or_else(outside)?;
        let missing = || format!("input {index} has no memory in the model");
        let mut tensor = self
            .interpreter
            .input_mut(graph, index)
            .ok_or_else(missing)?;
        if tensor.datatype() == Some(Datatype::Bytes) {
            let shape = inputs.tensors[index].shape;
            let shape: Vec<i64> = shape.dimensions().iter().map(|&d| d.into()).collect();
            let written = strings::check(bytes, &shape)
                .map_err(|error| error.to_string())
                .and_then(|()| tensor.write_strings(bytes));
            return written.map_err(|reason| format!("input {index}: {reason}"));
        }
        let written = tensor.write(bytes);
        self.expect(graph, index, length)?;
        written.then_some(()).ok_or_else(missing)
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

    /// Copies the outputs, or some rows of them, into the area of the slot or into memory of their own.
    pub fn collect(
        &self,
        graph: Graph,
        rows: Option<Rows>,
        memory: &Memory,
        begin: usize,
        area: usize,
    ) -> Result<Outputs, String> {
        let count = self.interpreter.output_count(graph);
        let mut tensors = Vec::with_capacity(count);
        let mut values = Vec::with_capacity(count);
        let outputs: Vec<_> = (0..count)
            .map(|index| self.interpreter.output(graph, index))
            .collect();
        let mut end = 0usize;
        for (index, tensor) in outputs.iter().enumerate() {
            let tensor = tensor.as_ref();
            let tensor = tensor.ok_or_else(|| format!("output {index} is missing"))?;
            let shape = Shape::new(tensor.shape().map(i64::from))
                .filter(|_| tensor.rank() <= edgeward_models::manifest::MAX_DIMENSIONS)
                .ok_or_else(|| format!("output {index} has too many dimensions"))?;
            let bytes = tensor.values();
            let cut = |bytes| match rows {
                Some(rows) => rows.cut(shape, bytes),
                None => Ok((shape, bytes)),
            };
            let (shape, bytes) = bytes
                .and_then(cut)
                .map_err(|reason| format!("output {index}: {reason}"))?;
            tensors.push(TensorRef {
                offset: end as u64,
                length: bytes.len() as u64,
                shape,
            });
            end = aligned(bytes.len())
                .and_then(|l| l.checked_add(end))
                .ok_or_else(|| format!("output {index} is too large"))?;
            values.push(bytes);
        }
        let own = if end > area {
            let made = Memory::create("edgeward-answer", end);
            Some(made.map_err(|e| format!("no memory for an answer of {end} bytes: {e}"))?)
        } else {
            None
        };
        let (target, begin) = own.as_ref().map_or((memory, begin), |(_, own)| (own, 0));
        for (index, (place, bytes)) in tensors.iter().zip(&values).enumerate() {
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

/// Refuses shapes at which an output would hold nothing: so far from what the graph was made for, kernels were seen
/// to end the process.
pub fn refuse_empty(interpreter: &Interpreter, graph: Graph) -> Result<(), String> {
    match interpreter.planned_empty(graph) {
        None => Ok(()),
        Some(index) => Err(format!("output {index} would be empty at these shapes")),
    }
}

fn outside() -> String {
    "an input lies outside of its memory".to_owned()
}

fn text(error: TfliteError) -> String {
    error.to_string()
}
