//! The interpreter threads: all of them wait on the job queue, each runs what it takes.
//!
//! No lock is held across an invoke. Messages and memory come from the agent, which this process trusts as
//! far as it must; it still checks them, since a mistake there should be an error here and not a crash.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::instance::{Inputs, Instance, Stopped};
use super::placement::Placement;
use super::streams::Streams;
use crate::tflite::{Canceller, Model};
use crate::worker::memory::Memory;
use crate::worker::queue::Taking;
use crate::worker::slots::State;
use crate::worker::wire::{self, DelegateSetup, Done, Job, Outcome, Reply, Setup};
use crate::worker::{clock, socket};

/// What all interpreter threads use.
pub struct Shared {
    queue: Taking,
    memory: Memory,
    setup: Setup,
    streams: Streams,
    parcels: OwnedFd,
    /// Parcels that one thread received while it looked for its own.
    stored: Mutex<Vec<(u64, OwnedFd)>>,
}

/// All interpreter threads, for whoever wants to cancel a job.
pub struct Running {
    threads: Vec<(Arc<Current>, Canceller)>,
}

/// The job of one thread; ids begin at 1.
#[derive(Default)]
struct Current {
    job: AtomicU64,
    cancelled: AtomicU64,
    /// The interpreter, while it is that of a stream and not the thread's own.
    stream: Mutex<Option<Canceller>>,
}

impl Shared {
    pub fn new(
        queue: Taking,
        parcels: OwnedFd,
        memory: Memory,
        setup: Setup,
        model: Arc<Model>,
    ) -> Self {
        Self {
            queue,
            memory,
            setup,
            streams: Streams::new(model),
            parcels,
            stored: Mutex::default(),
        }
    }

    /// The request's own memory, which was sent before its job.
    fn own_memory(&self, job: &Job) -> io::Result<Option<Memory>> {
        let length = usize::try_from(job.own_memory).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(None);
        }
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = loop {
            if let Some(at) = stored.iter().position(|(id, _)| *id == job.id) {
                break stored.swap_remove(at).1;
            }
            stored.push(socket::receive_parcel(&self.parcels)?);
        };
        drop(stored);
        Memory::map(descriptor, length).map(Some)
    }
}

impl Running {
    /// Stops a job between nodes, if it is running.
    pub fn cancel(&self, id: u64) {
        for (current, canceller) in &self.threads {
            if current.job.load(Ordering::SeqCst) == id {
                current.cancelled.store(id, Ordering::SeqCst);
                let stream = current.stream.lock();
                let stream = stream.unwrap_or_else(PoisonError::into_inner);
                stream.as_ref().unwrap_or(canceller).cancel();
            }
        }
    }
}

/// Starts one thread per interpreter.
pub fn start(instances: Vec<Instance>, shared: Shared) -> io::Result<Running> {
    let shared = Arc::new(shared);
    let mut threads = Vec::with_capacity(instances.len());
    for (number, instance) in instances.into_iter().enumerate() {
        let current = Arc::new(Current::default());
        threads.push((Arc::clone(&current), instance.canceller()));
        let shared = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(format!("interpreter-{number}"))
            .spawn(move || {
                let Err(error) = work(instance, &shared, &current);
                super::say(&format!("the job queue is broken: {error}"));
                super::leave(super::FAILED);
            })?;
    }
    Ok(Running { threads })
}

fn work(
    mut instance: Instance,
    shared: &Shared,
    current: &Current,
) -> io::Result<std::convert::Infallible> {
    let Shared { memory, setup, .. } = shared;
    let layout = &setup.layout;
    let movable = setup.threads == 1 && !matches!(setup.delegate, DelegateSetup::Plugin(_));
    let mut placement = Placement::new(movable);
    let mut buffer = [0; wire::MAX_MESSAGE_BYTES];
    let mut message = Vec::with_capacity(wire::MAX_MESSAGE_BYTES);
    loop {
        let number = shared.queue.take(memory, layout.slots)?;
        let slot = number as usize;
        let job = layout.read_message(memory, slot, &mut buffer);
        let job = job.ok_or_else(|| io::Error::other("a job without a message"))?;
        let job = Job::decode(job).map_err(io::Error::other)?;
        current.job.store(job.id, Ordering::SeqCst);
        let own = shared.own_memory(&job);
        let (outcome, parcel) = if !layout.swap(memory, slot, State::Queued, State::Running) {
            (Outcome::Cancelled, None)
        } else {
            match own {
                Ok(own) if job.stream.number > 0 => run_in_stream(shared, current, &job, own),
                Ok(own) => run(&mut instance, shared, current, &job, own),
                Err(error) => {
                    let reason = format!("the request's memory: {error}");
                    (Outcome::Failed(reason), None)
                }
            }
        };
        current.job.store(0, Ordering::SeqCst);
        if let Some(parcel) = parcel {
            let id = job.id.to_le_bytes();
            socket::send(&shared.parcels, &id, &[parcel.as_fd()])?;
        }
        if let Outcome::Done(done) = &outcome {
            placement.learn(job.core, done.invoke_nanoseconds);
        }
        message.clear();
        let reply = Reply {
            id: job.id,
            slot: number,
            outcome,
        };
        reply.encode(&mut message);
        let written = layout.write_message(memory, slot, &message);
        written.ok_or_else(|| io::Error::other("a reply that is too long"))?;
        layout.set(memory, slot, State::Done);
        shared.queue.ring(memory)?;
    }
}

/// Runs a job on the interpreter of its stream.
fn run_in_stream(
    shared: &Shared,
    current: &Current,
    job: &Job,
    own: Option<Memory>,
) -> (Outcome, Option<OwnedFd>) {
    let stream = match shared.streams.take(job.stream, &shared.setup) {
        Ok(stream) => stream,
        Err(reason) => return (Outcome::Failed(reason), None),
    };
    let mut instance = stream.lock().unwrap_or_else(PoisonError::into_inner);
    let running = |canceller: Option<Canceller>| {
        *current
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = canceller;
    };
    running(Some(instance.canceller()));
    let outcome = run(&mut instance, shared, current, job, own);
    running(None);
    drop(instance);
    if job.stream.end {
        shared.streams.end(job.stream.number, &stream);
    }
    outcome
}

fn run(
    instance: &mut Instance,
    shared: &Shared,
    current: &Current,
    job: &Job,
    own: Option<Memory>,
) -> (Outcome, Option<OwnedFd>) {
    let began = clock::nanoseconds();
    let failed = |text: String| (Outcome::Failed(text), None);
    let Shared { memory, setup, .. } = shared;
    let layout = &setup.layout;
    let slot = job.slot as usize;
    let (Some(inputs), Some(outputs)) = (layout.inputs(slot), layout.outputs(slot)) else {
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
    match instance.invoke(graph, || current.cancelled.load(Ordering::SeqCst) == job.id) {
        Ok(()) => {}
        Err(Stopped::Cancelled) => return (Outcome::Cancelled, None),
        Err(Stopped::Failed(reason)) => return failed(reason),
    }
    let invoke_nanoseconds = clock::nanoseconds().saturating_sub(invoked);
    match instance.collect(graph, memory, outputs, layout.output_area) {
        Ok(outputs) => {
            let (parcel, length) = outputs.own_memory.unzip();
            let done = Done {
                queue_nanoseconds: began.saturating_sub(job.sent_at),
                invoke_nanoseconds,
                own_memory: length.unwrap_or(0) as u64,
                outputs: outputs.tensors,
            };
            (Outcome::Done(done), parcel)
        }
        Err(reason) => failed(reason),
    }
}
