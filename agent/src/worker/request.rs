//! One request, in memory shared with the worker.
//!
//! [`Slot`] is the permit to run and the memory to fill at once; what comes of it is an [`Answer`].
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use edgeward_models::manifest::MAX_REQUEST_BYTES;

use super::answer::Answer;
use super::memory::{Memory, aligned};
use super::slots::SLACK;
use super::supervisor::{Lease, OwnMemory};
use super::wire::{self, Outcome, Shape, Stream, TensorRef};
use super::{Worker, WorkerError};

/// Memory for one request, shared with the worker. Given back when this and any [`Answer`] made from it are
/// dropped *and* the worker has finished with it.
pub struct Slot {
    lease: Arc<Lease>,
    own_memory: Option<Arc<OwnMemory>>,
    inputs: Vec<TensorRef>,
    /// Where the next input begins in its area.
    next: usize,
    stream: Stream,
    joins: bool,
    /// Keeps the process running while a request is in it.
    worker: Worker,
}

/// What a request brought, to be read when it has been answered: the interpreter may still be at it before. The
/// worker has written to this memory if it is hostile, so only a comparison may rest on it.
pub struct KeptInputs {
    lease: Arc<Lease>,
    own_memory: Option<Arc<OwnMemory>>,
    inputs: Vec<TensorRef>,
}

impl KeptInputs {
    /// Of all inputs.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.length as usize).sum()
    }

    pub fn filled(&self, index: usize) -> &[u8] {
        filled(
            &self.lease,
            self.own_memory.as_deref(),
            self.inputs.get(index),
        )
    }

    pub fn shape(&self, index: usize) -> Vec<i64> {
        shape(self.inputs.get(index))
    }
}

fn filled<'a>(
    lease: &'a Lease,
    own_memory: Option<&'a OwnMemory>,
    input: Option<&TensorRef>,
) -> &'a [u8] {
    let Some(input) = input else {
        return &[];
    };
    let (memory, begin, _) = lease.input_area(own_memory);
    let (offset, length) = (begin + input.offset as usize, input.length as usize);
    // SAFETY: input memory is written only through `Slot::input`, which needs the slot by unique reference and is out
    // of reach once it was handed over; and a slot is not given to another request while its lease lives.
    unsafe { memory.bytes(offset, length) }.unwrap_or(&[])
}

fn shape(input: Option<&TensorRef>) -> Vec<i64> {
    dimensions(input).collect()
}

fn dimensions(input: Option<&TensorRef>) -> impl Iterator<Item = i64> {
    let dimensions = input.map_or(&[][..], |input| input.shape.dimensions());
    dimensions.iter().map(|&d| d.into())
}

impl Slot {
    /// `bytes`: all inputs together.
    pub(super) fn new(
        worker: &Worker,
        lease: Arc<Lease>,
        bytes: usize,
    ) -> Result<Self, WorkerError> {
        let supervisor = &lease.supervisor;
        let inputs = supervisor
            .manifest
            .signatures
            .iter()
            .map(|s| s.inputs.len());
        let padding = inputs.max().unwrap_or(1) * super::memory::ALIGNMENT + SLACK;
        let needed = aligned(bytes).and_then(|b| b.checked_add(padding));
        let needed = needed.ok_or(WorkerError::TooLarge {
            needed: bytes as u64,
            limit: MAX_REQUEST_BYTES,
        })?;
        let own_memory = if needed > supervisor.layout.input_area {
            let (descriptor, memory) = Memory::create("edgeward-request", needed)
                .map_err(|e| WorkerError::Start(format!("memory for a large request: {e}")))?;
            Some(Arc::new(OwnMemory { descriptor, memory }))
        } else {
            None
        };
        Ok(Self {
            lease,
            own_memory,
            inputs: Vec::with_capacity(2),
            next: 0,
            stream: Stream::default(),
            joins: worker.joins(),
            worker: worker.clone(),
        })
    }

