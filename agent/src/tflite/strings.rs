//! TFLite's layout of a tensor of strings: how many there are, where each begins and where the last one ends (32
//! bits each, counted from the beginning of the buffer), then all of their bytes.
//!
//! A buffer that a model wrote is as foreign as the model: every number is checked before it is followed.

use crate::strings::{self, StringsError};

/// Bytes of the count and of each offset.
const WORD: usize = size_of::<i32>();

/// Why there is no tensor of strings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayoutError {
    #[error("its strings are not laid out as TFLite lays them out")]
    Malformed,
    #[error("its strings are larger than the 2 GiB of a tensor")]
    TooLarge,
    #[error(transparent)]
    Strings(#[from] StringsError),
}

/// What TFLite reads, of what [`crate::strings`] holds.
pub(crate) fn to_tflite(elements: &[u8]) -> Result<Vec<u8>, LayoutError> {
    let mut lengths = Vec::new();
    for element in strings::elements(elements) {
        lengths.push(element?.len());
    }
    let word = |number: usize| i32::try_from(number).map_err(|_| LayoutError::TooLarge);
    let mut end = (lengths.len() + 2) * WORD;
    let mut buffer = Vec::with_capacity(end + lengths.iter().sum::<usize>());
    buffer.extend(word(lengths.len())?.to_le_bytes());
    buffer.extend(word(end)?.to_le_bytes());
    for length in lengths {
        end += length;
        buffer.extend(word(end)?.to_le_bytes());
    }
    for element in strings::elements(elements) {
        buffer.extend_from_slice(element?);
    }
    Ok(buffer)
}

/// The other way. A buffer without a byte is a tensor without a string.
pub(crate) fn from_tflite(buffer: &[u8]) -> Result<Vec<u8>, LayoutError> {
    if buffer.is_empty() {
        return Ok(Vec::new());
    }
    let word = |index: usize| {
        let bytes = buffer.get(index * WORD..)?.first_chunk::<WORD>()?;
        usize::try_from(i32::from_le_bytes(*bytes)).ok()
    };
    let count = word(0).ok_or(LayoutError::Malformed)?;
    let table = count.checked_add(2).and_then(|n| n.checked_mul(WORD));
    if table.is_none_or(|table| table > buffer.len()) {
        return Err(LayoutError::Malformed);
    }
    let mut elements = Vec::with_capacity(buffer.len());
    for number in 0..count {
        let range = word(number + 1).zip(word(number + 2));
        let element = range.and_then(|(begin, end)| buffer.get(begin..end));
        strings::push(
            &mut elements,
            number,
            element.ok_or(LayoutError::Malformed)?,
        )?;
    }
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn elements(strings: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, string) in strings.iter().enumerate() {
            strings::push(&mut bytes, number, string).expect("short");
        }
        bytes
    }

    #[test]
    fn the_layout_is_tflites_own() {
        let buffer = to_tflite(&elements(&[b"ab".to_vec(), b"".to_vec(), b"c".to_vec()]));
        let words = [3i32, 20, 22, 22, 23].map(i32::to_le_bytes).concat();
        assert_eq!(buffer.expect("laid out"), [&words[..], b"abc"].concat());
        let none = [0i32, 8].map(i32::to_le_bytes).concat();
        assert_eq!(to_tflite(&[]).expect("laid out"), none);
        assert_eq!(from_tflite(&none), Ok(Vec::new()));
        assert_eq!(from_tflite(&[]), Ok(Vec::new()));
    }

    #[test]
    fn counts_and_offsets_that_lie_are_refused() {
        for words in [
            &[1i32][..],
            &[1, 12],
            &[-1, 8],
            &[i32::MAX, 8],
            &[1, 12, 13],
            &[1, -4, 12],
            &[1, 12, 8],
            &[2, 16, 12, 16],
            &[1, i32::MAX, i32::MAX],
        ] {
            let buffer: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert_eq!(
                from_tflite(&buffer),
                Err(LayoutError::Malformed),
                "{words:?}"
            );
        }
        assert!(to_tflite(&[1, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn strings_come_back_as_they_were(strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)) {
            let bytes = elements(&strings);
            let buffer = to_tflite(&bytes).expect("laid out");
            prop_assert_eq!(from_tflite(&buffer), Ok(bytes));
        }

        #[test]
        fn any_words_are_strings_or_refused_in_peace(words in prop::collection::vec(-1i32..40, 0..12), tail in 0usize..4) {
            let mut buffer: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            buffer.truncate(buffer.len().saturating_sub(tail));
            if let Ok(elements) = from_tflite(&buffer) {
                let count = words.first().map_or(0, |&count| i64::from(count));
                prop_assert_eq!(strings::check(&elements, &[count]), Ok(()));
            }
        }
    }
}
