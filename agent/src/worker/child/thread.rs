//! One interpreter thread: takes a job, runs it, writes what came of it.
//!
//! No lock is held across an invoke. Messages and memory come from the agent, which this process trusts as
//! far as it must; it still checks them, since a mistake there should be an error here and not a crash.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use super::batch::{Batcher, Rows, batch};
use super::instance::{Inputs, Instance, Stopped};
use super::jobs::{Current, Shared};
use super::placement::Placement;
use crate::tflite::Graph;
use crate::worker::memory::Memory;
use crate::worker::slots::State;
use crate::worker::wire::{self, DelegateSetup, Done, Job, Outcome, Reply};
use crate::worker::{clock, socket};

/// What came of a job, and the memory of its outputs if they have one of their own.
pub(super) type Came = (Outcome, Option<OwnedFd>);

/// One thread with its interpreter.
pub(super) struct Thread<'a> {
    instance: Instance,
    shared: &'a Shared,
    current: &'a Current,
    placement: Placement,
    /// `None`: every request is run by itself.
    batcher: Option<Batcher>,
    message: Vec<u8>,
}

impl<'a> Thread<'a> {
    /// For the calling thread.
    pub(super) fn new(instance: Instance, shared: &'a Shared, current: &'a Current) -> Self {
        let setup = &shared.setup;
        let movable = setup.threads == 1 && !matches!(setup.delegate, DelegateSetup::Plugin(_));
        Self {
            instance,
            shared,
            current,
            placement: Placement::new(movable),
            batcher: setup.batching.clone().map(Batcher::new),
            message: Vec::with_capacity(wire::MAX_MESSAGE_BYTES),
        }
    }

    /// Runs jobs until there is none and `stops` says so.
    pub(super) fn work(mut self, stops: impl Fn() -> bool) -> io::Result<()> {
        let Shared { memory, setup, .. } = self.shared;
        let mut buffer = [0; wire::MAX_MESSAGE_BYTES];
        loop {
            let slot = self.shared.queue.take(memory, setup.layout.slots, &stops)?;
            let Some(slot) = slot else {
                return Ok(());
            };
            let job = setup
                .layout
                .read_message(memory, slot as usize, &mut buffer);
            let job = job.ok_or_else(|| io::Error::other("a job without a message"))?;
            let job = Job::decode(job).map_err(io::Error::other)?;
            let joined = match &mut self.batcher {
                Some(batcher) => batcher.join(&job, self.shared, &mut buffer)?,
                None => Vec::new(),
            };
            if joined.is_empty() {
                self.serve(&job)?;
            } else {
                self.serve_together(job, joined)?;
            }
        }
    }

    /// Runs a job by itself, unless its caller has left.
    fn serve(&mut self, job: &Job) -> io::Result<()> {
        self.current.begins(job.id);
        let own = self.shared.own_memory(job);
        let came = if self.starts(job) {
            match own {
                Ok(own) if job.stream.number > 0 => self.run_in_stream(job, own),
                Ok(own) => {
                    let Self {
                        instance,
                        shared,
                        current,
                        ..
                    } = self;
                    run(instance, shared, current, job, own)
                }
                Err(error) => {
                    let reason = format!("the request's memory: {error}");
                    (Outcome::Failed(reason), None)
                }
            }
        } else {
            (Outcome::Cancelled, None)
        };
        self.current.ends();
        if let (Outcome::Done(done), _) = &came {
            self.placement.learn(job.core, done.invoke_nanoseconds);
        }
        self.answer(job, came)
    }

    fn starts(&self, job: &Job) -> bool {
        let Shared { memory, setup, .. } = self.shared;
        let slot = job.slot as usize;
        setup
            .layout
            .swap(memory, slot, State::Queued, State::Running)
    }

