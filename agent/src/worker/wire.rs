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

fn encode_tensors(tensors: &[TensorRef], to: &mut Vec<u8>) {
    to.push(tensors.len() as u8);
    for tensor in tensors {
        to.extend_from_slice(&tensor.offset.to_le_bytes());
        to.extend_from_slice(&tensor.length.to_le_bytes());
        to.push(tensor.shape.rank);
        for dimension in tensor.shape.dimensions() {
            to.extend_from_slice(&dimension.to_le_bytes());
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn tensors(&mut self) -> Result<Vec<TensorRef>, Malformed> {
        let count = usize::from(self.u8()?);
        if count > MAX_TENSORS {
            return Err(Malformed);
        }
        let mut tensors = Vec::with_capacity(count);
        for _ in 0..count {
            let (offset, length) = (self.u64()?, self.u64()?);
            let rank = self.u8()?;
            let mut shape = Shape {
                rank,
                ..Shape::default()
            };
            for place in shape
                .dimensions
                .get_mut(..usize::from(rank))
                .ok_or(Malformed)?
            {
                *place = i32::from_le_bytes(self.take()?);
                if *place < 0 {
                    return Err(Malformed);
                }
            }
            tensors.push(TensorRef {
                offset,
                length,
                shape,
            });
        }
        Ok(tensors)
    }

    fn end<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tensors() -> impl Strategy<Value = Vec<TensorRef>> {
        let tensor = (
            any::<u64>(),
            any::<u64>(),
            prop::collection::vec(0..=i64::from(i32::MAX), 0..=MAX_DIMENSIONS),
        );
        let tensor = tensor.prop_map(|(offset, length, shape)| TensorRef {
            offset,
            length,
            shape: Shape::new(shape).expect("in range"),
        });
        prop::collection::vec(tensor, 0..=MAX_TENSORS)
    }

    proptest! {
        #[test]
        fn jobs_and_replies_survive_the_journey(inputs in tensors(), id: u64, slot: u32, own_memory: u64) {
            let stream = Stream { number: slot, begin: id % 2 == 0, end: id % 3 == 0 };
            let job = Job { id, slot, signature: 3, stream, sent_at: 9, core: 1, own_memory, inputs: inputs.clone() };
            let mut bytes = Vec::new();
            job.encode(&mut bytes);
            prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
            prop_assert_eq!(Job::decode(&bytes), Ok(job));
            let done = Done { queue_nanoseconds: 1, invoke_nanoseconds: 2, own_memory, outputs: inputs };
            for outcome in [Outcome::Done(done), Outcome::Failed("no".to_owned()), Outcome::Cancelled] {
                let reply = Reply { id, slot, outcome };
                bytes.clear();
                reply.encode(&mut bytes);
                prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
                prop_assert_eq!(Reply::decode(&bytes), Ok(reply));
            }
        }

        #[test]
        fn any_bytes_parse_or_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(job) = Job::decode(&bytes) {
                let mut again = Vec::new();
                job.encode(&mut again);
                prop_assert_eq!(again, bytes.clone());
            }
            let _ = Reply::decode(&bytes);
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = "é".repeat(MAX_TEXT_BYTES);
        assert!(cut(&text).len() <= MAX_TEXT_BYTES && cut(&text).ends_with('é'));
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn shapes_count_their_elements_and_refuse_what_tflite_cannot_hold() {
        assert_eq!(Shape::new([2, 3]).and_then(|s| s.elements()), Some(6));
        assert_eq!(Shape::new([]).and_then(|s| s.elements()), Some(1));
        assert_eq!(Shape::new([-1]), None);
        assert_eq!(Shape::new([1 << 31]), None);
        assert_eq!(Shape::new([1; 9]), None);
        let huge = Shape::new([i64::from(i32::MAX); 8]).expect("shape");
        assert_eq!(huge.elements(), None);
    }
}
