//! A stand-in for the `:authority` that gRPC's clients make out of the path of a Unix socket.
//!
//! Most of them send `%2Frun%2Fedgeward%2Fedgeward.sock`, or the path as it is. Neither is an authority as HTTP knows
//! it, and the HTTP library resets such a request before anybody sees it. Nobody here asks for the authority, so
//! [`Authority`] makes one that passes out of it, in the bytes as they come in: each `%` and `/` becomes `-`, which
//! is as long (so that tables of headers on both sides keep their sizes). Nothing else is touched, and whoever sends
//! nonsense has it pass through as nonsense.

/// A frame's own header (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const NAME: &[u8] = b":authority";
/// Its place in the table that everybody knows (RFC 7541, appendix A).
const AUTHORITY: u8 = 1;

/// Follows the frames of one connection, from behind its preface on.
#[derive(Debug, Default)]
pub struct Authority {
    header: [u8; FRAME_HEADER],
    /// Bytes of the header that have come.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// The payload is of header fields: what stands before and after them.
    block: Option<Around>,
    field: Field,
}

#[derive(Debug, Clone, Copy)]
struct Around {
    /// The length of the padding is still to come, as the first byte.
    padded: bool,
    before: usize,
    after: usize,
}

/// What the next byte of a block of header fields is (RFC 7541, section 6).
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Field {
    #[default]
    Start,
    /// A number goes on, and then comes whatever it says.
    Number {
        then: Then,
    },
    NameLength,
    /// `same`: so many of its bytes are those of `:authority`; `None`: it is another name.
    Name {
        text: Text,
        same: Option<usize>,
    },
    ValueLength {
        authority: bool,
    },
    Value {
        text: Text,
        authority: bool,
    },
}

/// Where a text stands.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Text {
    left: usize,
    /// The length is not whole yet: where its next bits belong.
    shift: Option<u32>,
    huffman: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Start,
    Value,
}

impl Authority {
    pub fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.have < FRAME_HEADER {
                let count = bytes.len().min(FRAME_HEADER - self.have);
                let (part, rest) = bytes.split_at_mut(count);
                self.header[self.have..self.have + count].copy_from_slice(part);
                self.have += count;
                bytes = rest;
                if self.have == FRAME_HEADER {
                    self.begin();
                }
            } else {
                let count = bytes.len().min(self.left);
                let (part, rest) = bytes.split_at_mut(count);
                bytes = rest;
                if self.block.is_some() {
                    for byte in part {
                        self.in_block(byte);
                        self.left -= 1;
                    }
                } else {
                    self.left -= count;
                }
            }
            if self.have == FRAME_HEADER && self.left == 0 {
                self.have = 0;
            }
        }
    }

    /// A frame's header is there.
    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        self.block = match kind {
            HEADERS => Some(Around {
                padded: flags & PADDED != 0,
                before: if flags & PRIORITY != 0 { 5 } else { 0 },
                after: 0,
            }),
            CONTINUATION => Some(Around {
                padded: false,
                before: 0,
                after: 0,
            }),
            _ => None,
        };
        if kind == HEADERS {
            self.field = Field::Start;
        }
    }

    fn in_block(&mut self, byte: &mut u8) {
        let Some(around) = &mut self.block else {
            return;
        };
        if around.padded {
            around.padded = false;
            around.after = usize::from(*byte);
        } else if around.before > 0 {
            around.before -= 1;
        } else if self.left > around.after {
            self.field = self.field.next(byte);
        }
    }
}

impl Field {
    /// What comes after `byte`, which is replaced if it must be.
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Start => Self::first(*byte),
            Self::Number { .. } if *byte >= 0x80 => self,
            Self::Number { then: Then::Start } => Self::Start,
            Self::Number { then: Then::Value } => Self::ValueLength { authority: false },
            Self::NameLength => Self::name(Text::begun(*byte), Some(0)),
            Self::Name { text, same } if text.shift.is_some() => {
                Self::name(text.continued(*byte), same)
            }
            Self::Name { text, same } => {
                let same = same.filter(|same| !text.huffman && NAME.get(*same) == Some(byte));
                Self::name(text.passed(), same.map(|same| same + 1))
            }
            Self::ValueLength { authority } => Self::value(Text::begun(*byte), authority),
            Self::Value { text, authority } if text.shift.is_some() => {
                Self::value(text.continued(*byte), authority)
            }
            Self::Value { text, authority } => {
                if authority && !text.huffman && matches!(*byte, b'%' | b'/') {
                    *byte = b'-';
                }
                Self::value(text.passed(), authority)
            }
        }
    }

    /// The first byte of a field says of what kind it is, and begins a number.
    fn first(byte: u8) -> Self {
        let (bits, then) = match byte {
            0x80.. => (0x7f, Then::Start),
            0x40.. => (0x3f, Then::Value),
            0x20.. => (0x1f, Then::Start),
            _ => (0x0f, Then::Value),
        };
        match (byte & bits, then) {
            (number, then) if number == bits => Self::Number { then },
            (_, Then::Start) => Self::Start,
            (0, Then::Value) => Self::NameLength,
            (name, Then::Value) => Self::ValueLength {
                authority: name == AUTHORITY,
            },
        }
    }

    fn name(text: Text, same: Option<usize>) -> Self {
        if text.is_over() {
            Self::ValueLength {
                authority: same == Some(NAME.len()),
            }
        } else {
            Self::Name { text, same }
        }
    }

    fn value(text: Text, authority: bool) -> Self {
        if text.is_over() {
            Self::Start
        } else {
            Self::Value { text, authority }
        }
    }
}

