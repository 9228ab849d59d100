//! One interpreter: the model's graph with its memory and, maybe, a delegate.
//!
//! It is built unallocated, so that free dimensions can be given first: one published model crashes the
//! process when it is allocated at its placeholder shape. Inputs are read in place from memory of the caller
//! ([`Interpreter::bind_input`]). After a failed call the outputs are stale; callers must not read them.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use edgefirst_tflite_sys::TfLiteInterpreter;
use edgefirst_tflite_sys::experimental_ffi::{
    TfLiteCustomAllocation, kTfLiteCustomAllocationFlagsNone,
};

use super::delegate::take_plugin_errors;
use super::log::{self, Log};
use super::signature::SignatureRunner;
use super::spy::Spy;
use super::{Delegate, Library, Model, Status, Tensor, TfliteError};

/// An interpreter. It may move between threads but is used by one at a time.
pub struct Interpreter {
    /// Dropped before the interpreter that they belong to.
    signatures: Vec<SignatureRunner>,
    handle: Arc<Handle>,
}

/// Which of the model's functions is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graph {
    /// The main graph, by its own order of tensors.
    Main,
    /// The n-th signature that was added.
    Signature(usize),
}

/// How the graph was divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nodes {
    pub delegated: u32,
    pub total: u32,
}

/// Stops the running invoke of one interpreter, from any thread.
#[derive(Clone)]
pub struct Canceller {
    handle: Arc<Handle>,
}

pub(super) struct Handle {
    pub(super) raw: NonNull<TfLiteInterpreter>,
    // `drop` deletes the interpreter; then these go, in this order.
    delegate: Option<Delegate>,
    spy: Box<Spy>,
    pub(super) log: Box<Log>,
    pub(super) model: Arc<Model>,
}

// SAFETY: only `Interpreter`, which is not Clone, works with the raw interpreter and its signatures; a
// `Canceller` calls nothing but `TfLiteInterpreterCancel`, which may be called from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by this library, deleted once, before what it points to.
        unsafe {
            self.model
                .library()
                .sys
                .TfLiteInterpreterDelete(self.raw.as_ptr());
        }
    }
}

impl Handle {
    /// A status as a result, with the text that was reported meanwhile.
    pub(super) fn checked(&self, doing: &'static str, status: u32) -> Result<(), TfliteError> {
        let status = Status::of(status);
        if status == Status::Ok {
            return Ok(());
        }
        let said = self.log.take_or(String::new);
        let reason = match status {
            _ if said.is_empty() => status.words(),
            // TFLite names the operator, not what its absence means.
            Status::UnresolvedOps => format!("{}: {said}", status.words()),
            _ => said,
        };
        Err(TfliteError::Call {
            doing,
            status,
            reason,
        })
    }
}

impl Interpreter {
    /// Builds the graph and lets the delegate take its nodes. Tensors are not allocated yet.
    pub fn build(
        model: &Arc<Model>,
        delegate: Option<Delegate>,
        threads: usize,
    ) -> Result<Self, TfliteError> {
        let sys = &model.library().sys;
        let (log, spy) = (Log::new(), Spy::new());
        take_plugin_errors();
        // SAFETY: every function was found when the library was opened. The options live for these calls;
        // log, spy, delegate and model outlive the interpreter (`Handle`).
        let raw = unsafe {
            let options = sys.TfLiteInterpreterOptionsCreate();
            if options.is_null() {
                return Err(TfliteError::Interpreter("out of memory".to_owned()));
            }
            let threads = i32::try_from(threads).unwrap_or(1).max(1);
            sys.TfLiteInterpreterOptionsSetNumThreads(options, threads);
            sys.TfLiteInterpreterOptionsSetErrorReporter(
                options,
                Some(log::report),
                log.user_data(),
            );
            sys.TfLiteInterpreterOptionsEnableCancellation(options, true);
            if let Some(delegate) = &delegate {
                sys.TfLiteInterpreterOptionsAddDelegate(options, delegate.as_ptr());
            }
            sys.TfLiteInterpreterOptionsAddDelegate(options, spy.as_delegate());
            let raw = sys.TfLiteInterpreterCreate(model.raw.as_ptr(), options);
            sys.TfLiteInterpreterOptionsDelete(options);
            raw
        };
        let Some(raw) = NonNull::new(raw) else {
            let plugin = take_plugin_errors();
            let mut reason = log.take_or(|| "it gave no reason".to_owned());
            if !plugin.is_empty() {
                reason = format!("{reason}; the delegate said: {plugin}");
            }
            return Err(TfliteError::Interpreter(reason));
        };
        log.clear();
        Ok(Self {
            signatures: Vec::new(),
            handle: Arc::new(Handle {
                raw,
                delegate,
                spy,
                log,
                model: Arc::clone(model),
            }),
        })
    }

