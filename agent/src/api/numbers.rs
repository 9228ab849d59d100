//! Tensor data as JSON: text into a slot's memory, a slot's memory into text.
//!
//! What a value means here, in both directions:
//!
//! | datatype | JSON |
//! |---|---|
//! | FP16, FP32, FP64 | any JSON number (RFC 8259), read as the nearest value, halves to even, `-0` with its sign; too small for the datatype is 0, too large is refused. Written as the shortest text that reads back as the same value |
//! | INT8 … UINT64 | a JSON number without fraction and exponent, exact in all 64 bits: it is never a float on the way. Outside of the datatype's range is refused |
//! | BOOL | `true` or `false`, no numbers |
//! | BYTES | a JSON string, which stands for its bytes in UTF-8 |
//! | NaN, infinities, bytes that are not UTF-8 | none: JSON has no word for them, and a reader that invents one cannot be read by others. As input they are refused (400), an output that holds one is not written ([`NoJson`], 422). The binary form carries every bit |
//!
//! Anything that is not JSON (`01`, `+1`, `.5`, `1.`, `0x1`, `NaN`, `1_000`) is refused, however long or large it
//! is. Errors name the element by its index and never repeat a value: values are the caller's data and errors
//! are logged.
//!
//! [`read`] parses `data` (flat or nested, row-major) straight into the bytes that the model will read: no
//! list of numbers is built in between, and nothing outside `out` is written. How long strings are is known only
//! when they are read: [`read_strings`] gives them in the form of [`crate::strings`].

use edgeward_models::manifest::Datatype;
use half::f16;

use super::decimal::{Wrong, float16, float32, float64, integer};
use super::json;
use crate::element::{Element, Truth, with_element};
use crate::strings;

/// The deepest nesting of `data`: twice what any shape has.
const MAX_DEPTH: usize = 16;

/// What is wrong with `data`. `element` counts from 0 in row-major order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    #[error("element {element} is not {expected}")]
    Element {
        element: usize,
        expected: &'static str,
    },
    #[error("element {element} is outside the range of {datatype}")]
    Range {
        element: usize,
        datatype: &'static str,
    },
    #[error("data has {found} elements, the shape needs {expected}")]
    TooFew { found: usize, expected: usize },
    #[error("data has more elements than the {expected} of the shape")]
    TooMany { expected: usize },
    #[error("data is not a JSON array of values: {what} after element {element}")]
    Form { element: usize, what: &'static str },
    #[error("data is nested deeper than {MAX_DEPTH}")]
    Depth,
}

/// An output value that JSON cannot write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("element {element} is not {expected}")]
pub struct NoJson {
    pub element: usize,
    pub expected: &'static str,
}

/// How the values of one datatype stand in JSON.
trait JsonElement: Element {
    /// What [`Self::read`] takes, for an error.
    const EXPECTED: &'static str;
    /// The value that begins at an offset, and where it ends.
    fn read(text: &[u8], at: usize) -> Result<(Self, usize), Wrong>;
    /// False: JSON has no word for this value.
    fn write(self, out: &mut Vec<u8>) -> bool;
}

macro_rules! integers {
    ($($type:ty),*) => {
        $(impl JsonElement for $type {
            const EXPECTED: &'static str = "an integer without fraction and exponent";

            #[inline(always)]
            fn read(text: &[u8], at: usize) -> Result<(Self, usize), Wrong> {
                let (negative, magnitude, end) = integer(text, at)?;
                let value = if negative {
                    0i128 - i128::from(magnitude)
                } else {
                    i128::from(magnitude)
                };
                Self::try_from(value).map(|value| (value, end)).map_err(|_| Wrong::Range)
            }

            #[inline(always)]
            fn write(self, out: &mut Vec<u8>) -> bool {
                print(&self, out)
            }
        })*
    };
}

macro_rules! floats {
    ($($type:ty: $read:expr, $wide:expr);*) => {
        $(impl JsonElement for $type {
            const EXPECTED: &'static str =
                "a JSON number (NaN and infinities are none: send them as binary data)";

            #[inline(always)]
            fn read(text: &[u8], at: usize) -> Result<(Self, usize), Wrong> {
                $read(text, at)
            }

            #[inline(always)]
            fn write(self, out: &mut Vec<u8>) -> bool {
                self.is_finite() && print(&$wide(self), out)
            }
        })*
    };
}

integers!(u8, u16, u32, u64, i8, i16, i32, i64);
floats!(f16: float16, f16::to_f32; f32: float32, std::convert::identity; f64: float64, std::convert::identity);

impl JsonElement for Truth {
    const EXPECTED: &'static str = "true or false";

    fn read(text: &[u8], at: usize) -> Result<(Self, usize), Wrong> {
        let rest = text.get(at..).unwrap_or_default();
        if rest.starts_with(b"true") {
            Ok((Self(true), at + 4))
        } else if rest.starts_with(b"false") {
            Ok((Self(false), at + 5))
        } else {
            Err(Wrong::Form)
        }
    }

