//! A pull reader for protobuf messages that hold tensors, over the frames of a body.
//!
//! Small messages are decoded by `prost`. Those with tensors are not: their values would be copied out of the
//! body into lists, several times as large as what came. [`Reader`] hands out one field after the other, in
//! place; a field that is a message, a text or a tensor is a reader of its own that knows where it lies. So a
//! request costs no memory beyond its body, whatever it holds. Fields that nobody asks for are passed over, as
//! the format wants it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::body::Body;
use super::error::ApiError;

/// The most bytes that a number of 64 bits takes.
const MAX_VARINT_BYTES: usize = 10;

/// Where and why bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message is not the protobuf that this method takes: {what} at byte {at}")]
pub struct Malformed {
    at: usize,
    what: &'static str,
}

impl From<Malformed> for ApiError {
    fn from(malformed: Malformed) -> Self {
        Self::invalid(malformed.to_string())
    }
}

/// What is left of a message or of a part of it.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    /// The first one is the one that is being read.
    frames: &'a [Bytes],
    /// In the first frame.
    offset: usize,
    /// In the whole body.
    at: usize,
    end: usize,
}

/// A field as it stands there; what it means depends on the message.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    Number(u64),
    Fixed64([u8; 8]),
    /// A message, a text, bytes, or packed numbers.
    Long(Reader<'a>),
    Fixed32([u8; 4]),
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a Body) -> Self {
        let mut reader = Self {
            frames: body.frames(),
            offset: 0,
            at: 0,
            end: body.len(),
        };
        // Past frames without a byte.
        reader.skip(0);
        reader
    }

    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    /// Where this stands in the body.
    pub fn range(&self) -> Range<usize> {
        self.at..self.end
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// The next field and its number; `None` at the end.
    pub fn field(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Fixed64(self.fixed()?),
            2 => Value::Long(self.long()?),
            5 => Value::Fixed32(self.fixed()?),
            _ => return Err(self.malformed("a field of an unknown type")),
        };
        match key >> 3 {
            0 => Err(self.malformed("a field without a number")),
            number => Ok(Some((number, value))),
        }
    }

    fn long(&mut self) -> Result<Self, Malformed> {
        let length = self.varint()?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.end - self.at)
            .ok_or_else(|| self.malformed("a field that is longer than what it stands in"))?;
        let mut part = self.clone();
        part.end = part.at + length;
        self.skip(length);
        Ok(part)
    }

    /// Passes over bytes that are certainly there.
    fn skip(&mut self, length: usize) {
        self.at += length;
        self.offset += length;
        while let Some(first) = self.frames.first()
            && self.offset >= first.len()
        {
            self.offset -= first.len();
            self.frames = &self.frames[1..];
        }
    }

    fn byte(&mut self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        let byte = *self.frames.first()?.get(self.offset)?;
        self.skip(1);
        Some(byte)
    }

    /// A number of at most 64 bits.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for index in 0..MAX_VARINT_BYTES {
            let byte = self
                .byte()
                .ok_or_else(|| self.malformed("a number that does not end"))?;
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                if index == MAX_VARINT_BYTES - 1 && byte > 1 {
                    break;
                }
                return Ok(number);
            }
        }
        Err(self.malformed("a number of more than 64 bits"))
    }

    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        for place in &mut bytes {
            *place = self
                .byte()
                .ok_or_else(|| self.malformed("a number that does not end"))?;
        }
        Ok(bytes)
    }

    /// All that is left, in one piece: copied only where it crosses the border of a frame.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        let mut missing = self.end - self.at;
        let Some(first) = self.frames.first() else {
            return Cow::Borrowed(&[]);
        };
        let rest = &first[self.offset..];
        if let Some(whole) = rest.get(..missing) {
            return Cow::Borrowed(whole);
        }
        let mut joined = Vec::with_capacity(missing);
        for part in std::iter::once(rest).chain(self.frames[1..].iter().map(|frame| &frame[..])) {
            let part = &part[..part.len().min(missing)];
            joined.extend_from_slice(part);
            missing -= part.len();
        }
        Cow::Owned(joined)
    }

    pub fn text(&self) -> Result<Cow<'a, str>, Malformed> {
        let not_utf8 = || self.malformed("a text that is not UTF-8");
        match self.bytes() {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes)
                .map(Cow::Borrowed)
                .map_err(|_| not_utf8()),
            Cow::Owned(bytes) => String::from_utf8(bytes)
                .map(Cow::Owned)
                .map_err(|_| not_utf8()),
        }
    }
}

