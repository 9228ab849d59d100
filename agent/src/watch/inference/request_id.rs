//! A request's own name, as far as the audit log takes it.

use std::fmt;

/// Longer ones are not recorded.
const MAX_BYTES: usize = 64;

/// An identifier of the shape that UUIDs, counters and trace ids have. Anything else a caller sends as its request's
/// id is free text and is not kept.
#[derive(Clone, Copy)]
pub struct RequestId {
    bytes: [u8; MAX_BYTES],
    length: u8,
}

impl RequestId {
    /// `None` for what is not of that shape.
    pub fn of(text: &str) -> Option<Self> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        let mut bytes = [0; MAX_BYTES];
        let place = bytes.get_mut(..text.len()).filter(|p| !p.is_empty())?;
        if !text.bytes().all(fits) {
            return None;
        }
        place.copy_from_slice(text.as_bytes());
        let length = u8::try_from(text.len()).ok()?;
        Some(Self { bytes, length })
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_taken_and_sentences_are_not() {
        for id in ["7", "a1b2-c3", "urn:uuid:0a.b_C", &"x".repeat(64)] {
            assert_eq!(RequestId::of(id).expect(id).as_str(), id);
        }
        for text in ["", "Jane Doe", "ä", "a\nb", "a/b", "\"", &"x".repeat(65)] {
            assert!(RequestId::of(text).is_none(), "{text:?}");
        }
    }
}
