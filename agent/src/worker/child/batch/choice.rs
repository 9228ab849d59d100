//! Which requests run together, and whether to wait for more.

use crate::config::Batching;
use crate::worker::wire::{Job, TensorRef};

/// What to do with the jobs that are queued behind the first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Run so many of them together with it.
    Run(usize),
    /// Better wait for more.
    Wait,
}

/// How many of the jobs behind the first run with it, in their order.
pub(super) fn choose(first: &Job, queued: &[Job], settings: &Batching, may_wait: bool) -> Choice {
    let most = settings.max_batch_size as usize;
    let Some(row) = Row::of(first) else {
        return Choice::Run(0);
    };
    let mut size = row.count;
    let mut count = 0;
    // Jobs up to which the size is one of the preferred ones.
    let mut preferred = settings.prefers(size).then_some(0);
    for job in queued {
        let Some(other) = Row::of(job).filter(|other| row.fits(other)) else {
            break;
        };
        if size + other.count > most {
            break;
        }
        size += other.count;
        count += 1;
        if settings.prefers(size) {
            preferred = Some(count);
        }
    }
    if let Some(count) = preferred {
        return Choice::Run(count);
    }
    // The next one does not fit, or all who are on their way have come.
    let closed = count < queued.len() || size >= most;
    let company = queued.iter().map(|job| job.company).max().unwrap_or(0);
    let awaited = company.max(first.company) as usize > count + 1;
    if may_wait && awaited && !closed {
        Choice::Wait
    } else {
        Choice::Run(count)
    }
}

/// Rows of a job that may be joined with others; `None`: it is to be run by itself.
pub(super) fn size(job: &Job) -> Option<usize> {
    Row::of(job).map(|row| row.count)
}

/// What requests that run together have in common: a row of each input. And how many rows one brings.
struct Row<'a> {
    count: usize,
    job: &'a Job,
}

impl<'a> Row<'a> {
    /// `None`: the job is to be run by itself.
    fn of(job: &'a Job) -> Option<Self> {
        if job.company == 0 || job.own_memory > 0 || job.stream.number > 0 {
            return None;
        }
        let first = |input: &TensorRef| Some(*input.shape.dimensions().first()? as usize);
        let count = first(job.inputs.first()?)?;
        let whole = |input: &TensorRef| {
            first(input) == Some(count) && input.length.is_multiple_of(count as u64)
        };
        (count > 0 && job.inputs.iter().all(whole)).then_some(Self { count, job })
    }

    fn fits(&self, other: &Self) -> bool {
        let same = |(a, b): (&TensorRef, &TensorRef)| {
            a.shape.dimensions()[1..] == b.shape.dimensions()[1..]
                && a.length / self.count as u64 == b.length / other.count as u64
        };
        self.job.signature == other.job.signature
            && self.job.inputs.len() == other.job.inputs.len()
            && self.job.inputs.iter().zip(&other.job.inputs).all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::wire::{Shape, Stream};

    fn settings(most: u32, preferred: &[u32]) -> Batching {
        Batching {
            max_batch_size: most,
            max_delay_us: 1,
            preferred_sizes: preferred.to_vec(),
        }
    }

    /// A job of so many rows, of four bytes each; all others are on their way.
    fn job(rows: i64) -> Job {
        let input = TensorRef {
            offset: 0,
            length: rows as u64 * 4,
            shape: Shape::new([rows, 4]).expect("shape"),
        };
        Job {
            id: 1,
            slot: 0,
            signature: 0,
            stream: Stream::default(),
            sent_at: 0,
            core: 0,
            company: 100,
            own_memory: 0,
            inputs: vec![input],
        }
    }

    fn jobs(rows: &[i64]) -> Vec<Job> {
        rows.iter().map(|&rows| job(rows)).collect()
    }

    #[test]
    fn a_batch_has_room_for_the_maximum_and_is_held_back_while_others_are_on_their_way() {
        let settings = settings(8, &[]);
        let choose = |queued: &[i64], wait| choose(&job(2), &jobs(queued), &settings, wait);
        assert_eq!(choose(&[1, 1, 3], false), Choice::Run(3));
        assert_eq!(choose(&[1, 1, 3], true), Choice::Wait);
        assert_eq!(choose(&[3, 3, 1], true), Choice::Run(2), "full");
        assert_eq!(
            choose(&[3, 4, 1], true),
            Choice::Run(1),
            "the next is too large"
        );
        assert_eq!(choose(&[9], false), Choice::Run(0));
        assert_eq!(choose(&[], false), Choice::Run(0));
    }

    #[test]
    fn who_comes_alone_does_not_wait() {
        let mut first = job(1);
        first.company = 1;
        assert_eq!(choose(&first, &[], &settings(8, &[]), true), Choice::Run(0));
        first.company = 2;
        assert_eq!(choose(&first, &[], &settings(8, &[]), true), Choice::Wait);
        let mut second = job(1);
        second.company = 2;
        let both = choose(&first, &[second], &settings(8, &[]), true);
        assert_eq!(both, Choice::Run(1), "all are there");
    }

    #[test]
    fn a_preferred_size_is_not_left_for_a_larger_one_that_is_not_preferred() {
        let settings = settings(8, &[4, 8]);
        let choose = |queued: &[i64], wait| choose(&job(1), &jobs(queued), &settings, wait);
        assert_eq!(choose(&[1, 2, 1], true), Choice::Run(2), "4 of 5");
        assert_eq!(choose(&[1, 2, 1, 3, 1], true), Choice::Run(4), "8 of 9");
        assert_eq!(choose(&[1], true), Choice::Wait);
        assert_eq!(choose(&[1], false), Choice::Run(1));
    }

    #[test]
    fn only_requests_of_one_kind_run_together() {
        let settings = settings(8, &[]);
        let alone = |change: &dyn Fn(&mut Job)| {
            let mut other = job(1);
            change(&mut other);
            let first = choose(&job(1), &[other.clone(), job(1)], &settings, true);
            assert_eq!(first, Choice::Run(0));
        };
        alone(&|job| job.signature = 1);
        alone(&|job| job.company = 0);
        alone(&|job| job.own_memory = 1);
        alone(&|job| job.stream.number = 1);
        alone(&|job| job.inputs.push(job.inputs[0]));
        alone(&|job| job.inputs[0].length = 8);
        alone(&|job| job.inputs[0].shape = Shape::new([1, 2, 2]).expect("shape"));
        alone(&|job| job.inputs[0].shape = Shape::default());
        alone(&|job| job.inputs.clear());
    }
}