    fn library(&self) -> &Library {
        self.handle.model.library()
    }

    fn raw(&self) -> *mut TfLiteInterpreter {
        self.handle.raw.as_ptr()
    }

    /// Whether a delegate other than the counting one was added.
    pub fn has_delegate(&self) -> bool {
        self.handle.delegate.is_some()
    }

    pub fn nodes(&self) -> Nodes {
        let (delegated, total) = self.handle.spy.counts();
        Nodes { delegated, total }
    }

    pub fn canceller(&self) -> Canceller {
        Canceller {
            handle: Arc::clone(&self.handle),
        }
    }

    /// Makes one of the model's named functions callable. `inputs` and `outputs` are its tensors' names, in
    /// the order in which they will be numbered.
    pub fn add_signature(
        &mut self,
        key: &str,
        inputs: &[&str],
        outputs: &[&str],
    ) -> Result<Graph, TfliteError> {
        let runner = SignatureRunner::new(&self.handle, key, inputs, outputs)?;
        self.signatures.push(runner);
        Ok(Graph::Signature(self.signatures.len() - 1))
    }

    pub fn input_count(&self, graph: Graph) -> usize {
        match graph {
            // SAFETY: the interpreter lives.
            Graph::Main => usize::try_from(unsafe {
                self.library()
                    .sys
                    .TfLiteInterpreterGetInputTensorCount(self.raw())
            })
            .unwrap_or(0),
            Graph::Signature(n) => self.signatures.get(n).map_or(0, |s| s.inputs.len()),
        }
    }

    pub fn output_count(&self, graph: Graph) -> usize {
        match graph {
            // SAFETY: the interpreter lives.
            Graph::Main => usize::try_from(unsafe {
                self.library()
                    .sys
                    .TfLiteInterpreterGetOutputTensorCount(self.raw())
            })
            .unwrap_or(0),
            Graph::Signature(n) => self.signatures.get(n).map_or(0, |s| s.outputs.len()),
        }
    }

