//! What came of one request, where the worker wrote it.
//!
//! Whatever the worker says of offsets, lengths, shapes and strings is checked here before anyone reads a byte.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::manifest::{Datatype, MAX_REQUEST_BYTES, TensorSpec};

use super::WorkerError;
use super::memory::Memory;
use super::supervisor::Lease;
use super::wire::{self, Batch, TensorRef};
use crate::strings;

/// The outputs of one request, in the signature's order, still in shared memory.
pub struct Answer {
    outputs: Vec<Output>,
    own_memory: Option<Memory>,
    queue_time: Duration,
    invoke_time: Duration,
    batch: Batch,
    lease: Arc<Lease>,
}

pub struct Output {
    /// From the beginning of the memory it lies in.
    pub offset: usize,
    pub length: usize,
    pub shape: Vec<i64>,
}

impl Answer {
    pub(super) fn new(
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
            batch: done.batch,
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

    /// Moves all of it out; what is left has no outputs.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            outputs: std::mem::take(&mut self.outputs),
            own_memory: self.own_memory.take(),
            lease: self.lease.clone(),
            ..*self
        }
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

    /// Of the whole invoke, where it answered several requests.
    pub fn invoke_time(&self) -> Duration {
        self.invoke_time
    }

    /// This request's share of the invoke, by rows.
    pub fn share_of_invoke(&self) -> Duration {
        let rows = self.shape(0).first().copied().unwrap_or(1);
        match (self.batch.size, u32::try_from(rows)) {
            (0, _) | (_, Err(_)) => self.invoke_time,
            (size, Ok(rows)) => self.invoke_time * rows.min(size) / size,
        }
    }

    pub fn batch(&self) -> Batch {
        self.batch
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
    use crate::worker::wire::Shape;

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