    /// Runs jobs in one invoke. If it fails, each is run by itself: only those fail that fail alone.
    fn serve_together(&mut self, first: Job, others: Vec<Job>) -> io::Result<()> {
        let mut jobs: Vec<Job> = std::iter::once(first).chain(others).collect();
        self.current.begins_batch(jobs.iter().map(|job| job.id));
        let mut left = Vec::new();
        jobs.retain(|job| {
            let starts = self.starts(job);
            if !starts {
                left.push(job.clone());
            }
            starts
        });
        let came = match &mut self.batcher {
            Some(batcher) if jobs.len() > 1 => {
                batcher.run(&mut self.instance, self.shared, self.current, &jobs)
            }
            _ => None,
        };
        let wanted = self.current.ends_batch();
        for job in &left {
            self.answer(job, (Outcome::Cancelled, None))?;
        }
        match came {
            Some(all) => {
                if let Some((Outcome::Done(done), _)) = all.first() {
                    self.placement.learn(jobs[0].core, done.invoke_nanoseconds);
                }
                for (job, came) in jobs.iter().zip(all) {
                    self.answer(job, came)?;
                }
            }
            None => {
                // Those that wait for their turn are not running: a limit of time begins anew for each.
                let Shared { memory, setup, .. } = self.shared;
                let (wanted, left): (Vec<Job>, Vec<Job>) =
                    jobs.into_iter().partition(|job| wanted.contains(&job.id));
                for job in &wanted {
                    setup.layout.set(memory, job.slot as usize, State::Queued);
                }
                for job in &left {
                    self.answer(job, (Outcome::Cancelled, None))?;
                }
                for job in &wanted {
                    self.serve(job)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what came of a job into its slot.
    fn answer(&mut self, job: &Job, (outcome, parcel): Came) -> io::Result<()> {
        let Shared { memory, setup, .. } = self.shared;
        if let Some(parcel) = parcel {
            let id = job.id.to_le_bytes();
            socket::send(&self.shared.parcels, &id, &[parcel.as_fd()])?;
        }
        self.message.clear();
        let reply = Reply {
            id: job.id,
            slot: job.slot,
            outcome,
        };
        reply.encode(&mut self.message);
        let slot = job.slot as usize;
        let written = setup.layout.write_message(memory, slot, &self.message);
        written.ok_or_else(|| io::Error::other("a reply that is too long"))?;
        setup.layout.set(memory, slot, State::Done);
        self.shared.queue.ring(memory)
    }

    /// Runs a job on the interpreter of its stream.
    fn run_in_stream(&self, job: &Job, own: Option<Memory>) -> Came {
        let Shared { streams, setup, .. } = self.shared;
        let stream = match streams.take(job.stream, setup) {
            Ok(stream) => stream,
            Err(reason) => return (Outcome::Failed(reason), None),
        };
        let mut instance = stream.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.runs_on(Some(instance.canceller()));
        let came = run(&mut instance, self.shared, self.current, job, own);
        self.current.runs_on(None);
        drop(instance);
        if job.stream.end {
            streams.end(job.stream.number, &stream);
        }
        came
    }
}

fn run(
    instance: &mut Instance,
    shared: &Shared,
    current: &Current,
    job: &Job,
    own: Option<Memory>,
) -> Came {
    let began = clock::nanoseconds();
    let failed = |text: String| (Outcome::Failed(text), None);
    let Shared { memory, setup, .. } = shared;
    let layout = &setup.layout;
    let Some(inputs) = layout.inputs(job.slot as usize) else {
        return failed("there is no such slot".to_owned());
    };
    // `own` lives until the outputs are copied: the interpreter reads from it.
    let (input_memory, begin, area) = match &own {
        Some(own) => (own, 0, own.length()),
        None => (memory, inputs, layout.input_area),
    };
    let inputs = Inputs {
        memory: input_memory,
        begin,
        area,
        tensors: &job.inputs,
    };
    let graph = match instance.prepare(job.signature as usize, inputs) {
        Ok(graph) => graph,
        Err(reason) => return failed(reason),
    };
    let invoked = clock::nanoseconds();
    match instance.invoke(graph, || current.is_cancelled(job.id)) {
        Ok(()) => {}
        Err(Stopped::Cancelled) => return (Outcome::Cancelled, None),
        Err(Stopped::Failed(reason)) => return failed(reason),
    }
    let times = Times {
        began,
        invoke: clock::nanoseconds().saturating_sub(invoked),
    };
    collect(instance, graph, shared, job, times, None)
}

/// When an invoke was prepared, and how long it took.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) began: u64,
    pub(super) invoke: u64,
}

/// Puts what an invoke answered into a job's slot: all of it, or the job's rows.
pub(super) fn collect(
    instance: &Instance,
    graph: Graph,
    shared: &Shared,
    job: &Job,
    times: Times,
    rows: Option<Rows>,
) -> Came {
    let layout = &shared.setup.layout;
    let Some(begin) = layout.outputs(job.slot as usize) else {
        return (Outcome::Failed("there is no such slot".to_owned()), None);
    };
    match instance.collect(graph, rows, &shared.memory, begin, layout.output_area) {
        Ok(outputs) => {
            let (parcel, length) = outputs.own_memory.unzip();
            let done = Done {
                queue_nanoseconds: times.began.saturating_sub(job.sent_at),
                invoke_nanoseconds: times.invoke,
                batch: batch(job, rows),
                own_memory: length.unwrap_or(0) as u64,
                outputs: outputs.tensors,
            };
            (Outcome::Done(done), parcel)
        }
        Err(reason) => (Outcome::Failed(reason), None),
    }
}