    pub fn input(&self, graph: Graph, index: usize) -> Option<Tensor<'_>> {
        if index >= self.input_count(graph) {
            return None;
        }
        let raw = match graph {
            // SAFETY: the index is in range.
            Graph::Main => unsafe {
                self.library()
                    .sys
                    .TfLiteInterpreterGetInputTensor(self.raw(), index as i32)
            },
            Graph::Signature(n) => self.signatures.get(n)?.input(index)?,
        };
        // SAFETY: the tensor lives in the interpreter, whose changing methods take it by unique reference.
        (!raw.is_null()).then(|| unsafe { Tensor::new(raw, self.library()) })
    }

    /// To write an input that is not bound to memory of the caller.
    pub fn input_mut(&mut self, graph: Graph, index: usize) -> Option<Tensor<'_>> {
        self.input(graph, index)
    }

    pub fn output(&self, graph: Graph, index: usize) -> Option<Tensor<'_>> {
        if index >= self.output_count(graph) {
            return None;
        }
        let raw = match graph {
            // SAFETY: the index is in range.
            Graph::Main => unsafe {
                self.library()
                    .sys
                    .TfLiteInterpreterGetOutputTensor(self.raw(), index as i32)
            },
            Graph::Signature(n) => self.signatures.get(n)?.output(index)?,
        };
        // SAFETY: as for `input`.
        (!raw.is_null()).then(|| unsafe { Tensor::new(raw, self.library()) })
    }

    /// Gives an input its dimensions. [`Self::allocate`] must follow, and inputs that were bound must be
    /// bound again before it.
    pub fn resize_input(
        &mut self,
        graph: Graph,
        index: usize,
        shape: &[i32],
    ) -> Result<(), TfliteError> {
        if index >= self.input_count(graph) {
            return Err(no_such_input());
        }
        let status = match graph {
            // SAFETY: the index is in range and the shape as long as it says.
            Graph::Main => unsafe {
                self.library().sys.TfLiteInterpreterResizeInputTensor(
                    self.raw(),
                    index as i32,
                    shape.as_ptr(),
                    shape.len() as i32,
                )
            },
            Graph::Signature(n) => self.signature(n)?.resize_input(index, shape),
        };
        self.handle.checked("the shape was not accepted", status)
    }

    /// Lets the main graph read an input in place from `memory`, until the next call for this input.
    ///
    /// # Safety
    /// `memory` must hold `length` readable and writable bytes whenever the interpreter is allocated or
    /// invoked until the input is bound elsewhere.
    pub unsafe fn bind_input(
        &mut self,
        index: usize,
        memory: NonNull<u8>,
        length: usize,
    ) -> Result<(), TfliteError> {
        if index >= self.input_count(Graph::Main) {
            return Err(no_such_input());
        }
        let functions = &self.library().experimental;
        let allocation = TfLiteCustomAllocation {
            data: memory.as_ptr().cast::<c_void>(),
            bytes: length,
        };
        // SAFETY: the index is in range, and the caller vouches for the memory.
        let status = unsafe {
            let tensor = (functions.get_input_tensor_index)(self.raw(), index as i32);
            (functions.set_custom_allocation_for_tensor)(
                self.raw(),
                tensor as c_int,
                &raw const allocation,
                kTfLiteCustomAllocationFlagsNone,
            )
        };
        self.handle
            .checked("the input memory was not accepted", status)
    }

    /// Plans and allocates all tensors for the current shapes.
    pub fn allocate(&mut self, graph: Graph) -> Result<(), TfliteError> {
        let status = match graph {
            // SAFETY: the interpreter lives and is ours alone (`&mut`).
            Graph::Main => unsafe {
                self.library()
                    .sys
                    .TfLiteInterpreterAllocateTensors(self.raw())
            },
            Graph::Signature(n) => self.signature(n)?.allocate(),
        };
        self.handle
            .checked("the model could not be prepared", status)
    }

    /// The first output that holds nothing at the shapes it was allocated for.
    pub fn planned_empty(&self, graph: Graph) -> Option<usize> {
        let empty = |&index: &usize| {
            let output = self.output(graph, index);
            output.is_some_and(|tensor| tensor.is_planned_empty())
        };
        (0..self.output_count(graph)).find(empty)
    }

    /// Runs the graph once.
    pub fn invoke(&mut self, graph: Graph) -> Result<(), TfliteError> {
        let status = match graph {
            // SAFETY: as for `allocate`. What is not allocated answers with an error status.
            Graph::Main => unsafe { self.library().sys.TfLiteInterpreterInvoke(self.raw()) },
            Graph::Signature(n) => self.signature(n)?.invoke(),
        };
        self.handle.checked("it failed while it ran", status)
    }

    fn signature(&self, number: usize) -> Result<&SignatureRunner, TfliteError> {
        self.signatures.get(number).ok_or_else(no_such_input)
    }
}

fn no_such_input() -> TfliteError {
    TfliteError::Call {
        doing: "the model has fewer inputs",
        status: Status::Error,
        reason: "the request does not fit the model".to_owned(),
    }
}

impl Canceller {
    /// Asks the running invoke to stop before its next node. Without one, nothing happens.
    pub fn cancel(&self) {
        let library = self.handle.model.library();
        // SAFETY: the handle keeps the interpreter alive; this function may be called from any thread.
        unsafe {
            library
                .sys
                .TfLiteInterpreterCancel(self.handle.raw.as_ptr())
        };
    }
}
