//! What the agent asks a worker to run.

use super::codec::{Reader, encode_tensors};
use super::{Malformed, TensorRef};

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
    /// It may be joined with others; so many requests held a slot when it was handed over, this one included.
    /// 0: it is run by itself.
    pub company: u32,
    /// Bytes of the request's own memory, whose descriptor comes along; 0: inputs lie in the slot.
    pub own_memory: u64,
    pub inputs: Vec<TensorRef>,
}

impl Job {
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.id.to_le_bytes());
        to.extend_from_slice(&self.slot.to_le_bytes());
        to.extend_from_slice(&self.signature.to_le_bytes());
        self.stream.encode(to);
        to.extend_from_slice(&self.sent_at.to_le_bytes());
        to.extend_from_slice(&self.core.to_le_bytes());
        to.extend_from_slice(&self.company.to_le_bytes());
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
            company: reader.u32()?,
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
