//! Typed values of messages, written in the binary form that everything behind the doors knows.

use edgeward_models::Manifest;

use crate::api::error::ApiError;
use crate::api::protobuf::{Value, wrong_type};

/// Where typed values go, and how much may.
pub struct Out<'a> {
    bytes: &'a mut Vec<u8>,
    most: usize,
}

impl<'a> Out<'a> {
    pub fn new(bytes: &'a mut Vec<u8>, manifest: &Manifest) -> Self {
        Self {
            bytes,
            most: usize::try_from(manifest.request_bytes()).unwrap_or(usize::MAX),
        }
    }

    /// Bytes so far.
    pub fn written(&self) -> usize {
        self.bytes.len()
    }

    /// What was written from there on.
    pub fn since(&self, start: usize) -> &[u8] {
        self.bytes.get(start..).unwrap_or_default()
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        if bytes.len() > self.most.saturating_sub(self.bytes.len()) {
            return Err(ApiError::invalid(format!(
                "its values are more than the {} bytes that this model takes",
                self.most
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Numbers of 32 bits for a datatype that may be narrower.
pub fn integers<const N: usize, E>(
    values: Value<'_>,
    name: &str,
    out: &mut Out<'_>,
    narrow: impl Fn(i64) -> Result<[u8; N], E>,
) -> Result<(), ApiError> {
    values.numbers(|value| {
        let value = narrow(value.cast_signed());
        let value = value
            .map_err(|_| ApiError::invalid(format!("an element is outside the range of {name}")))?;
        out.push(&value)
    })
}

pub fn floats(values: Value<'_>, size: usize, out: &mut Out<'_>) -> Result<(), ApiError> {
    let packed = values.long()?;
    if packed.range().len() % size != 0 {
        return Err(wrong_type());
    }
    out.push(&packed.bytes())
}

/// One string, with its length before it.
pub fn string(value: Value<'_>, out: &mut Out<'_>) -> Result<(), ApiError> {
    let text = value.long()?.bytes();
    let length = u32::try_from(text.len()).map_err(|_| wrong_type())?;
    out.push(&length.to_le_bytes())?;
    out.push(&text)
}
