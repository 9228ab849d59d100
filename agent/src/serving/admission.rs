//! What a request must be before it gets a slot: of a known shape, and not one too many.
//!
//! A request waits for a slot at most the queue time, and only so many wait at once: that is all the
//! back-pressure there is. Everything here runs on the path of every request and allocates only to refuse.

use std::sync::atomic::{AtomicUsize, Ordering};

use edgeward_models::manifest::{Datatype, TensorSpec, byte_size};

use super::error::ServeError;

/// Requests that may wait for each slot. Under overload every answer takes as long as all places together, so
/// they are few: with a model of a millisecond and the default slots, about 50 ms. Each also holds a
/// connection and its body.
const WAITERS_PER_SLOT: usize = 2;

/// The longest time a caller is told to stay away.
const LONGEST_RETRY_SECONDS: u64 = 60;

/// Counts the requests that wait for a slot of one version.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    waiting: AtomicUsize,
    places: usize,
    slots: usize,
}

/// A place in the waiting room, given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a WaitingRoom);

impl WaitingRoom {
    /// For a version with so many slots.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            places: slots * WAITERS_PER_SLOT,
            slots,
        }
    }

    /// `None` when every place is taken.
    pub(super) fn enter(&self) -> Option<Place<'_>> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.places {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place(self))
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Requests before one that comes now, at most: all slots and all who wait.
    pub(super) fn ahead(&self) -> usize {
        self.slots + self.waiting.load(Ordering::Relaxed)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// When a refused caller has a fair chance: the time that `ahead` requests take at the latest invoke's pace.
pub(super) fn retry_after_seconds(ahead: usize, instances: usize, invoke_micros: u64) -> u64 {
    let micros = (ahead as u64).saturating_mul(invoke_micros) / instances.max(1) as u64;
    micros.div_ceil(1_000_000).clamp(1, LONGEST_RETRY_SECONDS)
}

/// Checks a request's shape against the specification: rank, fixed dimensions, free ones at least 1.
/// Returns the bytes of the tensor; `None` for strings, which say themselves how long they are. The error names
/// the tensor and both shapes.
pub fn check_shape(spec: &TensorSpec, shape: &[i64]) -> Result<Option<u64>, ServeError> {
    let fits = |(&wanted, &given): (&i64, &i64)| {
        if wanted < 0 {
            given >= 1
        } else {
            given == wanted
        }
    };
    if spec.shape.len() != shape.len() || !spec.shape.iter().zip(shape).all(fits) {
        return Err(ServeError::Invalid(format!(
            "input {:?}: the shape must be {}, not {}{}",
            spec.name,
            written(&spec.shape),
            written(shape),
            if spec.shape.contains(&-1) {
                " (-1 stands for any size of at least 1)"
            } else {
                ""
            }
        )));
    }
    let dimensions = shape.iter().map(|&d| d as u64);
    let countable = match spec.datatype {
        // Their lengths alone.
        Datatype::Bytes => byte_size(Datatype::Uint32, dimensions).map(|_| None),
        datatype => byte_size(datatype, dimensions).map(Some),
    };
    countable.ok_or_else(|| {
        ServeError::Invalid(format!(
            "input {:?}: the shape {} (the model takes {}) holds more bytes than can be counted",
            spec.name,
            written(shape),
            written(&spec.shape)
        ))
    })
}

/// Checks shape and size of an input.
pub(super) fn check_input(
    spec: &TensorSpec,
    shape: &[i64],
    bytes: usize,
) -> Result<(), ServeError> {
    match check_shape(spec, shape)? {
        Some(needed) if needed != bytes as u64 => Err(ServeError::Invalid(format!(
            "input {:?}: it has {bytes} bytes, the shape {} of {} needs {needed}",
            spec.name,
            written(shape),
            spec.datatype.name()
        ))),
        _ => Ok(()),
    }
}

/// A shape as people write it. A foreign one may be long: only its first dimensions are shown.
fn written(shape: &[i64]) -> String {
    const SHOWN: usize = 16;
    let mut text: Vec<String> = shape.iter().take(SHOWN).map(i64::to_string).collect();
    if shape.len() > SHOWN {
        text.push(format!("… {} dimensions", shape.len()));
    }
    format!("[{}]", text.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(datatype: Datatype, shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: "image".to_owned(),
            datatype,
            shape: shape.to_vec(),
            quantization: None,
        }
    }

    #[test]
    fn free_dimensions_take_any_size_and_fixed_ones_only_their_own() {
        let image = spec(Datatype::Fp32, &[-1, 8, 8, 1]);
        assert_eq!(check_shape(&image, &[1, 8, 8, 1]).expect("one"), Some(256));
        assert_eq!(
            check_shape(&image, &[3, 8, 8, 1]).expect("three"),
            Some(768)
        );
        for wrong in [
            &[8, 8, 1][..],
            &[0, 8, 8, 1],
            &[-1, 8, 8, 1],
            &[1, 8, 9, 1],
            &[1, 8, 8, 1, 1],
            &[],
        ] {
            let error = check_shape(&image, wrong)
                .expect_err("wrong shape")
                .to_string();
            assert!(error.contains("image"), "{error}");
            assert!(error.contains("[-1, 8, 8, 1]"), "{error}");
            assert!(error.contains(&written(wrong)), "{error}");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_an_error_and_not_a_small_number() {
        let open = spec(Datatype::Fp64, &[-1, -1, -1]);
        let huge = i64::from(i32::MAX);
        assert!(check_shape(&open, &[huge, huge, huge]).is_err());
        assert!(check_shape(&open, &[i64::MAX, 1, 1]).is_err());
    }

    #[test]
    fn strings_are_as_long_as_they_are_and_everything_else_as_its_shape_says() {
        let text = spec(Datatype::Bytes, &[-1]);
        assert_eq!(check_shape(&text, &[3]).expect("strings"), None);
        assert!(check_shape(&text, &[i64::MAX]).is_err());
        assert!(check_input(&text, &[3], 12).is_ok());
        assert!(check_input(&text, &[3], 4711).is_ok());
        let numbers = spec(Datatype::Int16, &[-1]);
        assert!(check_input(&numbers, &[3], 6).is_ok());
        let error = check_input(&numbers, &[3], 5).expect_err("half a number");
        let error = error.to_string();
        assert!(
            error.contains("image") && error.contains("needs 6"),
            "{error}"
        );
    }

    #[test]
    fn a_scalar_has_the_bytes_of_one_element() {
        assert_eq!(
            check_shape(&spec(Datatype::Int64, &[]), &[]).expect("scalar"),
            Some(8)
        );
    }

    #[test]
    fn the_waiting_room_has_an_end_and_places_come_back() {
        let room = WaitingRoom::new(2);
        let mut places: Vec<_> = (0..2 * WAITERS_PER_SLOT)
            .map(|_| room.enter().expect("a place"))
            .collect();
        assert!(room.enter().is_none());
        places.pop();
        assert!(room.enter().is_some());
        assert_eq!(room.ahead(), 2 + places.len());
    }

    #[test]
    fn a_refused_caller_is_sent_away_for_at_least_a_second_and_at_most_a_minute() {
        assert_eq!(retry_after_seconds(0, 1, 0), 1);
        assert_eq!(retry_after_seconds(30, 2, 200_000), 3);
        assert_eq!(retry_after_seconds(1000, 1, 10_000_000), 60);
        assert_eq!(retry_after_seconds(usize::MAX, 0, u64::MAX), 60);
    }
}
