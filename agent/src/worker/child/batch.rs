//! Several requests in one invoke.
//!
//! A thread that has taken a job looks which of those behind it in the queue may run with it: neighbours of the same
//! signature whose inputs differ in the first dimension alone. So a batch forms while the interpreters are busy, and
//! a request that finds one idle waits for nothing; only if the configuration says so is a batch held back for more,
//! and only while other requests are on their way. Inputs are copied one behind the other into memory of the
//! thread's own, and each request gets its rows of the answer.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::time::Duration;

mod choice;
mod rows;

use choice::{Choice, choose, size};
pub(super) use rows::{Rows, batch};

use super::instance::{Inputs, Instance, Stopped};
use super::jobs::{Current, Shared};
use super::thread::{Came, Times, collect};
use crate::config::Batching;
use crate::worker::clock;
use crate::worker::memory::{Memory, aligned};
use crate::worker::slots::SLACK;
use crate::worker::wire::{Job, MAX_MESSAGE_BYTES, Outcome, TensorRef};

/// Joins the requests of one thread.
pub(super) struct Batcher {
    settings: Batching,
    /// Where joined inputs lie; as large as the largest batch so far.
    memory: Option<Memory>,
    /// Slots in the queue, as last seen.
    queued: Vec<u32>,
}

impl Batcher {
    pub(super) fn new(settings: Batching) -> Self {
        Self {
            settings,
            memory: None,
            queued: Vec::new(),
        }
    }

    /// Takes those jobs from the queue that are run together with `first`; often none.
    pub(super) fn join(
        &mut self,
        first: &Job,
        shared: &Shared,
        buffer: &mut [u8; MAX_MESSAGE_BYTES],
    ) -> io::Result<Vec<Job>> {
        let Shared {
            queue,
            memory,
            setup,
            ..
        } = shared;
        let layout = &setup.layout;
        let mut others = Vec::new();
        if size(first).is_none() {
            return Ok(others);
        }
        let until = first
            .sent_at
            .saturating_add(self.settings.max_delay_us * 1000);
        loop {
            let idle = queue.idle(memory);
            let left = until.saturating_sub(clock::nanoseconds());
            let mut waits = false;
            let seen = queue.take_more(memory, layout.slots, &mut self.queued, |queued| {
                // What others could begin at once is left to them.
                let share = (queued.len() + 1).div_ceil(idle + 1) - 1;
                let jobs = queued[..share].iter().map_while(|slot| {
                    let message = layout.read_message(memory, *slot as usize, buffer)?;
                    Job::decode(message).ok()
                });
                others = jobs.collect();
                let may_wait = idle == 0 && left > 0;
                match choose(first, &others, &self.settings, may_wait) {
                    Choice::Run(count) => others.truncate(count),
                    Choice::Wait => {
                        others.clear();
                        waits = true;
                    }
                }
                others.len()
            })?;
            if !waits {
                return Ok(others);
            }
            queue.wait_for_more(memory, seen, Duration::from_nanos(left))?;
        }
    }

    /// Runs jobs of one batch, which are all running, in one invoke. `None`: it failed, and each has to be run by
    /// itself.
    pub(super) fn run(
        &mut self,
        instance: &mut Instance,
        shared: &Shared,
        current: &Current,
        jobs: &[Job],
    ) -> Option<Vec<Came>> {
        let began = clock::nanoseconds();
        let rows = rows::of(jobs)?;
        let tensors = self.copy(shared, jobs, rows.first()?.of)?;
        let memory = self.memory.as_ref()?;
        let inputs = Inputs {
            memory,
            begin: 0,
            area: memory.length(),
            tensors: &tensors,
        };
        let signature = jobs.first()?.signature as usize;
        let graph = instance.prepare(signature, inputs).ok()?;
        let invoked = clock::nanoseconds();
        match instance.invoke(graph, || current.is_batch_cancelled()) {
            Ok(()) => {}
            Err(Stopped::Cancelled) => {
                return Some(jobs.iter().map(|_| (Outcome::Cancelled, None)).collect());
            }
            Err(Stopped::Failed(_)) => return None,
        }
        let times = Times {
            began,
            invoke: clock::nanoseconds().saturating_sub(invoked),
        };
        let mut all = Vec::with_capacity(jobs.len());
        for (job, rows) in jobs.iter().zip(rows) {
            let came = collect(instance, graph, shared, job, times, Some(rows));
            if matches!(came.0, Outcome::Failed(_)) {
                return None;
            }
            all.push(came);
        }
        Some(all)
    }

    /// Copies the inputs of all jobs one behind the other. Returns where the joined ones lie.
    fn copy(&mut self, shared: &Shared, jobs: &[Job], size: usize) -> Option<Vec<TensorRef>> {
        let mut tensors = Vec::new();
        let mut end = 0usize;
        for index in 0..jobs.first()?.inputs.len() {
            let shape = jobs.first()?.inputs[index].shape;
            let lengths = jobs.iter().map(|job| job.inputs[index].length);
            let length = lengths.fold(0, u64::saturating_add);
            tensors.push(TensorRef {
                offset: end as u64,
                length,
                shape: shape.with_first(i32::try_from(size).ok()?),
            });
            end = end.checked_add(aligned(usize::try_from(length).ok()?)?)?;
        }
        let needed = end.checked_add(SLACK)?;
        if self.memory.as_ref().is_none_or(|m| m.length() < needed) {
            let (_descriptor, memory) = Memory::create("edgeward-batch", needed).ok()?;
            self.memory = Some(memory);
        }
        let target = self.memory.as_ref()?;
        let Shared { memory, setup, .. } = shared;
        for (index, tensor) in tensors.iter().enumerate() {
            let mut to = tensor.offset as usize;
            for job in jobs {
                let from = place(&job.inputs[index], setup.layout.input_area)?;
                let begin = setup.layout.inputs(job.slot as usize)?;
                // SAFETY: input memory is not written in this process; the target is this thread's own, where
                // nothing is read meanwhile.
                unsafe {
                    let bytes = memory.bytes(begin + from.start, from.len())?;
                    target.bytes_mut(to, from.len())?.copy_from_slice(bytes);
                }
                to += from.len();
            }
        }
        Some(tensors)
    }
}

/// Where an input lies in its area.
fn place(input: &TensorRef, area: usize) -> Option<Range<usize>> {
    let begin = usize::try_from(input.offset).ok()?;
    let end = begin.checked_add(usize::try_from(input.length).ok()?)?;
    (end <= area).then_some(begin..end)
}
