//! How many rows the invokes of a version had, where its requests are joined.
//!
//! One that a version was not asked to join counts nowhere here.

use std::sync::atomic::{AtomicU64, Ordering};

use super::stats::Shown;
use crate::worker::Batch;

/// Upper bounds of the histogram's buckets.
const BOUNDS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024];

/// Sizes of batches since the version was loaded.
#[derive(Debug, Default)]
pub(super) struct Batches {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
    /// Requests that came with another's invoke.
    joined: AtomicU64,
}

impl Batches {
    /// A request was answered by this invoke.
    pub(super) fn answered(&self, batch: Batch) {
        if !batch.first {
            self.joined.fetch_add(1, Ordering::Relaxed);
        } else if batch.size > 0 {
            let size = u64::from(batch.size);
            let place = BOUNDS.partition_point(|&bound| bound < size);
            self.counts[place].fetch_add(1, Ordering::Relaxed);
            self.sum.fetch_add(size, Ordering::Relaxed);
        }
    }

    pub(super) fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
    }

    pub(super) fn shown(&self) -> Shown {
        let mut total = 0;
        let counts = self.counts.iter().map(|count| {
            total += count.load(Ordering::Relaxed);
            total
        });
        Shown {
            bounds: BOUNDS.iter().map(|&bound| bound as f64).collect(),
            cumulative: counts.collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invoke_counts_once_with_its_rows_and_whoever_came_with_it_beside() {
        let batches = Batches::default();
        let answered = |size, first| batches.answered(Batch { size, first });
        answered(0, true);
        answered(1, true);
        for first in [true, false, false] {
            answered(5, first);
        }
        answered(5000, true);
        let shown = batches.shown();
        assert_eq!(shown.cumulative, [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3]);
        assert_eq!(shown.sum, 5006.0);
        assert_eq!(batches.joined(), 2);
    }
}
