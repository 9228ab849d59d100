//! One interpreter at work: shapes, input memory and outputs of one job after another.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::tflite::{Canceller, Interpreter, Nodes, TfliteError};
use crate::worker::memory::{Memory, aligned};
use crate::worker::wire::{Shape, TensorRef};

/// An interpreter with what it was last prepared for.
pub struct Instance {
    interpreter: Interpreter,
    /// Inputs are read where the request put them, not copied.
    in_place: bool,
    /// The shapes that it is allocated for; `None` before the first time and after a failure.
    shapes: Option<Vec<Shape>>,
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
    pub fn new(interpreter: Interpreter, in_place: bool) -> Self {
        Self {
            interpreter,
            in_place,
            shapes: None,
        }
    }

    pub fn nodes(&self) -> Nodes {
        self.interpreter.nodes()
    }

    pub fn canceller(&self) -> Canceller {
        self.interpreter.canceller()
    }

    /// Makes the interpreter ready for these inputs, which lie in `memory` from `begin` on.
    pub fn prepare(
        &mut self,
        memory: &Memory,
        begin: usize,
        area: usize,
        inputs: &[TensorRef],
    ) -> Result<(), String> {
        if inputs.len() != self.interpreter.input_count() {
            return Err(format!(
                "the model takes {} inputs, not {}",
                self.interpreter.input_count(),
                inputs.len()
            ));
        }
        let same = self
            .shapes
            .as_ref()
            .is_some_and(|shapes| shapes.iter().eq(inputs.iter().map(|i| &i.shape)));
        if !same {
            // Until all of it has worked, nothing of it counts.
            self.shapes = None;
            for (index, input) in inputs.iter().enumerate() {
                self.interpreter
                    .resize_input(index, input.shape.dimensions())
                    .map_err(text)?;
            }
        }
        for (index, input) in inputs.iter().enumerate() {
            self.give(memory, begin, area, index, input, !same)?;
        }
        if !same {
            self.interpreter.allocate().map_err(text)?;
            if !self.in_place {
                for (index, input) in inputs.iter().enumerate() {
                    self.give(memory, begin, area, index, input, false)?;
                }
            }
            self.shapes = Some(inputs.iter().map(|i| i.shape).collect());
        }
        Ok(())
    }

    /// Binds or copies one input. `early`: the tensors are about to be allocated.
    fn give(
        &mut self,
        memory: &Memory,
        begin: usize,
        area: usize,
        index: usize,
        input: &TensorRef,
        early: bool,
    ) -> Result<(), String> {
        let outside = || "an input lies outside of its memory".to_owned();
        let (offset, length) = (
            usize::try_from(input.offset).map_err(|_| outside())?,
            usize::try_from(input.length).map_err(|_| outside())?,
        );
        if offset.checked_add(length).is_none_or(|end| end > area) {
            return Err(outside());
        }
        let tensor = self.interpreter.input(index);
        let expected = tensor.map_or(0, |t| t.byte_size());
        if expected != length {
            return Err(format!(
                "input {index} has {length} bytes; the model needs {expected} for this shape"
            ));
        }
        if length == 0 {
            return Ok(());
        }
        let start = memory.at(begin + offset, length).ok_or_else(outside)?;
        if self.in_place {
            // SAFETY: in the mapping, which the caller keeps until this job is answered; the next job binds
            // every input anew before it allocates or invokes.
            return unsafe { self.interpreter.bind_input(index, start, length) }.map_err(text);
        }
        if early {
            return Ok(());
        }
        // SAFETY: input memory is not written in this process.
        let bytes = unsafe { memory.bytes(begin + offset, length) }.ok_or_else(outside)?;
        let written = self
            .interpreter
            .input_mut(index)
            .is_some_and(|mut t| t.write(bytes));
        if written {
            Ok(())
        } else {
            Err(format!("input {index} has no memory in the model"))
        }
    }

    /// Runs the prepared inputs. `meant` says whether a cancellation was for this job.
    pub fn invoke(&mut self, meant: impl Fn() -> bool) -> Result<(), Stopped> {
        let mut retries = 0;
        loop {
            match self.interpreter.invoke() {
                Ok(()) => return Ok(()),
                Err(error) if error.is_cancelled() && meant() => return Err(Stopped::Cancelled),
                Err(error) if error.is_cancelled() && retries < MAX_RETRIES => retries += 1,
                Err(error) => return Err(Stopped::Failed(text(error))),
            }
        }
    }

    /// Copies the outputs into the area of the slot, or into memory of their own.
    pub fn collect(&self, memory: &Memory, begin: usize, area: usize) -> Result<Outputs, String> {
        let count = self.interpreter.output_count();
        let mut tensors = Vec::with_capacity(count);
        let mut end = 0usize;
        for index in 0..count {
            let tensor = self.interpreter.output(index);
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
            let tensor = self.interpreter.output(index);
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