impl<'a> Value<'a> {
    /// A field that must be a message, a text or bytes.
    pub fn long(self) -> Result<Reader<'a>, ApiError> {
        match self {
            Self::Long(part) => Ok(part),
            _ => Err(wrong_type()),
        }
    }

    pub fn text(self) -> Result<Cow<'a, str>, ApiError> {
        Ok(self.long()?.text()?)
    }

    pub fn number(self) -> Result<u64, ApiError> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(wrong_type()),
        }
    }

    /// Each number of a repeated field, packed or alone.
    pub fn numbers(
        self,
        mut each: impl FnMut(u64) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        match self {
            Self::Number(number) => each(number),
            Self::Long(mut packed) => {
                while !packed.is_empty() {
                    each(packed.varint()?)?;
                }
                Ok(())
            }
            _ => Err(wrong_type()),
        }
    }
}

pub fn wrong_type() -> ApiError {
    ApiError::invalid(
        "the message is not the protobuf that this method takes: a field has another type than the method's",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Outer {
        #[prost(string, tag = "1")]
        text: String,
        #[prost(uint64, tag = "2")]
        number: u64,
        #[prost(message, optional, tag = "3")]
        inner: Option<Inner>,
        #[prost(bytes = "vec", repeated, tag = "7")]
        raw: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Inner {
        #[prost(int64, repeated, tag = "3")]
        packed: Vec<i64>,
        #[prost(int64, repeated, packed = "false", tag = "4")]
        alone: Vec<i64>,
        #[prost(fixed64, tag = "5")]
        wide: u64,
        #[prost(float, tag = "2000")]
        float: f32,
    }

    fn read(body: &Body) -> Result<Outer, ApiError> {
        let mut outer = Outer::default();
        let mut reader = Reader::new(body);
        while let Some((number, value)) = reader.field()? {
            match number {
                1 => outer.text = value.text()?.into_owned(),
                2 => outer.number = value.number()?,
                3 => outer.inner = Some(read_inner(value.long()?)?),
                7 => {
                    let part = value.long()?;
                    let mut bytes = vec![0; part.range().len()];
                    assert!(body.copy_to(part.range().start, &mut bytes));
                    assert_eq!(bytes, *part.bytes());
                    outer.raw.push(bytes);
                }
                _ => {}
            }
        }
        Ok(outer)
    }

    fn read_inner(mut reader: Reader<'_>) -> Result<Inner, ApiError> {
        let mut inner = Inner::default();
        while let Some((number, value)) = reader.field()? {
            match (number, value) {
                (3, value) => value.numbers(|value| {
                    inner.packed.push(value.cast_signed());
                    Ok(())
                })?,
                (4, value) => value.numbers(|value| {
                    inner.alone.push(value.cast_signed());
                    Ok(())
                })?,
                (5, Value::Fixed64(value)) => inner.wide = u64::from_le_bytes(value),
                (2000, Value::Fixed32(value)) => inner.float = f32::from_le_bytes(value),
                _ => {}
            }
        }
        Ok(inner)
    }

    fn outer() -> impl Strategy<Value = Outer> {
        let numbers = || proptest::collection::vec(any::<i64>(), 0..8);
        let inner = (numbers(), numbers(), any::<u64>(), -1e9f32..1e9).prop_map(
            |(packed, alone, wide, float)| Inner {
                packed,
                alone,
                wide,
                float,
            },
        );
        let raw = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4);
        (".{0,20}", any::<u64>(), proptest::option::of(inner), raw).prop_map(
            |(text, number, inner, raw)| Outer {
                text,
                number,
                inner,
                raw,
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written_however_it_is_cut(outer in outer(), step in 1usize..200) {
            let bytes = outer.encode_to_vec();
            // No joining: each frame is one of its own.
            let frames: Vec<Bytes> = bytes.chunks(step).map(Bytes::copy_from_slice).collect();
            let mut body = Body::default();
            for frame in frames {
                body.append(frame.into());
            }
            prop_assert_eq!(read(&body).expect("a message"), outer);
        }

        #[test]
        fn any_bytes_mean_the_same_as_to_prost_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let body = Body::from(Bytes::copy_from_slice(&bytes));
            // prost understands a little more (groups), and refuses what is of the wrong type likewise.
            if let (Ok(read), Ok(decoded)) = (read(&body), Outer::decode(&*bytes)) {
                prop_assert_eq!((read.text, read.number, read.raw), (decoded.text, decoded.number, decoded.raw));
            }
        }
    }

    #[test]
    fn numbers_and_lengths_that_do_not_fit_are_refused() {
        for wrong in [
            &[0x10][..],
            &[0x10, 0x80],
            &[
                0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
            ],
            &[
                0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            &[0x0a, 2, b'x'],
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            &[0x02, 0],
            &[0x0b],
            &[0x0d, 0, 0],
            &[0x0a, 1, 0xff],
        ] {
            let body = Body::from(Bytes::copy_from_slice(wrong));
            assert!(read(&body).is_err(), "{wrong:?}");
        }
        let most = [
            0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ];
        let body = Body::from(Bytes::copy_from_slice(&most));
        assert_eq!(read(&body).expect("a number").number, u64::MAX);
    }
}