impl Text {
    /// The first byte of its length.
    fn begun(byte: u8) -> Self {
        let left = byte & 0x7f;
        Self {
            left: left.into(),
            shift: (left == 0x7f).then_some(0),
            huffman: byte >= 0x80,
        }
    }

    /// A further byte of its length.
    fn continued(self, byte: u8) -> Self {
        let shift = self.shift.unwrap_or_default();
        let more = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        Self {
            left: self.left.saturating_add(more),
            shift: (byte >= 0x80).then_some(shift.saturating_add(7)),
            ..self
        }
    }

    /// A byte of the text itself.
    fn passed(self) -> Self {
        Self {
            left: self.left.saturating_sub(1),
            ..self
        }
    }

    fn is_over(self) -> bool {
        self.left == 0 && self.shift.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    /// A text of any length, as it stands in a block.
    fn text(text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if text.len() < 0x7f {
            bytes.push(text.len() as u8);
        } else {
            bytes.push(0x7f);
            let mut rest = text.len() - 0x7f;
            while rest >= 0x80 {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
        }
        bytes.extend(text);
        bytes
    }

    /// Every kind of field, and the authority among them.
    fn block(authority: &[u8]) -> Vec<u8> {
        let long = vec![b'%'; 300];
        [
            &[0x83, 0xff, 0x01, 0x3f, 0x05][..],
            &[0x44],
            &text(b"/a/b%"),
            &[0x41],
            &text(authority),
            &[0x40],
            &text(b"x-a/%"),
            &text(&long),
            &[0x0f, 0x10],
            &text(b"%"),
            &[0x10],
            &text(&long),
            &text(b"/"),
            &[0x01],
            &text(authority),
            &[0x40],
            &text(NAME),
            &text(authority),
            &[0x00],
            &text(b":authority%"),
            &text(b"%"),
            &[0x00],
            &text(b":authorit"),
            &text(b"%"),
        ]
        .concat()
    }

    fn stream(authority: &[u8]) -> Vec<u8> {
        let block = block(authority);
        let (first, rest) = block.split_at(20);
        let padded = [&[7][..], &[0; 5], &block, b"%%/%/%%"].concat();
        [
            frame(4, 0, b"A%/%%/"),
            frame(HEADERS, 0, first),
            frame(CONTINUATION, 0, &[]),
            frame(CONTINUATION, 4, rest),
            frame(0, 0, b"A\x03%/%"),
            frame(HEADERS, 4 | PADDED | PRIORITY, &padded),
            frame(0, 0, &[]),
            frame(HEADERS, 4, &block),
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn only_the_authority_is_replaced_however_it_comes(step in 1usize..400, length in 0usize..300) {
            let before = b"%2Frun/x.sock".iter().copied().cycle().take(length).collect::<Vec<_>>();
            let after = before.iter().map(|b| if matches!(b, b'%' | b'/') { b'-' } else { *b });
            let mut bytes = stream(&before);
            let mut authority = Authority::default();
            for part in bytes.chunks_mut(step) {
                authority.pass(part);
            }
            prop_assert_eq!(bytes, stream(&after.collect::<Vec<_>>()));
        }

        #[test]
        fn any_bytes_pass_in_peace(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1usize..50) {
            let before = bytes.clone();
            let mut authority = Authority::default();
            for part in bytes.chunks_mut(step) {
                authority.pass(part);
            }
            for (before, after) in before.into_iter().zip(bytes) {
                prop_assert!(before == after || (matches!(before, b'%' | b'/') && after == b'-'));
            }
        }
    }

    #[test]
    fn a_compressed_text_is_left_alone() {
        let block = [&[0x41, 0x83][..], b"%/%"].concat();
        let mut bytes = frame(HEADERS, 4, &block);
        let before = bytes.clone();
        Authority::default().pass(&mut bytes);
        assert_eq!(bytes, before);
    }
}
