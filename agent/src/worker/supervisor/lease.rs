//! A taken slot and its input memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use edgeward_models::Digest;
use sha2::Digest as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{Supervisor, lock};
use crate::worker::memory::Memory;
use crate::worker::wire::TensorRef;

/// A slot that is taken. Given back when the caller and the worker both let go of it.
pub(in crate::worker) struct Lease {
    pub(in crate::worker) supervisor: Arc<Supervisor>,
    pub(in crate::worker) slot: usize,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The last one used is the next one given: its memory is warm, and idle slots never get any.
        lock(&self.supervisor.free).push(self.slot);
    }
}

/// The memory of a request that is larger than a slot.
pub(in crate::worker) struct OwnMemory {
    pub(in crate::worker) descriptor: OwnedFd,
    pub(in crate::worker) memory: Memory,
}

impl Lease {
    /// The memory that inputs lie in, where their area begins, and how long it is.
    pub(in crate::worker) fn input_area<'a>(
        &'a self,
        own: Option<&'a OwnMemory>,
    ) -> (&'a Memory, usize, usize) {
        match own {
            Some(own) => (&own.memory, 0, own.memory.length()),
            None => {
                let layout = &self.supervisor.layout;
                let begin = layout.inputs(self.slot).unwrap_or(0);
                (&self.supervisor.memory, begin, layout.input_area)
            }
        }
    }

    /// SHA-256 over all inputs.
    #[allow(unsafe_code)]
    pub(in crate::worker) fn digest(
        &self,
        inputs: &[TensorRef],
        own: Option<&OwnMemory>,
    ) -> Digest {
        let mut hasher = sha2::Sha256::new();
        let (memory, begin, _) = self.input_area(own);
        for input in inputs {
            let (offset, length) = (begin + input.offset as usize, input.length as usize);
            // SAFETY: input memory is written only through `Slot::input`, which needs the slot by unique
            // reference: not while it is being hashed, and never again after it was handed over.
            if let Some(bytes) = unsafe { memory.bytes(offset, length) } {
                hasher.update(bytes);
            }
        }
        Digest::from_bytes(hasher.finalize().into())
    }
}
