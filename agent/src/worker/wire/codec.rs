//! The bytes of a message: numbers of fixed size, and a list of tensors at its end.

use super::{MAX_TENSORS, Malformed, Shape, TensorRef};

pub(super) fn encode_tensors(tensors: &[TensorRef], to: &mut Vec<u8>) {
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

/// What is left of a message.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    pub(super) fn tensors(&mut self) -> Result<Vec<TensorRef>, Malformed> {
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

    pub(super) fn end<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(Malformed)
        }
    }
}