    /// Reserves the next input, 64-byte aligned, and returns its memory to be filled. Inputs are reserved in
    /// the signature's order. `shape` has no free dimension any more.
    pub fn input(&mut self, shape: &[i64], bytes: usize) -> Result<&mut [u8], WorkerError> {
        if self.inputs.len() == wire::MAX_TENSORS {
            return Err(WorkerError::Invoke("it brings too many inputs".to_owned()));
        }
        let shape = Shape::new(shape.iter().copied()).ok_or_else(|| {
            WorkerError::Invoke(format!("no tensor can have the shape {shape:?}"))
        })?;
        let (memory, begin, area) = self.lease.input_area(self.own_memory.as_deref());
        let too_large = || WorkerError::TooLarge {
            needed: (self.next as u64).saturating_add(bytes as u64),
            limit: area as u64,
        };
        let end = aligned(bytes)
            .and_then(|b| b.checked_add(self.next))
            .filter(|&end| end + SLACK <= area)
            .ok_or_else(too_large)?;
        // SAFETY: the range is within this slot's inputs and overlaps no other input; `&mut self` keeps
        // everyone else in this process away from it until it is handed over.
        let slice = unsafe { memory.bytes_mut(begin + self.next, bytes) }.ok_or_else(too_large)?;
        self.inputs.push(TensorRef {
            offset: self.next as u64,
            length: bytes as u64,
            shape,
        });
        self.next = end;
        Ok(slice)
    }

    /// The bytes that were reserved for an input, as they were filled.
    pub fn filled(&self, index: usize) -> &[u8] {
        filled(
            &self.lease,
            self.own_memory.as_deref(),
            self.inputs.get(index),
        )
    }

    /// The shape that an input was reserved with.
    pub fn shape(&self, index: usize) -> Vec<i64> {
        shape(self.inputs.get(index))
    }

    pub fn has_shape(&self, index: usize, shape: &[i64]) -> bool {
        dimensions(self.inputs.get(index)).eq(shape.iter().copied())
    }

    /// Keeps the inputs, and with them the slot, beyond the answer.
    pub fn keep(&self) -> KeptInputs {
        KeptInputs {
            lease: self.lease.clone(),
            own_memory: self.own_memory.clone(),
            inputs: self.inputs.clone(),
        }
    }

    /// Runs on the interpreter of one stream instead of any.
    pub fn in_stream(&mut self, stream: Stream) {
        self.stream = stream;
    }

    /// Runs by itself, also where requests are joined.
    pub fn alone(&mut self) {
        self.joins = false;
    }

    /// SHA-256 over all inputs reserved so far (for the table of inputs that crashed).
    pub fn input_digest(&self) -> edgeward_models::Digest {
        self.lease.digest(&self.inputs, self.own_memory.as_deref())
    }

    /// Runs the model (`signature`: index into the manifest). At `deadline` it answers `Deadline` whatever
    /// the device is doing; dropping the future cancels what has not started.
    pub async fn invoke(self, signature: usize, deadline: Instant) -> Result<Answer, WorkerError> {
        let supervisor = Arc::clone(&self.lease.supervisor);
        let outputs = supervisor.manifest.signatures.get(signature);
        let outputs = &outputs
            .ok_or_else(|| WorkerError::Invoke(format!("there is no signature {signature}")))?
            .outputs;
        let submitted = Instant::now();
        if submitted >= deadline {
            return Err(WorkerError::Deadline);
        }
        let running = async {
            let (pending, answer) = supervisor
                .submit(
                    &self.lease,
                    signature as u32,
                    self.stream,
                    self.joins,
                    self.inputs,
                    self.own_memory,
                )
                .await?;
            let answer = answer.await.map_err(|_| supervisor.died_error());
            pending.finish();
            answer
        };
        // Dropping `running` at the deadline drops its `Pending`, which cancels.
        let (outcome, parcel) = tokio::time::timeout_at(deadline.into(), running)
            .await
            .map_err(|_| WorkerError::Deadline)??;
        drop(self.worker);
        match outcome {
            Outcome::Done(done) => Answer::new(self.lease, outputs, done, parcel, submitted),
            Outcome::Failed(reason) => Err(WorkerError::Invoke(reason)),
            // Nobody but the deadline cancels, and then nobody waits here.
            Outcome::Cancelled => Err(WorkerError::Deadline),
        }
    }
}
