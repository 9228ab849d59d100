//! Tensors of strings as bytes: of each element the length, four bytes little-endian, and then itself.
//!
//! This is the Open Inference Protocol's binary form, and the only one in which strings travel between doors, slots,
//! golden vectors and answers. What TFLite makes of it is known to the worker alone (`tflite::strings`). Elements
//! are any bytes; whether they are text is for whoever writes them as text to find out.

/// Bytes of each length.
pub const LENGTH: usize = size_of::<u32>();

/// Why bytes are not the strings of a tensor. Elements count from 0 in row-major order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StringsError {
    #[error("element {element} (4 bytes of length, then itself) ends beyond the tensor's bytes")]
    CutOff { element: usize },
    #[error("it holds {found} elements, the shape needs {expected}")]
    Count { found: usize, expected: usize },
    #[error("element {element} is longer than 4 GiB")]
    TooLong { element: usize },
}

/// Walks the elements. The first one that is cut off is an error and the last item.
pub fn elements(bytes: &[u8]) -> Elements<'_> {
    Elements {
        rest: bytes,
        number: 0,
    }
}

/// The elements of a tensor, in order.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], StringsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let element = self.rest.split_first_chunk::<LENGTH>();
        let element = element.and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            rest.split_at_checked(length)
        });
        let Some((element, rest)) = element else {
            self.rest = &[];
            let element = self.number;
            return Some(Err(StringsError::CutOff { element }));
        };
        self.rest = rest;
        self.number += 1;
        Some(Ok(element))
    }
}

/// That the bytes are whole elements, and as many as the shape has.
pub fn check(bytes: &[u8], shape: &[i64]) -> Result<(), StringsError> {
    let mut found = 0;
    for element in elements(bytes) {
        element?;
        found += 1;
    }
    let expected = shape
        .iter()
        .try_fold(1usize, |all, &d| all.checked_mul(usize::try_from(d).ok()?));
    if expected == Some(found) {
        return Ok(());
    }
    let expected = expected.unwrap_or(usize::MAX);
    Err(StringsError::Count { found, expected })
}

/// Appends an element, which is number `element` of its tensor.
pub fn push(to: &mut Vec<u8>, element: usize, bytes: &[u8]) -> Result<(), StringsError> {
    let length = u32::try_from(bytes.len()).map_err(|_| StringsError::TooLong { element })?;
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(strings: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, string) in strings.iter().enumerate() {
            push(&mut bytes, number, string).expect("short");
        }
        bytes
    }

    #[test]
    fn lengths_that_lie_are_refused_by_element() {
        let good = written(&[b"first".to_vec(), b"".to_vec(), b"third".to_vec()]);
        assert_eq!(check(&good, &[3, 1]), Ok(()));
        let cut_off = |element| Err(StringsError::CutOff { element });
        assert_eq!(check(&good[..good.len() - 1], &[3]), cut_off(2));
        assert_eq!(check(&good[..good.len() - 6], &[3]), cut_off(2));
        for lie in [6u32, u32::MAX, i32::MAX as u32] {
            let mut bytes = written(&[b"first".to_vec()]);
            bytes[..4].copy_from_slice(&lie.to_le_bytes());
            assert_eq!(check(&bytes, &[1]), cut_off(0), "{lie}");
        }
        let (found, expected) = (3, 4);
        assert_eq!(
            check(&good, &[2, 2]),
            Err(StringsError::Count { found, expected })
        );
        assert!(check(&good, &[i64::MAX, i64::MAX]).is_err());
        assert!(check(&[], &[1]).is_err());
    }

    proptest! {
        #[test]
        fn strings_come_back_as_they_were(strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)) {
            let bytes = written(&strings);
            let read: Result<Vec<&[u8]>, _> = elements(&bytes).collect();
            prop_assert_eq!(read.expect("whole"), strings.clone());
            prop_assert_eq!(check(&bytes, &[strings.len() as i64]), Ok(()));
        }

        #[test]
        fn any_bytes_are_strings_or_refused_in_peace(bytes in prop::collection::vec(0u8..6, 0..60), count in 0i64..20) {
            if check(&bytes, &[count]).is_ok() {
                let read: Result<Vec<&[u8]>, _> = elements(&bytes).collect();
                let read: Vec<Vec<u8>> = read.expect("whole").into_iter().map(<[u8]>::to_vec).collect();
                prop_assert_eq!(written(&read), bytes);
            }
        }
    }
}
