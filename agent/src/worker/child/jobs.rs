//! The interpreter threads: all of them wait on the job socket, each runs what it receives.
//!
//! No lock is held across an invoke. Messages and memory come from the agent, which this process trusts as
//! far as it must; it still checks them, since a mistake there should be an error here and not a crash.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::instance::{Instance, Stopped};
use crate::tflite::Canceller;
use crate::worker::memory::Memory;
use crate::worker::slots::State;
use crate::worker::wire::{self, Done, Job, Outcome, Reply, Setup};
use crate::worker::{clock, socket};

/// All interpreter threads, for whoever wants to cancel a job.
pub struct Running {
    threads: Vec<(Arc<Current>, Canceller)>,
}

/// The job of one thread; ids begin at 1.
#[derive(Default)]
struct Current {
    job: AtomicU64,
    cancelled: AtomicU64,
}

impl Running {
    /// Stops a job between nodes, if it is running.
    pub fn cancel(&self, id: u64) {
        for (current, canceller) in &self.threads {
            if current.job.load(Ordering::SeqCst) == id {
                current.cancelled.store(id, Ordering::SeqCst);
                canceller.cancel();
            }
        }
    }
}

/// Starts one thread per interpreter.
pub fn start(
    instances: Vec<Instance>,
    jobs: Arc<OwnedFd>,
    memory: Memory,
    setup: Setup,
) -> io::Result<Running> {
    let shared = Arc::new((memory, setup));
    let mut threads = Vec::with_capacity(instances.len());
    for (number, instance) in instances.into_iter().enumerate() {
        let current = Arc::new(Current::default());
        threads.push((Arc::clone(&current), instance.canceller()));
        let (jobs, shared) = (Arc::clone(&jobs), Arc::clone(&shared));
        std::thread::Builder::new()
            .name(format!("interpreter-{number}"))
            .spawn(move || {
                let (memory, setup) = &*shared;
                // The agent has closed the socket, or something is wrong with it: either way it is over.
                let _ = work(instance, &jobs, memory, setup, &current);
                super::leave(super::ENDED);
            })?;
    }
    Ok(Running { threads })
}

fn work(
    mut instance: Instance,
    jobs: &OwnedFd,
    memory: &Memory,
    setup: &Setup,
    current: &Current,
) -> io::Result<()> {
    let mut buffer = vec![0; wire::MAX_MESSAGE_BYTES];
    let mut message = Vec::with_capacity(wire::MAX_MESSAGE_BYTES);
    loop {
        let (length, descriptors) = socket::receive(jobs, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let job = Job::decode(&buffer[..length]).map_err(io::Error::other)?;
        let slot = job.slot as usize;
        current.job.store(job.id, Ordering::SeqCst);
        let (outcome, own_memory) =
            if setup
                .layout
                .swap(memory, slot, State::Queued, State::Running)
            {
                run(&mut instance, memory, setup, current, &job, descriptors)
            } else {
                (Outcome::Cancelled, None)
            };
        current.job.store(0, Ordering::SeqCst);
        setup.layout.set(memory, slot, State::Done);
        message.clear();
        let reply = Reply {
            id: job.id,
            slot: job.slot,
            outcome,
        };
        reply.encode(&mut message);
        let descriptors: Vec<_> = own_memory.iter().map(AsFd::as_fd).collect();
        socket::send(jobs, &message, &descriptors)?;
    }
}

fn run(
    instance: &mut Instance,
    memory: &Memory,
    setup: &Setup,
    current: &Current,
    job: &Job,
    descriptors: Vec<OwnedFd>,
) -> (Outcome, Option<OwnedFd>) {
    let began = clock::nanoseconds();
    let failed = |text: String| (Outcome::Failed(text), None);
    let slot = job.slot as usize;
    let (Some(inputs), Some(outputs)) = (setup.layout.inputs(slot), setup.layout.outputs(slot))
    else {
        return failed("there is no such slot".to_owned());
    };
    // Lives until the outputs are copied: the interpreter reads from it.
    let own = match own_memory(job, &descriptors) {
        Ok(own) => own,
        Err(error) => return failed(format!("the request's memory: {error}")),
    };
    let (input_memory, begin, area) = match &own {
        Some(own) => (own, 0, own.length()),
        None => (memory, inputs, setup.layout.input_area),
    };
    if job.signature != 0 {
        return failed("only the first signature of a model is served".to_owned());
    }
    if let Err(reason) = instance.prepare(input_memory, begin, area, &job.inputs) {
        return failed(reason);
    }
    let invoked = clock::nanoseconds();
    match instance.invoke(|| current.cancelled.load(Ordering::SeqCst) == job.id) {
        Ok(()) => {}
        Err(Stopped::Cancelled) => return (Outcome::Cancelled, None),
        Err(Stopped::Failed(reason)) => return failed(reason),
    }
    let invoke_nanoseconds = clock::nanoseconds().saturating_sub(invoked);
    match instance.collect(memory, outputs, setup.layout.output_area) {
        Ok(outputs) => {
            let (descriptor, length) = outputs.own_memory.unzip();
            let done = Done {
                queue_nanoseconds: began.saturating_sub(job.sent_at),
                invoke_nanoseconds,
                own_memory: length.unwrap_or(0) as u64,
                outputs: outputs.tensors,
            };
            (Outcome::Done(done), descriptor)
        }
        Err(reason) => failed(reason),
    }
}

fn own_memory(job: &Job, descriptors: &[OwnedFd]) -> io::Result<Option<Memory>> {
    if job.own_memory == 0 {
        return Ok(None);
    }
    let length = usize::try_from(job.own_memory).map_err(io::Error::other)?;
    let descriptor = descriptors
        .first()
        .ok_or_else(|| io::Error::other("it did not come along"))?;
    Memory::map(descriptor, length).map(Some)
}
