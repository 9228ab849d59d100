//! The `classification` extension: the largest values of an output, as text, in place of all of them.
//!
//! An output that was asked for with `"classification": n` comes back as BYTES of shape `[n]`, or `[batch, n]` where
//! the output has more than one dimension: `value:index` each, the largest first, the lower index first among equals
//! (NaN counts as smaller than anything). Values are written as Triton writes them: six decimals for reals. Labels,
//! which would follow, no manifest carries.
//! (Source: Triton's `docs/protocol/extension_classification.md`.)

use std::borrow::Cow;

use edgeward_models::manifest::{Datatype, TensorSpec};

use super::reply::Wished;
use crate::element::{Element, with_element};
use crate::strings;
use crate::worker::Answer;

/// An output as its caller wants it.
pub struct Given<'a> {
    pub datatype: Datatype,
    pub shape: Cow<'a, [i64]>,
    pub bytes: Cow<'a, [u8]>,
}

/// The output that `wished` means: itself, or its largest values.
pub fn given<'a>(answer: &'a Answer, spec: &TensorSpec, wished: &Wished) -> Given<'a> {
    let (shape, bytes) = (answer.shape(wished.index), answer.output(wished.index));
    match wished.classes {
        None => Given {
            datatype: spec.datatype,
            shape: shape.into(),
            bytes: bytes.into(),
        },
        Some(most) => largest(spec.datatype, shape, bytes, most),
    }
}

/// Whether an output's values have an order.
pub const fn are_ordered(datatype: Datatype) -> bool {
    !matches!(datatype, Datatype::Bytes | Datatype::Bool)
}

fn largest(datatype: Datatype, shape: &[i64], bytes: &[u8], most: usize) -> Given<'static> {
    let rows = match shape {
        [] | [_] => None,
        [rows, ..] => usize::try_from(*rows).ok(),
    };
    let (texts, most) = match datatype {
        // Beyond what an f64 tells apart.
        Datatype::Int64 => texts(&loaded::<i64>(bytes), rows, most, |value| value.to_string()),
        Datatype::Uint64 => texts(&loaded::<u64>(bytes), rows, most, |value| value.to_string()),
        _ => {
            let real = matches!(datatype, Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64);
            let decimals = if real { 6 } else { 0 };
            let values = with_element!(datatype, T => reals::<T>(bytes), strings => Vec::new());
            texts(&values, rows, most, |value| format!("{value:.decimals$}"))
        }
    };
    let shape = rows.into_iter().chain([most]);
    Given {
        datatype: Datatype::Bytes,
        shape: shape.map(|length| length as i64).collect(),
        bytes: texts.into(),
    }
}

fn loaded<T: Element>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(T::SIZE).map(T::load).collect()
}

fn reals<T: Element>(bytes: &[u8]) -> Vec<f64> {
    let values = bytes.chunks_exact(T::SIZE);
    values.map(|value| T::load(value).to_f64()).collect()
}

/// Of each row its largest values, as a tensor of strings, and how many.
fn texts<T: PartialOrd + Copy>(
    values: &[T],
    rows: Option<usize>,
    most: usize,
    text: impl Fn(T) -> String,
) -> (Vec<u8>, usize) {
    let length = values.len().checked_div(rows.unwrap_or(1)).unwrap_or(0);
    let most = most.min(length);
    let mut texts = Vec::new();
    for row in values.chunks(length.max(1)) {
        for index in largest_of(row, most) {
            let text = format!("{}:{index}", text(row[index]));
            // Only a text of 4 GiB does not fit.
            let _ = strings::push(&mut texts, index, text.as_bytes());
        }
    }
    (texts, most)
}

/// Indices into `row`, those of the largest values first.
fn largest_of<T: PartialOrd>(row: &[T], most: usize) -> Vec<usize> {
    let is_nan = |index: usize| row[index].partial_cmp(&row[index]).is_none();
    let order = |a: &usize, b: &usize| {
        let larger_first = row[*b].partial_cmp(&row[*a]);
        larger_first
            .unwrap_or_else(|| is_nan(*a).cmp(&is_nan(*b)))
            .then(a.cmp(b))
    };
    let mut indices: Vec<usize> = (0..row.len()).collect();
    if most < indices.len() {
        indices.select_nth_unstable_by(most, order);
        indices.truncate(most);
    }
    indices.sort_unstable_by(order);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(given: &Given<'_>) -> Vec<String> {
        let elements = crate::strings::elements(&given.bytes);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        elements.map(|s| text(s.expect("whole"))).collect()
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn the_largest_come_first_row_by_row() {
        let values = bytes(&[0.1, 0.7, 0.2, f32::NAN, 5.0, 5.0]);
        let given = largest(Datatype::Fp32, &[2, 3], &values, 2);
        assert_eq!(given.shape[..], [2, 2]);
        assert_eq!(
            strings(&given),
            ["0.700000:1", "0.200000:2", "5.000000:1", "5.000000:2"]
        );
    }

    #[test]
    fn one_dimension_is_one_row_and_more_than_there_are_is_all() {
        let given = largest(Datatype::Int8, &[3], &[1, 0xff, 7], 10);
        assert_eq!(given.shape[..], [3]);
        assert_eq!(strings(&given), ["7:2", "1:0", "-1:1"]);
        let none = largest(Datatype::Fp32, &[0, 4], &[], 2);
        assert_eq!(none.shape[..], [0, 0]);
        assert!(none.bytes.is_empty());
    }

    #[test]
    fn large_integers_keep_their_last_digit() {
        let values: Vec<u8> = [u64::MAX - 1, u64::MAX]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let given = largest(Datatype::Uint64, &[2], &values, 2);
        assert_eq!(
            strings(&given),
            ["18446744073709551615:1", "18446744073709551614:0"]
        );
    }
}
