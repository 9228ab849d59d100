//! The part of the flatbuffer format that reading a few tables takes, with every access checked.
//!
//! A table begins with a signed distance back to its vtable; the vtable holds its own length, the table's,
//! and one distance per field, 0 for an absent one. Lists and texts are reached by an unsigned distance
//! forward and begin with a count. All numbers are little-endian. Nothing here allocates or
//! recurses.

use super::{TfliteFileError, not_tflite};

/// A whole file.
#[derive(Debug, Clone, Copy)]
pub struct Buffer<'a> {
    bytes: &'a [u8],
}

fn outside() -> TfliteFileError {
    not_tflite("an offset points outside the file; it is damaged or cut off")
}

impl<'a> Buffer<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn root(self) -> Result<Table<'a>, TfliteFileError> {
        let position = self.follow(0)?;
        self.table_at(position)
    }

    fn array<const N: usize>(self, position: usize) -> Result<[u8; N], TfliteFileError> {
        let end = position.checked_add(N).ok_or_else(outside)?;
        let bytes = self.bytes.get(position..end).ok_or_else(outside)?;
        bytes.try_into().map_err(|_| outside())
    }

    fn u32(self, position: usize) -> Result<u32, TfliteFileError> {
        Ok(u32::from_le_bytes(self.array(position)?))
    }

    /// Where the unsigned distance at `position` leads.
    fn follow(self, position: usize) -> Result<usize, TfliteFileError> {
        let distance = self.u32(position)? as usize;
        position.checked_add(distance).ok_or_else(outside)
    }

    fn table_at(self, position: usize) -> Result<Table<'a>, TfliteFileError> {
        let back = i64::from(i32::from_le_bytes(self.array(position)?));
        let vtable = i64::try_from(position)
            .ok()
            .and_then(|position| usize::try_from(position - back).ok())
            .ok_or_else(outside)?;
        let vtable_bytes = usize::from(u16::from_le_bytes(self.array(vtable)?));
        Ok(Table {
            buffer: self,
            position,
            vtable,
            vtable_bytes,
        })
    }

    /// The items of the list at `position`, of `N` bytes each.
    fn items<const N: usize>(self, position: usize) -> Result<&'a [[u8; N]], TfliteFileError> {
        let count = self.u32(position)? as usize;
        let start = position + 4;
        let end = count
            .checked_mul(N)
            .and_then(|bytes| start.checked_add(bytes))
            .ok_or_else(outside)?;
        let bytes = self.bytes.get(start..end).ok_or_else(outside)?;
        Ok(bytes.as_chunks::<N>().0)
    }
}

/// One table.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    buffer: Buffer<'a>,
    position: usize,
    vtable: usize,
    vtable_bytes: usize,
}

impl<'a> Table<'a> {
    /// Where a field's value (or the distance to it) stands; `None`: absent, so it has its default.
    fn field(&self, number: usize) -> Result<Option<usize>, TfliteFileError> {
        let entry = 4 + 2 * number;
        if entry + 2 > self.vtable_bytes {
            return Ok(None);
        }
        let at = self.vtable.checked_add(entry).ok_or_else(outside)?;
        match u16::from_le_bytes(self.buffer.array(at)?) {
            0 => Ok(None),
            distance => Ok(Some(self.position + usize::from(distance))),
        }
    }

    fn followed(&self, number: usize) -> Result<Option<usize>, TfliteFileError> {
        self.field(number)?
            .map(|at| self.buffer.follow(at))
            .transpose()
    }

    pub fn u32(&self, number: usize) -> Result<Option<u32>, TfliteFileError> {
        self.field(number)?
            .map(|at| self.buffer.u32(at))
            .transpose()
    }

    pub fn i8(&self, number: usize) -> Result<Option<i8>, TfliteFileError> {
        let byte = self
            .field(number)?
            .map(|at| self.buffer.array::<1>(at))
            .transpose()?;
        Ok(byte.map(i8::from_le_bytes))
    }

    pub fn table(&self, number: usize) -> Result<Option<Table<'a>>, TfliteFileError> {
        self.followed(number)?
            .map(|at| self.buffer.table_at(at))
            .transpose()
    }

    /// UTF-8 text of at most `limit` bytes.
    pub fn text(&self, number: usize, limit: usize) -> Result<Option<&'a str>, TfliteFileError> {
        let Some(at) = self.followed(number)? else {
            return Ok(None);
        };
        let bytes = self.buffer.items::<1>(at)?.as_flattened();
        if bytes.len() > limit {
            return Err(not_tflite(format!("a name is longer than {limit} bytes")));
        }
        let text =
            std::str::from_utf8(bytes).map_err(|_| not_tflite("a name is not UTF-8 text"))?;
        Ok(Some(text))
    }

    fn list<const N: usize>(
        &self,
        number: usize,
    ) -> Result<(usize, &'a [[u8; N]]), TfliteFileError> {
        match self.followed(number)? {
            Some(at) => Ok((at + 4, self.buffer.items::<N>(at)?)),
            None => Ok((0, &[])),
        }
    }

    /// A list of numbers of `N` bytes each, as they stand in the file.
    pub fn numbers<const N: usize>(&self, number: usize) -> Result<&'a [[u8; N]], TfliteFileError> {
        Ok(self.list(number)?.1)
    }

    pub fn tables(&self, number: usize) -> Result<Tables<'a>, TfliteFileError> {
        let (start, distances) = self.list(number)?;
        Ok(Tables {
            buffer: self.buffer,
            start,
            distances,
        })
    }
}

/// A list of tables.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    buffer: Buffer<'a>,
    /// Where the first distance stands: each is counted from its own place.
    start: usize,
    distances: &'a [[u8; 4]],
}

impl<'a> Tables<'a> {
    pub fn len(&self) -> usize {
        self.distances.len()
    }

    pub fn get(&self, index: usize) -> Result<Option<Table<'a>>, TfliteFileError> {
        if index >= self.distances.len() {
            return Ok(None);
        }
        let at = self.buffer.follow(self.start + 4 * index)?;
        self.buffer.table_at(at).map(Some)
    }
}
