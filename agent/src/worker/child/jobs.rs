//! What the interpreter threads share, and the wishes to stop what one of them runs.
//!
//! All of them wait on the job queue; what each does with a job is in `thread`, and in `batch` where several are
//! joined.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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

/// All interpreter threads, for whoever wants to cancel a job or to have more or fewer of them.
pub struct Running {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

/// The interpreter threads by their numbers.
struct Threads {
    running: Mutex<BTreeMap<usize, Arc<One>>>,
    /// A thread whose number is not below this one ends when it has nothing to do.
    wanted: AtomicUsize,
}

/// One thread, as the others see it.
#[derive(Default)]
struct One {
    current: Current,
    /// Once it has its interpreter.
    canceller: OnceLock<Canceller>,
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
        for one in lock(&self.threads.running).values() {
            let (current, Some(canceller)) = (&one.current, one.canceller.get()) else {
                continue;
            };
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

    /// Makes it so many threads. More are built beside those that answer; fewer end when they have nothing to do.
    pub fn resize(&self, wanted: usize) -> io::Result<()> {
        let wanted = wanted.clamp(1, self.shared.setup.layout.slots);
        self.threads.wanted.store(wanted, Ordering::SeqCst);
        for number in 0..wanted {
            let missing = !lock(&self.threads.running).contains_key(&number);
            if missing {
                self.spawn(number, None)?;
            }
        }
        self.shared.queue.wake_all(&self.shared.memory)
    }

    /// Starts one thread. Without an interpreter it builds its own.
    fn spawn(&self, number: usize, instance: Option<Instance>) -> io::Result<()> {
        let one = Arc::new(One::default());
        lock(&self.threads.running).insert(number, one.clone());
        let (shared, threads) = (self.shared.clone(), self.threads.clone());
        let builder = std::thread::Builder::new().name(format!("interpreter-{number}"));
        builder.spawn(move || {
            let built = instance.map_or_else(|| shared.streams.another(&shared.setup), Ok);
            match built {
                Ok(instance) => work(instance, &shared, &one, || threads.lets_go(number)),
                Err(reason) => {
                    super::say(&format!("no further interpreter can be built: {reason}"));
                    lock(&threads.running).remove(&number);
                }
            }
        })?;
        Ok(())
    }
}

impl Threads {
    /// Whether a thread that has nothing to do is to end; it is no longer one of them then.
    fn lets_go(&self, number: usize) -> bool {
        // Under the lock: either it ends and is missing, or it is there and stays.
        let mut running = lock(&self.running);
        let ends = number >= self.wanted.load(Ordering::SeqCst);
        if ends {
            running.remove(&number);
        }
        ends
    }
}

fn work(instance: Instance, shared: &Shared, one: &One, stops: impl Fn() -> bool) {
    // Nobody else sets it.
    let _ = one.canceller.set(instance.canceller());
    if let Err(error) = Thread::new(instance, shared, &one.current).work(stops) {
        super::say(&format!("the job queue is broken: {error}"));
        super::leave(super::FAILED);
    }
}

/// Starts one thread per interpreter.
pub fn start(instances: Vec<Instance>, shared: Shared) -> io::Result<Running> {
    let running = Running {
        shared: Arc::new(shared),
        threads: Arc::new(Threads {
            running: Mutex::default(),
            wanted: AtomicUsize::new(instances.len()),
        }),
    };
    for (number, instance) in instances.into_iter().enumerate() {
        running.spawn(number, Some(instance))?;
    }
    Ok(running)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
