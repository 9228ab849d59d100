//! One request and its answer, in memory shared with the worker.
//!
//! [`Slot`] is the permit to run and the memory to fill at once; [`Answer`] reads the outputs where the
//! worker wrote them. Whatever the worker says of offsets, lengths and shapes is checked here before a byte
//! is read.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::manifest::{Datatype, MAX_REQUEST_BYTES, TensorSpec};

use super::memory::{Memory, aligned};
use super::slots::SLACK;
use super::supervisor::{Lease, OwnMemory};
use super::wire::{self, Outcome, Shape, Stream, TensorRef};
use super::{Worker, WorkerError};
use crate::strings;

/// Memory for one request, shared with the worker. Given back when this and any [`Answer`] made from it are
/// dropped *and* the worker has finished with it.
pub struct Slot {
    lease: Arc<Lease>,
    own_memory: Option<Arc<OwnMemory>>,
    inputs: Vec<TensorRef>,
    /// Where the next input begins in its area.
    next: usize,
    stream: Stream,
    /// Keeps the process running while a request is in it.
    worker: Worker,
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
        let Some(input) = self.inputs.get(index) else {
            return &[];
        };
        let (memory, begin, _) = self.lease.input_area(self.own_memory.as_deref());
        let (offset, length) = (begin + input.offset as usize, input.length as usize);
        // SAFETY: input memory is written only through `input`, which needs this by unique reference.
        unsafe { memory.bytes(offset, length) }.unwrap_or(&[])
    }

    /// The shape that an input was reserved with.
    pub fn shape(&self, index: usize) -> Vec<i64> {
        let input = self.inputs.get(index);
        let dimensions = input.map_or(&[][..], |input| input.shape.dimensions());
        dimensions.iter().map(|&d| d.into()).collect()
    }

    /// Runs on the interpreter of one stream instead of any.
    pub fn in_stream(&mut self, stream: Stream) {
        self.stream = stream;
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

/// The outputs of one request, in the signature's order, still in shared memory.
pub struct Answer {
    outputs: Vec<Output>,
    own_memory: Option<Memory>,
    queue_time: Duration,
    invoke_time: Duration,
    lease: Arc<Lease>,
}

pub struct Output {
    /// From the beginning of the memory it lies in.
    pub offset: usize,
    pub length: usize,
    pub shape: Vec<i64>,
}

impl Answer {
    fn new(
        lease: Arc<Lease>,
        specs: &[TensorSpec],
        done: wire::Done,
        parcel: Option<OwnedFd>,
        submitted: Instant,
    ) -> Result<Self, WorkerError> {
        let wrong = |what: String| WorkerError::Invoke(format!("its answer is wrong: {what}"));
        if done.outputs.len() != specs.len() {
            return Err(wrong(format!(
                "{} outputs instead of {}",
                done.outputs.len(),
                specs.len()
            )));
        }
        let layout = &lease.supervisor.layout;
        let (own_memory, begin, area) = if done.own_memory == 0 {
            let begin = layout.outputs(lease.slot).unwrap_or(0);
            (None, begin, layout.output_area)
        } else {
            let length = usize::try_from(done.own_memory)
                .ok()
                .filter(|&l| l as u64 <= 2 * MAX_REQUEST_BYTES)
                .ok_or_else(|| wrong("it is larger than any answer may be".to_owned()))?;
            let parcel = parcel.ok_or_else(|| wrong("its memory did not come along".to_owned()))?;
            let memory = Memory::map(parcel, length).map_err(|e| wrong(e.to_string()))?;
            (Some(memory), 0, length)
        };
        let outputs = specs.iter().zip(&done.outputs);
        let outputs = outputs
            .map(|(spec, output)| check(spec, output, begin, area).map_err(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        // The worker's times are its own claims: they cannot exceed what passed here.
        let passed = submitted.elapsed();
        let invoke_time = Duration::from_nanos(done.invoke_nanoseconds).min(passed);
        let queue_time = Duration::from_nanos(done.queue_nanoseconds).min(passed - invoke_time);
        let answer = Self {
            outputs,
            own_memory,
            queue_time,
            invoke_time,
            lease,
        };
        for (index, spec) in specs.iter().enumerate() {
            if spec.datatype == Datatype::Bytes {
                strings::check(answer.output(index), answer.shape(index))
                    .map_err(|error| wrong(format!("output {:?}: {error}", spec.name)))?;
            }
        }
        Ok(answer)
    }

    /// The bytes of an output; strings in the form of [`crate::strings`].
    pub fn output(&self, index: usize) -> &[u8] {
        let Some(output) = self.outputs.get(index) else {
            return &[];
        };
        let memory = self.own_memory.as_ref();
        let memory = memory.unwrap_or(&self.lease.supervisor.memory);
        // SAFETY: nobody in this process writes to output memory, ever.
        unsafe { memory.bytes(output.offset, output.length) }.unwrap_or(&[])
    }

    pub fn shape(&self, index: usize) -> &[i64] {
        self.outputs.get(index).map_or(&[], |o| &o.shape)
    }

    /// From handing over to the worker until an interpreter began.
    pub fn queue_time(&self) -> Duration {
        self.queue_time
    }

    pub fn invoke_time(&self) -> Duration {
        self.invoke_time
    }
}

/// An output that lies in its area, has the length that its shape says, and a shape that the manifest allows.
pub fn check(
    spec: &TensorSpec,
    output: &TensorRef,
    begin: usize,
    area: usize,
) -> Result<Output, String> {
    let name = &spec.name;
    let shape: Vec<i64> = output
        .shape
        .dimensions()
        .iter()
        .map(|&d| d.into())
        .collect();
    if !spec.allows_answer(&shape) {
        return Err(format!(
            "output {name:?} has the shape {shape:?}; the manifest says {:?}",
            spec.shape
        ));
    }
    let (offset, length) = (
        usize::try_from(output.offset).unwrap_or(usize::MAX),
        usize::try_from(output.length).unwrap_or(usize::MAX),
    );
    // How long strings are, they say themselves.
    if let Some(size) = spec.datatype.size()
        && output.shape.elements().and_then(|e| e.checked_mul(size)) != Some(length)
    {
        return Err(format!(
            "output {name:?} has {length} bytes for the shape {shape:?}"
        ));
    }
    if offset.checked_add(length).is_none_or(|end| end > area) {
        return Err(format!("output {name:?} lies outside of its memory"));
    }
    Ok(Output {
        offset: begin + offset,
        length,
        shape,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TensorSpec {
        TensorSpec {
            name: "y".to_owned(),
            datatype: Datatype::Fp32,
            shape: vec![-1, 3],
            quantization: None,
        }
    }

    fn output(offset: u64, length: u64, shape: [i64; 2]) -> TensorRef {
        TensorRef {
            offset,
            length,
            shape: Shape::new(shape).expect("shape"),
        }
    }

    #[test]
    fn outputs_that_lie_are_refused() {
        assert!(check(&spec(), &output(64, 24, [2, 3]), 128, 88).is_ok());
        assert!(
            check(&spec(), &output(65, 24, [2, 3]), 128, 88).is_err(),
            "beyond its area"
        );
        assert!(check(&spec(), &output(u64::MAX, 24, [2, 3]), 128, 88).is_err());
        assert!(
            check(&spec(), &output(0, 23, [2, 3]), 128, 88).is_err(),
            "length and shape differ"
        );
        assert!(
            check(&spec(), &output(0, 16, [1, 4]), 128, 88).is_err(),
            "not the manifest's shape"
        );
        let unranked = TensorSpec {
            shape: vec![],
            ..spec()
        };
        assert!(check(&unranked, &output(0, 24, [2, 3]), 128, 88).is_ok());
        assert!(check(&unranked, &output(0, 4, [2, 3]), 128, 88).is_err());
        let (max, most) = (i64::from(i32::MAX), u64::MAX);
        assert!(check(&spec(), &output(0, most, [max, 3]), 128, 88).is_err());
    }
}
