//! Where each request's bytes stand in the shared memory.
//!
//! At its beginning lies the job queue (`queue`), then the slots: each a header, an input area and an output
//! area. The header's first word says how far the request is: both sides move it with compare-and-swap, so a
//! request that was cancelled before its start never runs. Behind it lies the job's message, in whose place
//! the worker writes its reply. For the agent all of it is foreign: what it relies on is its own table.

use std::sync::atomic::{AtomicU32, Ordering};

use edgeward_models::Manifest;
use edgeward_models::manifest::{MAX_REQUEST_BYTES, TensorSpec};
use serde::{Deserialize, Serialize};

use super::memory::{ALIGNMENT, Memory, aligned};
use super::wire::MAX_MESSAGE_BYTES;

/// Bytes that kernels may read past the end of an input.
pub const SLACK: usize = ALIGNMENT;
/// More slots than this are a mistake in the configuration.
pub const MAX_SLOTS: usize = 4096;
/// Outputs beyond this get a memory of their own: the area is there for every slot.
const MAX_OUTPUT_AREA: u64 = 16 << 20;

/// The header of a slot: the word, the length of the message, and the message on lines of its own.
const HEADER: usize = ALIGNMENT + MAX_MESSAGE_BYTES;
const LENGTH: usize = size_of::<u32>();

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    Free = 0,
    Queued = 1,
    Running = 2,
    Done = 3,
    Cancelled = 4,
}

/// Sizes of a worker's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub slots: usize,
    pub input_area: usize,
    pub output_area: usize,
}

impl Layout {
    /// Slots for requests of `request_bytes` input bytes; the output areas grow with them as the shapes do.
    pub fn new(manifest: &Manifest, slots: usize, request_bytes: usize) -> Result<Self, String> {
        if slots == 0 || slots > MAX_SLOTS {
            return Err(format!("{slots} slots are not within 1 to {MAX_SLOTS}"));
        }
        let (mut inputs, mut input_bytes, mut output_bytes) = (0, 1, 0);
        for signature in &manifest.signatures {
            inputs = inputs.max(signature.inputs.len());
            input_bytes = input_bytes.max(total(&signature.inputs));
            output_bytes = output_bytes.max(total(&signature.outputs));
        }
        let times = (request_bytes as u64).div_ceil(input_bytes).max(1);
        let output_bytes = output_bytes
            .saturating_mul(times)
            .min(MAX_OUTPUT_AREA.max(output_bytes));
        let area = |bytes: u64| {
            let bytes = usize::try_from(bytes)
                .ok()
                .filter(|&b| b as u64 <= 4 * MAX_REQUEST_BYTES);
            bytes
                .and_then(aligned)
                .ok_or_else(|| "the tensors are larger than this device can map".to_owned())
        };
        let layout = Self {
            slots,
            // Each input may need padding to its alignment, and kernels may read a little past the last.
            input_area: area(request_bytes as u64)? + (inputs + 1) * ALIGNMENT + SLACK,
            output_area: area(output_bytes)?.max(ALIGNMENT),
        };
        layout
            .total()
            .ok_or_else(|| "all slots together are larger than this device can map".to_owned())?;
        Ok(layout)
    }

    fn stride(&self) -> Option<usize> {
        self.input_area
            .checked_add(self.output_area)?
            .checked_add(HEADER)
    }

    /// Bytes of the whole memory; `None` if this machine cannot address them.
    pub fn total(&self) -> Option<usize> {
        self.stride()?
            .checked_mul(self.slots)?
            .checked_add(self.queue_bytes())
            .filter(|&total| isize::try_from(total).is_ok())
    }

    fn header(&self, slot: usize) -> Option<usize> {
        if slot >= self.slots {
            return None;
        }
        self.stride()?
            .checked_mul(slot)?
            .checked_add(self.queue_bytes())
    }

    /// What the queue at the beginning takes.
    fn queue_bytes(&self) -> usize {
        super::queue::bytes(self.slots)
    }

    /// Where the input area of a slot begins.
    pub fn inputs(&self, slot: usize) -> Option<usize> {
        Some(self.header(slot)? + HEADER)
    }

    /// Where the output area of a slot begins.
    pub fn outputs(&self, slot: usize) -> Option<usize> {
        Some(self.inputs(slot)? + self.input_area)
    }