    fn write(self, out: &mut Vec<u8>) -> bool {
        print(&self.0, out)
    }
}

fn print(value: &(impl serde::Serialize + ?Sized), out: &mut Vec<u8>) -> bool {
    serde_json::to_writer(out, value).is_ok()
}

/// Parses a whole JSON array into `out`, which the array must fill exactly. On an error `out` holds garbage.
/// For any datatype but strings, which [`read_strings`] reads.
pub fn read(datatype: Datatype, text: &[u8], out: &mut [u8]) -> Result<(), DataError> {
    with_element!(datatype, T => read_elements::<T>(datatype, text, out), strings => {
        let expected = "a number";
        Err(DataError::Element { element: 0, expected })
    })
}

#[inline(always)]
fn read_elements<T: JsonElement>(
    datatype: Datatype,
    text: &[u8],
    out: &mut [u8],
) -> Result<(), DataError> {
    let expected = out.len() / T::SIZE;
    let mut places = out.chunks_exact_mut(T::SIZE);
    array(text, expected, |at, element| {
        let (value, end) = T::read(text, at).map_err(|wrong| match wrong {
            Wrong::Form => DataError::Element {
                element,
                expected: T::EXPECTED,
            },
            Wrong::Range => DataError::Range {
                element,
                datatype: datatype.name(),
            },
        })?;
        match places.next() {
            Some(place) => value.store(place),
            None => return Err(DataError::TooMany { expected }),
        }
        Ok(end)
    })
}

/// Parses a whole JSON array of so many strings.
pub fn read_strings(text: &[u8], expected: usize) -> Result<Vec<u8>, DataError> {
    let mut out = Vec::new();
    array(text, expected, |at, element| {
        let wrong = DataError::Element {
            element,
            expected: "a JSON string in UTF-8",
        };
        let (string, end) = json::string_at(text, at).map_err(|_| wrong.clone())?;
        if element == expected {
            return Err(DataError::TooMany { expected });
        }
        strings::push(&mut out, element, string.as_bytes()).map_err(|_| wrong)?;
        Ok(end)
    })?;
    Ok(out)
}

/// Walks an array of so many elements; `each` reads the one at an offset, by its number, and says where it ends.
#[inline(always)]
fn array(
    text: &[u8],
    expected: usize,
    mut each: impl FnMut(usize, usize) -> Result<usize, DataError>,
) -> Result<(), DataError> {
    let mut count = 0;
    let mut depth = 0usize;
    let mut at = 0;
    let form = |element, what| DataError::Form { element, what };
    loop {
        at = skip_space(text, at);
        let closing_empty = match text.get(at) {
            Some(b'[') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(DataError::Depth);
                }
                at = skip_space(text, at + 1);
                // `[]` is an array without elements; any other value is read by the next turn.
                if text.get(at) != Some(&b']') {
                    continue;
                }
                true
            }
            Some(_) if depth > 0 => false,
            Some(_) => return Err(form(count, "no array begins")),
            None => return Err(form(count, "the text ends")),
        };
        if !closing_empty {
            at = each(at, count)?;
            count += 1;
        }
        loop {
            at = skip_space(text, at);
            match text.get(at) {
                Some(b',') => {
                    at += 1;
                    break;
                }
                Some(b']') => {
                    depth -= 1;
                    at += 1;
                    if depth == 0 {
                        if skip_space(text, at) != text.len() {
                            return Err(form(count, "something follows the array"));
                        }
                        if count < expected {
                            return Err(DataError::TooFew {
                                found: count,
                                expected,
                            });
                        }
                        return Ok(());
                    }
                }
                Some(_) => return Err(form(count, "no comma or bracket stands")),
                None => return Err(form(count, "the text ends")),
            }
        }
    }
}

#[inline(always)]
fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// Writes a tensor's values as one flat JSON array.
pub fn write(datatype: Datatype, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NoJson> {
    out.push(b'[');
    with_element!(datatype, T => write_elements::<T>(bytes, out), strings => write_strings(bytes, out))?;
    out.push(b']');
    Ok(())
}

#[inline(always)]
fn write_elements<T: JsonElement>(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NoJson> {
    for (element, value) in bytes.chunks_exact(T::SIZE).enumerate() {
        if element > 0 {
            out.push(b',');
        }
        if !T::load(value).write(out) {
            return Err(NoJson {
                element,
                expected: "a finite number",
            });
        }
    }
    Ok(())
}

fn write_strings(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NoJson> {
    for (element, string) in strings::elements(bytes).enumerate() {
        if element > 0 {
            out.push(b',');
        }
        let text = string.ok().and_then(|s| std::str::from_utf8(s).ok());
        if !text.is_some_and(|text| print(text, out)) {
            return Err(NoJson {
                element,
                expected: "UTF-8",
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
