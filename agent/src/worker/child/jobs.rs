//! What the interpreter threads share, and the wishes to stop what one of them runs.
//!
//! All of them wait on the job queue; what each does with a job is in `thread`, and in `batch` where several are
//! joined.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::instance::Instance;
use super::streams::Streams;
use super::thread::Thread;
use crate::tflite::{Canceller, Model};
use crate::worker::memory::Memory;
use crate::worker::queue::Taking;
use crate::worker::socket;
use crate::worker::wire::{Job, Setup};

/// What all interpreter threads use.
pub struct Shared {
    pub(super) queue: Taking,
    pub(super) memory: Memory,
    pub(super) setup: Setup,
    pub(super) streams: Streams,
    pub(super) parcels: OwnedFd,
    /// Parcels that one thread received while it looked for its own.
    stored: Mutex<Vec<(u64, OwnedFd)>>,
}

/// All interpreter threads, for whoever wants to cancel a job.
pub struct Running {
    threads: Vec<(Arc<Current>, Canceller)>,
}

/// The job of one thread; ids begin at 1.
#[derive(Default)]
pub(super) struct Current {
    job: AtomicU64,
    cancelled: AtomicU64,
    /// The interpreter, while it is that of a stream and not the thread's own.
    stream: Mutex<Option<Canceller>>,
    /// Jobs that are run together and that somebody still waits for.
    batch: Mutex<Vec<u64>>,
}

impl Current {
    pub(super) fn begins(&self, job: u64) {
        self.job.store(job, Ordering::SeqCst);
    }

    pub(super) fn ends(&self) {
        self.job.store(0, Ordering::SeqCst);
    }

    pub(super) fn is_cancelled(&self, job: u64) -> bool {
        self.cancelled.load(Ordering::SeqCst) == job
    }

    pub(super) fn runs_on(&self, stream: Option<Canceller>) {
        *lock(&self.stream) = stream;
    }

    /// From now on these jobs are run together, and none by itself.
    pub(super) fn begins_batch(&self, jobs: impl Iterator<Item = u64>) {
        lock(&self.batch).extend(jobs);
        self.ends();
    }

    /// Nobody waits for any of the jobs that run together.
    pub(super) fn is_batch_cancelled(&self) -> bool {
        lock(&self.batch).is_empty()
    }

    /// Hands out the jobs of the batch that somebody still waits for.
    pub(super) fn ends_batch(&self) -> Vec<u64> {
        std::mem::take(&mut lock(&self.batch))
    }
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
    pub(super) fn own_memory(&self, job: &Job) -> io::Result<Option<Memory>> {
        let length = usize::try_from(job.own_memory).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(None);
        }
        let mut stored = lock(&self.stored);
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
    /// Stops a job between nodes, if it is running. One of several that run together has no part in their answer
    /// any more, and all are stopped with the last of them.
    pub fn cancel(&self, id: u64) {
        for (current, canceller) in &self.threads {
            if current.job.load(Ordering::SeqCst) == id {
                current.cancelled.store(id, Ordering::SeqCst);
                lock(&current.stream).as_ref().unwrap_or(canceller).cancel();
            }
            let mut batch = lock(&current.batch);
            if let Some(at) = batch.iter().position(|job| *job == id) {
                batch.swap_remove(at);
                if batch.is_empty() {
                    canceller.cancel();
                }
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
                let Err(error) = Thread::new(instance, &shared, &current).work();
                super::say(&format!("the job queue is broken: {error}"));
                super::leave(super::FAILED);
            })?;
    }
    Ok(Running { threads })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
