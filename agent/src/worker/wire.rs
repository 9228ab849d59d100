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
use crate::config::Batching;

mod codec;
mod job;

use codec::{Reader, encode_tensors};

pub use job::{Job, Stream};

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
    /// How requests that may be joined are.
    pub batching: Option<Batching>,
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
    /// From now on so many interpreters answer, at least one.
    Interpreters(usize),
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

    /// The same with another first dimension.
    pub fn with_first(mut self, first: i32) -> Self {
        if let Some(place) = self.dimensions[..usize::from(self.rank)].first_mut() {
            *place = first;
        }
        self
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
    pub batch: Batch,
    /// Bytes of the answer's own memory, whose descriptor comes along; 0: outputs lie in the slot.
    pub own_memory: u64,
    pub outputs: Vec<TensorRef>,
}

/// The invoke that answered a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Its first dimension; 0: the request was not to be joined with others.
    pub size: u32,
    /// Of all requests that it answered, this one is the first.
    pub first: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message between agent and worker is malformed")]
pub struct Malformed;

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
                to.extend_from_slice(&done.batch.size.to_le_bytes());
                to.push(u8::from(done.batch.first));
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
                batch: Batch {
                    size: reader.u32()?,
                    first: reader.flag()?,
                },
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
