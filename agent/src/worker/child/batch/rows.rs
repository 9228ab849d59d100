//! Which rows of a joined answer are whose.

use std::borrow::Cow;

use super::choice::size;
use crate::worker::wire::{Batch, Job, Shape};

/// One request's rows of a joined answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker::child) struct Rows {
    begin: usize,
    count: usize,
    /// All rows together.
    pub(super) of: usize,
}

/// Each job's rows, in the order of the jobs.
pub(super) fn of(jobs: &[Job]) -> Option<Vec<Rows>> {
    let counts: Option<Vec<usize>> = jobs.iter().map(size).collect();
    let counts = counts?;
    let of = counts.iter().sum();
    let mut begin = 0;
    let rows = counts.into_iter().map(|count| {
        let rows = Rows { begin, count, of };
        begin += count;
        rows
    });
    Some(rows.collect())
}

impl Rows {
    /// These rows of an output, with their shape.
    pub(in crate::worker::child) fn cut<'b>(
        self,
        shape: Shape,
        bytes: Cow<'b, [u8]>,
    ) -> Result<(Shape, Cow<'b, [u8]>), String> {
        let first = shape.dimensions().first();
        if first.and_then(|&d| usize::try_from(d).ok()) != Some(self.of) {
            return Err(format!("it has not the {} rows of the input", self.of));
        }
        let row = bytes.len() / self.of;
        let range = self.begin * row..(self.begin + self.count) * row;
        let bytes = match bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
            Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
        };
        Ok((shape.with_first(self.count as i32), bytes))
    }
}

/// What is said of the invoke that answered a job.
pub(in crate::worker::child) fn batch(job: &Job, rows: Option<Rows>) -> Batch {
    match rows {
        Some(rows) => Batch {
            size: rows.of as u32,
            first: rows.begin == 0,
        },
        None => Batch {
            size: size(job).map_or(0, |count| count as u32),
            first: true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_where_its_rows_end_and_only_if_it_has_them() {
        let (count, of) = (2, 5);
        let shape = Shape::new([5, 2]).expect("shape");
        let bytes: Vec<u8> = (0..10).collect();
        let rows = Rows {
            begin: 3,
            count,
            of,
        };
        let (cut, part) = rows.cut(shape, Cow::Borrowed(&bytes)).expect("cut");
        assert_eq!(
            (cut, &*part),
            (Shape::new([2, 2]).expect("shape"), &bytes[6..10])
        );
        for other in [&[4, 2][..], &[]] {
            let shape = Shape::new(other.iter().copied()).expect("shape");
            assert!(rows.cut(shape, Cow::Borrowed(&bytes)).is_err());
        }
    }
}
