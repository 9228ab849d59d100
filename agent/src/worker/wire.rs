//! The messages between agent and worker.
//!
//! Jobs and replies are small binary messages (little-endian, fixed fields, then a list of tensors) in shared
//! memory; set-up and control messages are JSON over a socket. Neither side trusts the other's lengths: a message that does not parse to
//! its last byte is refused whole, and offsets are only numbers until they were checked against the memory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use edgeward_models::manifest::{MAX_DIMENSIONS, Signature};
use serde::{Deserialize, Serialize};

use super::cache::DriverCache;
use super::slots::Layout;

mod codec;

use codec::{Reader, encode_tensors};

/// The most inputs or outputs of a signature.
pub const MAX_TENSORS: usize = 64;
/// The longest job or reply: 64 tensors of 8 dimensions, or an error text. With its header just a page.
pub const MAX_MESSAGE_BYTES: usize = 4096 - super::memory::ALIGNMENT;
/// The longest control message.
pub const MAX_CONTROL_BYTES: usize = 32 << 10;
/// The longest set-up document (a manifest's signatures are most of it).
pub const MAX_SETUP_BYTES: usize = 4 << 20;
/// Error texts are cut here.
const MAX_TEXT_BYTES: usize = 3 << 10;

/// What a worker must know, sent once, before anything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    pub library: PathBuf,
    pub delegate: DelegateSetup,
    pub signatures: Vec<Signature>,
    pub layout: Layout,
    pub instances: usize,
    pub threads: usize,
    pub memory_limit_bytes: u64,
    pub best_effort: bool,
    /// Golden vectors will bring the real dimensions: free ones need not be tried at 1 first.
    pub golden: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DelegateSetup {
    Builtin,
    Xnnpack,
    Plugin(PluginSetup),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginSetup {
    pub library: PathBuf,
    pub options: BTreeMap<String, String>,
    pub read: Vec<PathBuf>,
    pub devices: Vec<PathBuf>,
    pub cache: Option<DriverCache>,
}

/// Agent to worker, over the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// Put on the second filter.
    Seal,
    /// Stop a running job between nodes.
    Cancel(u64),
}

/// Worker to agent, over the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The sandbox is on; the text says what of it is missing. From here on failures are the model's.
    Sandboxed {
        missing: Option<String>,
    },
    /// The device's fault: no library, no sandbox.
    CannotStart {
        reason: String,
    },
    /// The model's or the delegate's fault.
    Refused {
        reason: String,
    },
    Ready {
        delegated_nodes: u32,
        total_nodes: u32,
        /// Answers may depend on the questions before.
        keeps_state: bool,
    },
    Sealed,
    CannotSeal {
        reason: String,
    },
}

/// Dimensions of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    rank: u8,
    dimensions: [i32; MAX_DIMENSIONS],
}

impl Shape {
    /// `None`: more than [`MAX_DIMENSIONS`] dimensions, or one that is negative or over 31 bits.
    pub fn new(dimensions: impl IntoIterator<Item = i64>) -> Option<Self> {
        let mut shape = Self::default();
        for dimension in dimensions {
            let place = shape.dimensions.get_mut(usize::from(shape.rank))?;
            *place = i32::try_from(dimension).ok().filter(|&d| d >= 0)?;
            shape.rank += 1;
        }
        Some(shape)
    }

    pub fn dimensions(&self) -> &[i32] {
        &self.dimensions[..usize::from(self.rank)]
    }

    /// Elements; `None` on overflow.
    pub fn elements(&self) -> Option<usize> {
        self.dimensions()
            .iter()
            .try_fold(1usize, |all, &d| all.checked_mul(usize::try_from(d).ok()?))
    }
}

/// One tensor's place, relative to the area it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorRef {
    pub offset: u64,
    pub length: u64,
    pub shape: Shape,
}

/// Which interpreter of a model that keeps state a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream {
    /// 0: none in particular.
    pub number: u32,
    /// A new interpreter, whatever the number meant before.
    pub begin: bool,
    /// The interpreter is not needed any more.
    pub end: bool,
}

/// Run a slot's inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: u64,
    pub slot: u32,
    pub signature: u32,
    pub stream: Stream,
    /// Monotonic clock when it was handed over.
    pub sent_at: u64,
    /// The core that handed it over.
    pub core: u32,
    /// Bytes of the request's own memory, whose descriptor comes along; 0: inputs lie in the slot.
    pub own_memory: u64,
    pub inputs: Vec<TensorRef>,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub id: u64,
    pub slot: u32,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done(Done),
    /// TFLite's words.
    Failed(String),
    /// It had been cancelled before it began, or was stopped between nodes.
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    pub queue_nanoseconds: u64,
    pub invoke_nanoseconds: u64,
    /// Bytes of the answer's own memory, whose descriptor comes along; 0: outputs lie in the slot.
    pub own_memory: u64,
    pub outputs: Vec<TensorRef>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message between agent and worker is malformed")]
pub struct Malformed;

impl Job {
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.id.to_le_bytes());
        to.extend_from_slice(&self.slot.to_le_bytes());
        to.extend_from_slice(&self.signature.to_le_bytes());
        self.stream.encode(to);
        to.extend_from_slice(&self.sent_at.to_le_bytes());
        to.extend_from_slice(&self.core.to_le_bytes());
        to.extend_from_slice(&self.own_memory.to_le_bytes());
        encode_tensors(&self.inputs, to);
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let job = Self {
            id: reader.u64()?,
            slot: reader.u32()?,
            signature: reader.u32()?,
            stream: Stream::decode(&mut reader)?,
            sent_at: reader.u64()?,
            core: reader.u32()?,
            own_memory: reader.u64()?,
            inputs: reader.tensors()?,
        };
        reader.end(job)
    }
}

impl Stream {
    fn encode(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.number.to_le_bytes());
        to.push(u8::from(self.begin) | u8::from(self.end) << 1);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (number, flags) = (reader.u32()?, reader.u8()?);
        if flags > 3 {
            return Err(Malformed);
        }
        Ok(Self {
            number,
            begin: flags & 1 != 0,
            end: flags & 2 != 0,
        })
    }
}

const DONE: u8 = 0;
const FAILED: u8 = 1;
const CANCELLED: u8 = 2;

impl Reply {
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.id.to_le_bytes());
        to.extend_from_slice(&self.slot.to_le_bytes());
        match &self.outcome {
            Outcome::Done(done) => {
                to.push(DONE);
                to.extend_from_slice(&done.queue_nanoseconds.to_le_bytes());
                to.extend_from_slice(&done.invoke_nanoseconds.to_le_bytes());
                to.extend_from_slice(&done.own_memory.to_le_bytes());
                encode_tensors(&done.outputs, to);
            }
            Outcome::Failed(text) => {
                to.push(FAILED);
                to.extend_from_slice(cut(text).as_bytes());
            }
            Outcome::Cancelled => to.push(CANCELLED),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let (id, slot) = (reader.u64()?, reader.u32()?);
        let outcome = match reader.u8()? {
            DONE => Outcome::Done(Done {
                queue_nanoseconds: reader.u64()?,
                invoke_nanoseconds: reader.u64()?,
                own_memory: reader.u64()?,
                outputs: reader.tensors()?,
            }),
            FAILED => {
                let text = String::from_utf8_lossy(reader.rest()).into_owned();
                Outcome::Failed(text)
            }
            CANCELLED => Outcome::Cancelled,
            _ => return Err(Malformed),
        };
        reader.end(Self { id, slot, outcome })
    }
}

/// The beginning of a text, short enough for a message.
pub fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
