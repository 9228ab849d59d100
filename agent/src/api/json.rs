//! A pull reader for JSON request headers: the caller says what must come next.
//!
//! Used by the protocol adapters for the part of a request that describes tensors. It exists because tensor
//! data must not be read twice or into a list: [`Reader::array_extent`] steps over a `data` array at the
//! speed of a memory search and leaves its values to [`super::numbers`], which checks every byte of it.
//! Everything else is checked here: syntax (RFC 8259), UTF-8, doubled keys, depth. Nothing is copied but
//! strings with escapes.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr3;

/// The deepest nesting of a data array (one more than any shape, with room for `[[…]]` wrappers).
const MAX_DEPTH: usize = 16;

/// Where and why a text is not the JSON it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the request is not the JSON document it should be: {what} at byte {at}")]
pub struct JsonError {
    pub at: usize,
    pub what: String,
}

/// A text and how far it was read.
pub struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

/// A value of a `parameters` object.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar<'a> {
    Null,
    Bool(bool),
    /// Its text; a valid JSON number.
    Number(&'a str),
    /// One that did not come as text.
    Whole(u64),
    Text(Cow<'a, str>),
}

impl Scalar<'_> {
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(text) => text.parse().ok(),
            Self::Whole(number) => Some(*number),
            _ => None,
        }
    }
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    pub fn error(&self, what: impl Into<String>) -> JsonError {
        JsonError {
            at: self.at,
            what: what.into(),
        }
    }

    /// The next byte that is not space, without taking it.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8, what: &str) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error(format!("expected {what}")))
        }
    }

    /// How far the text was read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Nothing but space may be left.
    pub fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("something follows the document")),
        }
    }

    /// Takes `null` if it stands there.
    pub fn null(&mut self) -> bool {
        if self.peek() == Some(b'n') && self.text[self.at..].starts_with(b"null") {
            self.at += 4;
            true
        } else {
            false
        }
    }

    /// Reads an object; `member` gets each key and must read its value. A key may stand there once.
    pub fn object<E: From<JsonError>>(
        &mut self,
        what: &str,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.take(b'{', what)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        // A handful of keys: comparing beats hashing.
        let mut seen: Vec<Cow<'a, str>> = Vec::new();
        loop {
            let key = self.string("a key")?;
            if seen.contains(&key) {
                return Err(self
                    .error(format!("the key {key:?} stands there twice"))
                    .into());
            }
            if seen.len() == MAX_KEYS {
                return Err(self.error("more keys than any object here has").into());
            }
            self.take(b':', "':'")?;
            member(self, &key)?;
            seen.push(key);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error("expected ',' or '}'").into()),
            }
        }
    }

    /// Reads an array; `element` must read one value.
    pub fn array<E: From<JsonError>>(
        &mut self,
        what: &str,
        mut element: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.take(b'[', what)?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            element(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error("expected ',' or ']'").into()),
            }
        }
    }

    pub fn string(&mut self, what: &str) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error(format!("expected {what}")));
        }
        let (string, end) = string_at(self.text, self.at)?;
        self.at = end;
        Ok(string)
    }

    /// A non-negative integer.
    pub fn u64(&mut self, what: &str) -> Result<u64, JsonError> {
        self.peek();
        let at = self.at;
        let error = |at| JsonError {
            at,
            what: format!("expected {what}"),
        };
        self.number()
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| error(at))
    }

    /// `true`, `false`, `null`, a number or a string.
    pub fn scalar(&mut self) -> Result<Scalar<'a>, JsonError> {
        if self.null() {
            return Ok(Scalar::Null);
        }
        match self.peek() {
            Some(b'"') => self.string("a string").map(Scalar::Text),
            Some(b't') if self.text[self.at..].starts_with(b"true") => {
                self.at += 4;
                Ok(Scalar::Bool(true))
            }
            Some(b'f') if self.text[self.at..].starts_with(b"false") => {
                self.at += 5;
                Ok(Scalar::Bool(false))
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(Scalar::Number),
            _ => Err(self.error("expected a string, a number, true or false")),
        }
    }

    fn number(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        let rest = &self.text[start..];
        let length = rest
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .unwrap_or(rest.len());
        let number = std::str::from_utf8(&rest[..length]).unwrap_or_default();
        if serde_json::from_str::<&serde_json::value::RawValue>(number).is_err() {
            return Err(self.error("expected a number"));
        }
        self.at += length;
        Ok(number)
    }

    /// Steps over an array and returns where it stands. Only brackets and strings are looked at: whoever reads
    /// the values checks the rest.
    pub fn array_extent(&mut self) -> Result<Range<usize>, JsonError> {
        if self.peek() != Some(b'[') {
            return Err(self.error("expected an array"));
        }
        let start = self.at;
        let mut depth = 0usize;
        loop {
            let rest = &self.text[self.at..];
            let Some(found) = memchr3(b'[', b']', b'"', rest) else {
                return Err(self.error("an array does not end"));
            };
            match rest[found] {
                b'[' => {
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(self.error(format!("an array nested deeper than {MAX_DEPTH}")));
                    }
                    self.at += found + 1;
                }
                b']' => {
                    depth -= 1;
                    self.at += found + 1;
                    if depth == 0 {
                        return Ok(start..self.at);
                    }
                }
                _ => {
                    self.at += found;
                    self.string("a string")?;
                }
            }
        }
    }
}

/// The string that begins with the quotation mark at an offset, and where what follows begins.
pub fn string_at(text: &[u8], start: usize) -> Result<(Cow<'_, str>, usize), JsonError> {
    let error = |at, what: &str| JsonError {
        at,
        what: what.to_owned(),
    };
    if text.get(start) != Some(&b'"') {
        return Err(error(start, "expected a string"));
    }
    let mut escaped = false;
    let mut at = start + 1;
    loop {
        match text.get(at) {
            Some(b'"') => break,
            Some(b'\\') => {
                escaped = true;
                at += 2;
            }
            Some(0..0x20) => return Err(error(at, "a control character in a string")),
            Some(_) => at += 1,
            None => return Err(error(at, "a string does not end")),
        }
    }
    let end = at + 1;
    let string = if escaped {
        // Escapes are rare: let the library decode them.
        serde_json::from_slice(&text[start..end])
            .map(Cow::Owned)
            .map_err(|_| error(end, "a string with a wrong escape"))
    } else {
        std::str::from_utf8(&text[start + 1..at])
            .map(Cow::Borrowed)
            .map_err(|_| error(end, "a string that is not UTF-8"))
    };
    string.map(|string| (string, end))
}

/// Keys of one object. Generous, and a bound on the work of finding doubles.
const MAX_KEYS: usize = 64;

#[cfg(test)]
mod tests;
