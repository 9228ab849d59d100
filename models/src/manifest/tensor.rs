//! What one input or output is: its name, element type and shape.

use serde::{Deserialize, Serialize};

/// Bytes set aside for the text of a tensor of strings, whose size no shape tells.
pub const STRINGS_ROOM: u64 = 64 << 10;

/// One input or output tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: Datatype,
    /// -1 is a free dimension, given by each request; a fixed one is at least 1. An output without dimensions may
    /// have any when it is answered: the file does not tell a single value from a tensor whose rank is known only
    /// after it was computed.
    pub shape: Vec<i64>,
    /// How integers stand for real numbers, for the reader's information: values travel as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

impl TensorSpec {
    /// Bytes of one tensor with free dimensions taken as 1; `None` for strings or on overflow.
    pub fn least_bytes(&self) -> Option<u64> {
        let shape = self.shape.iter().map(|&d| d.max(1) as u64);
        byte_size(self.datatype, shape)
    }

    /// Bytes to set aside for one tensor with free dimensions taken as 1.
    pub fn room(&self) -> u64 {
        let shape = self.shape.iter().map(|&d| d.max(1) as u64);
        let room = match self.datatype {
            // Each string travels with its length, which is a UINT32.
            Datatype::Bytes => byte_size(Datatype::Uint32, shape)
                .map(|lengths| lengths.saturating_add(STRINGS_ROOM)),
            datatype => byte_size(datatype, shape),
        };
        room.unwrap_or(u64::MAX)
    }

    /// Whether an answer of this output may have such a shape.
    pub fn allows_answer(&self, shape: &[i64]) -> bool {
        let fits = |(&says, &has): (&i64, &i64)| says == -1 || says == has;
        self.shape.is_empty()
            || (self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(fits))
    }
}

/// Bytes of a dense row-major tensor; `None` for strings or when 64 bits do not hold the product.
pub fn byte_size(datatype: Datatype, shape: impl IntoIterator<Item = u64>) -> Option<u64> {
    let mut bytes = datatype.size()? as u64;
    for dimension in shape {
        bytes = bytes.checked_mul(dimension)?;
    }
    Some(bytes)
}

/// real = scale × (quantized − zero_point).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    pub scale: f32,
    pub zero_point: i64,
}

/// Element types by their Open Inference Protocol names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// Bytes of one element; `None` for strings.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
            Self::Bytes => return None,
        })
    }

    /// The protocol's name, such as `FP32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }
}
