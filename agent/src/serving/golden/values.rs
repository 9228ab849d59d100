//! A tensor's values as numbers or strings, and what counts as the same answer.

use edgeward_models::manifest::{Datatype, Tolerance};

use super::Expected;
use crate::element::{Element, with_element};
use crate::strings;

/// All values of a tensor, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serving) enum Values {
    /// Booleans as 0 and 1.
    Numbers(Vec<f64>),
    Strings(Vec<Vec<u8>>),
}

impl Values {
    /// What a tensor's bytes hold.
    pub(in crate::serving) fn of(datatype: Datatype, bytes: &[u8]) -> Result<Self, String> {
        fn numbers<T: Element>(bytes: &[u8]) -> Vec<f64> {
            let values = bytes.chunks_exact(T::SIZE).map(T::load);
            values.map(T::to_f64).collect()
        }
        with_element!(datatype, T => Ok(Self::Numbers(numbers::<T>(bytes))), strings => {
            let elements = strings::elements(bytes).map(|e| e.map(<[u8]>::to_vec));
            let elements = elements.collect::<Result<_, _>>();
            elements.map(Self::Strings).map_err(|e| e.to_string())
        })
    }

    /// The bytes of a tensor with these values.
    pub(in crate::serving) fn to_bytes(&self, datatype: Datatype) -> Result<Vec<u8>, String> {
        fn stored<T: Element>(datatype: Datatype, values: &[f64]) -> Result<Vec<u8>, String> {
            let mut bytes = vec![0; values.len() * T::SIZE];
            for (&value, place) in values.iter().zip(bytes.chunks_exact_mut(T::SIZE)) {
                let own = T::from_f64(value);
                own.ok_or_else(|| format!("{value} is not a value of {}", datatype.name()))?
                    .store(place);
            }
            Ok(bytes)
        }
        match self {
            Self::Numbers(values) => with_element!(datatype, T => stored::<T>(datatype, values),
                // Without elements nobody can tell numbers from strings.
                strings => if values.is_empty() { Ok(Vec::new()) } else { Err("a number is no string".to_owned()) }),
            Self::Strings(elements) => {
                let mut bytes = Vec::new();
                for (number, element) in elements.iter().enumerate() {
                    strings::push(&mut bytes, number, element).map_err(|e| e.to_string())?;
                }
                Ok(bytes)
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Strings(elements) => elements.len(),
        }
    }
}

/// How an output is not what it must be.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serving) enum Deviation {
    Shape,
    /// Another string.
    Text {
        place: usize,
    },
    /// Numbers that are further apart than is allowed, where they are furthest.
    Numbers {
        place: usize,
        largest: f64,
        allowed: f64,
        answer: f64,
        expected: f64,
    },
}

impl Deviation {
    /// The largest difference, and what is allowed.
    pub(in crate::serving) fn distance(&self) -> Option<(f64, f64)> {
        match self {
            Self::Numbers {
                largest, allowed, ..
            } => Some((*largest, *allowed)),
            Self::Shape | Self::Text { .. } => None,
        }
    }
}

/// Whether an output is what it must be. The error says where it is not.
pub(in crate::serving) fn compare(
    wanted: &Expected,
    shape: &[i64],
    bytes: &[u8],
    tolerance: Tolerance,
) -> Result<(), String> {
    let name = &wanted.name;
    Err(match deviation(wanted, shape, bytes, tolerance)? {
        None => return Ok(()),
        Some(Deviation::Shape) => format!(
            "output {name:?} has shape {shape:?} where {:?} is expected",
            wanted.shape
        ),
        Some(Deviation::Text { place }) => {
            format!("output {name:?}: element {place} is another string than expected")
        }
        Some(Deviation::Numbers {
            place,
            largest,
            allowed,
            answer,
            expected,
        }) => format!(
            "output {name:?} differs by {largest:.3e} where {allowed:.3e} is allowed (element {place} is {answer}, \
             expected {expected})"
        ),
    })
}

/// How an output is not what it must be, if it is not: numbers by the formula of [`Tolerance`], strings to the last
/// byte. The error: it cannot be read.
pub(in crate::serving) fn deviation(
    expected: &Expected,
    shape: &[i64],
    bytes: &[u8],
    tolerance: Tolerance,
) -> Result<Option<Deviation>, String> {
    let answer = Values::of(expected.datatype, bytes)?;
    if shape != expected.shape || answer.len() != expected.values.len() {
        return Ok(Some(Deviation::Shape));
    }
    Ok(match (&answer, &expected.values) {
        (Values::Numbers(answer), Values::Numbers(wanted)) => {
            numbers(expected.datatype, answer, wanted, tolerance)
        }
        (Values::Strings(answer), Values::Strings(wanted)) => {
            let other = answer.iter().zip(wanted).position(|(a, b)| a != b);
            other.map(|place| Deviation::Text { place })
        }
        // Two empty tensors.
        _ => None,
    })
}

fn numbers(
    datatype: Datatype,
    answer: &[f64],
    expected: &[f64],
    tolerance: Tolerance,
) -> Option<Deviation> {
    let allowed = match datatype {
        Datatype::Bool => 0.0,
        Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64 => {
            let finite = expected.iter().filter(|v| v.is_finite());
            tolerance.float * finite.fold(1.0, |most: f64, v| most.max(v.abs()))
        }
        _ => f64::from(tolerance.integer_steps),
    };
    let mut worst: Option<(usize, f64)> = None;
    for (place, (&got, &wanted)) in answer.iter().zip(expected).enumerate() {
        // Equal infinities and a NaN where a NaN is expected are right; any other is infinitely wrong.
        let difference = if got == wanted || (got.is_nan() && wanted.is_nan()) {
            0.0
        } else if got.is_finite() && wanted.is_finite() {
            (got - wanted).abs()
        } else {
            f64::INFINITY
        };
        if difference > allowed && worst.is_none_or(|(_, most)| difference > most) {
            worst = Some((place, difference));
        }
    }
    worst.map(|(place, largest)| Deviation::Numbers {
        place,
        largest,
        allowed,
        answer: answer[place],
        expected: expected[place],
    })
}