    /// The state word of a slot.
    pub fn word<'a>(&self, memory: &'a Memory, slot: usize) -> Option<&'a AtomicU32> {
        memory.word(self.header(slot)?)
    }

    /// Puts a job's or a reply's message into a slot's header.
    #[allow(unsafe_code)]
    pub fn write_message(&self, memory: &Memory, slot: usize, message: &[u8]) -> Option<()> {
        let header = self.header(slot)?;
        if message.len() > MAX_MESSAGE_BYTES {
            return None;
        }
        // SAFETY: a slot's message is written by whoever has the slot: in the agent the holder of its lease
        // before handing it over, in the worker the thread that runs its job. Nobody reads it meanwhile.
        let place = unsafe { memory.bytes_mut(header + ALIGNMENT, message.len()) }?;
        place.copy_from_slice(message);
        let length = memory.word(header + LENGTH)?;
        length.store(message.len() as u32, Ordering::Relaxed);
        Some(())
    }

    /// Copies a slot's message out: what is parsed must not change under the parser.
    #[allow(unsafe_code)]
    pub fn read_message<'a>(
        &self,
        memory: &Memory,
        slot: usize,
        buffer: &'a mut [u8; MAX_MESSAGE_BYTES],
    ) -> Option<&'a [u8]> {
        let header = self.header(slot)?;
        let length = memory.word(header + LENGTH)?.load(Ordering::Relaxed) as usize;
        let target = buffer.get_mut(..length)?;
        // SAFETY: see `write_message`. The other process may write all the same, if it is hostile; then the
        // copy is of whatever bytes, which is what a parser of foreign bytes expects.
        let message = unsafe { memory.bytes(header + ALIGNMENT, length) }?;
        target.copy_from_slice(message);
        Some(target)
    }

    pub fn set(&self, memory: &Memory, slot: usize, state: State) {
        if let Some(word) = self.word(memory, slot) {
            word.store(state as u32, Ordering::Release);
        }
    }

    pub fn is(&self, memory: &Memory, slot: usize, state: State) -> bool {
        self.word(memory, slot)
            .is_some_and(|word| word.load(Ordering::Acquire) == state as u32)
    }

    /// Moves a slot from one state to another; false if it was in neither the first nor our memory.
    pub fn swap(&self, memory: &Memory, slot: usize, from: State, to: State) -> bool {
        self.word(memory, slot).is_some_and(|word| {
            word.compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }
}

fn total(tensors: &[TensorSpec]) -> u64 {
    tensors
        .iter()
        .map(|tensor| tensor.room().saturating_add(ALIGNMENT as u64))
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            slots: 3,
            input_area: 256,
            output_area: 128,
        }
    }

    #[test]
    fn slots_do_not_overlap_and_stay_in_the_memory() {
        let layout = layout();
        let total = layout.total().expect("total");
        let mut last = layout.queue_bytes();
        for slot in 0..3 {
            let (header, inputs, outputs) = (
                layout.header(slot).expect("in"),
                layout.inputs(slot).expect("in"),
                layout.outputs(slot).expect("in"),
            );
            assert!(header >= last && inputs == header + HEADER && outputs == inputs + 256);
            assert!(inputs % ALIGNMENT == 0 && outputs % ALIGNMENT == 0);
            last = outputs + 128;
        }
        assert_eq!(last, total);
        assert!(layout.inputs(3).is_none());
    }

    #[test]
    fn messages_are_copied_whole_or_not_at_all() {
        let layout = layout();
        let total = layout.total().expect("total");
        let (_descriptor, memory) = Memory::create("test", total).expect("memory");
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        layout.write_message(&memory, 2, b"hello").expect("written");
        let message = layout.read_message(&memory, 2, &mut buffer);
        assert_eq!(message, Some(&b"hello"[..]));
        let header = layout.header(2).expect("in");
        let length = memory.word(header + LENGTH).expect("word");
        length.store(MAX_MESSAGE_BYTES as u32 + 1, Ordering::Relaxed);
        assert_eq!(layout.read_message(&memory, 2, &mut buffer), None);
        let long = [0; MAX_MESSAGE_BYTES + 1];
        assert_eq!(layout.write_message(&memory, 2, &long), None);
    }

    #[test]
    fn a_cancelled_slot_is_not_started() {
        let layout = layout();
        let total = layout.total().expect("total");
        let (_descriptor, memory) = Memory::create("test", total).expect("memory");
        layout.set(&memory, 1, State::Queued);
        assert!(layout.swap(&memory, 1, State::Queued, State::Cancelled));
        assert!(!layout.swap(&memory, 1, State::Queued, State::Running));
        assert!(layout.is(&memory, 1, State::Cancelled));
        assert!(!layout.swap(&memory, 7, State::Free, State::Queued));
    }
}
