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

/// Whether an output is what it must be: numbers by the formula of [`Tolerance`], strings to the last byte. The
/// error says where it is not.
pub(in crate::serving) fn compare(
    expected: &Expected,
    shape: &[i64],
    bytes: &[u8],
    tolerance: Tolerance,
) -> Result<(), String> {
    let Expected { name, datatype, .. } = expected;
    let answer = Values::of(*datatype, bytes)?;
    if shape != expected.shape || answer.len() != expected.values.len() {
        return Err(format!(
            "output {name:?} has shape {shape:?} where {:?} is expected",
            expected.shape
        ));
    }
    match (&answer, &expected.values) {
        (Values::Numbers(answer), Values::Numbers(wanted)) => {
            numbers(name, *datatype, answer, wanted, tolerance)
        }
        (Values::Strings(answer), Values::Strings(wanted)) => {
            match answer.iter().zip(wanted).position(|(a, b)| a != b) {
                None => Ok(()),
                Some(place) => Err(format!(
                    "output {name:?}: element {place} is another string than expected"
                )),
            }
        }
        // Two empty tensors.
        _ => Ok(()),
    }
}

fn numbers(
    name: &str,
    datatype: Datatype,
    answer: &[f64],
    expected: &[f64],
    tolerance: Tolerance,
) -> Result<(), String> {
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
    match worst {
        None => Ok(()),
        Some((place, difference)) => Err(format!(
            "output {name:?} differs by {difference:.3e} where {allowed:.3e} is allowed (element {place} is {}, \
             expected {})",
            answer[place], expected[place]
        )),
    }
}
