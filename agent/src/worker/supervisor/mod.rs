//! The agent's side of a running worker: who holds which slot, which requests are in it, and its death.
//!
//! Three tasks serve a worker: one hands its replies to the requests that wait for them, one ends it when an
//! invoke exceeds the model's limit, one notices its death and fails what was in flight. All of them end
//! with the process.

mod ending;
mod lease;
mod replies;

pub(in crate::worker) use lease::{Lease, OwnMemory};

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgeward_models::Manifest;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use crate::worker::memory::Memory;
use crate::worker::process::Process;
use crate::worker::queue::Pushing;
use crate::worker::slots::{Layout, State};
use crate::worker::wire::{self, Job, Outcome, Stream, TensorRef, ToWorker};
use crate::worker::{WorkerDeath, WorkerError, clock, socket};

/// What all handles, slots, answers and tasks of one worker share.
pub(in crate::worker) struct Supervisor {
    pub(in crate::worker) manifest: Arc<Manifest>,
    pub(in crate::worker) layout: Layout,
    pub(in crate::worker) memory: Memory,
    pub(in crate::worker) process: Process,
    queue: Pushing,
    /// Rung by the worker when replies are there.
    bell: AsyncFd<OwnedFd>,
    /// Carries the descriptors of requests and answers that have memory of their own.
    parcels: OwnedFd,
    /// Those that came before their reply was looked at.
    stored_parcels: Mutex<Vec<(u64, OwnedFd)>>,
    control: AsyncFd<OwnedFd>,
    permits: Arc<Semaphore>,
    free: Mutex<Vec<usize>>,
    running: Mutex<Table>,
    next_id: AtomicU64,
    /// How long an invoke may take, in milliseconds.
    invoke_limit: AtomicU64,
    /// Wakes the watchdog when there is something to watch.
    busy: Notify,
    /// Why we ended it ourselves.
    ended_for: Mutex<Option<String>>,
    death: watch::Sender<Option<WorkerDeath>>,
}

/// Our ends of what connects us with the worker.
pub(in crate::worker) struct Ends {
    pub(in crate::worker) bell: AsyncFd<OwnedFd>,
    pub(in crate::worker) parcels: OwnedFd,
    pub(in crate::worker) control: AsyncFd<OwnedFd>,
}

/// The requests that the worker has, by slot.
struct Table {
    requests: Vec<Option<InFlight>>,
    /// The slots of those that are there.
    busy: Vec<usize>,
    /// The process has ended: nothing is added any more.
    closed: bool,
}

/// What came of a request, and the memory of its outputs if they have one of their own.
pub(in crate::worker) type Received = (Outcome, Option<OwnedFd>);

/// One request that the worker has.
struct InFlight {
    id: u64,
    answer: oneshot::Sender<Received>,
    inputs: Vec<TensorRef>,
    own_memory: Option<Arc<OwnMemory>>,
    lease: Arc<Lease>,
    sent: Instant,
    /// Since when the watchdog has seen it running.
    seen_running: Option<Instant>,
}

/// A request that was handed over; dropping it cancels.
pub(in crate::worker) struct Pending {
    supervisor: Arc<Supervisor>,
    slot: usize,
    id: u64,
    finished: bool,
}

impl Supervisor {
    /// Puts a started and set-up worker under supervision.
    pub(in crate::worker) fn new(
        manifest: Arc<Manifest>,
        layout: Layout,
        memory: Memory,
        process: Process,
        ends: Ends,
        invoke_limit: Duration,
    ) -> Arc<Self> {
        let supervisor = Arc::new(Self {
            manifest,
            layout,
            memory,
            process,
            queue: Pushing::default(),
            bell: ends.bell,
            parcels: ends.parcels,
            stored_parcels: Mutex::default(),
            control: ends.control,
            permits: Arc::new(Semaphore::new(layout.slots)),
            free: Mutex::new((0..layout.slots).rev().collect()),
            running: Mutex::new(Table {
                requests: (0..layout.slots).map(|_| None).collect(),
                busy: Vec::with_capacity(layout.slots),
                closed: false,
            }),
            next_id: AtomicU64::new(1),
            invoke_limit: AtomicU64::new(invoke_limit.as_millis() as u64),
            busy: Notify::new(),
            ended_for: Mutex::new(None),
            death: watch::Sender::new(None),
        });
        tokio::spawn(Arc::clone(&supervisor).take_replies());
        tokio::spawn(Arc::clone(&supervisor).watch_invokes());
        tokio::spawn(Arc::clone(&supervisor).notice_death());
        supervisor
    }

    pub(in crate::worker) async fn lease(
        self: &Arc<Self>,
        wait: Duration,
    ) -> Result<Arc<Lease>, WorkerError> {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let waiting = Arc::clone(&self.permits).acquire_owned();
                let waited = tokio::time::timeout(wait, waiting).await;
                waited
                    .map_err(|_| WorkerError::Busy(wait))?
                    .map_err(|_| self.died_error())?
            }
        };
        let slot = lock(&self.free).pop();
        // There are as many permits as slots, and a slot is put back before its permit.
        let slot = slot.ok_or(WorkerError::Busy(wait))?;
        self.layout.set(&self.memory, slot, State::Free);
        Ok(Arc::new(Lease {
            supervisor: Arc::clone(self),
            slot,
            _permit: permit,
        }))
    }

    /// Hands a filled slot to the worker.
    pub(in crate::worker) async fn submit(
        self: &Arc<Self>,
        lease: &Arc<Lease>,
        signature: u32,
        stream: Stream,
        joins: bool,
        inputs: Vec<TensorRef>,
        own_memory: Option<Arc<OwnMemory>>,
    ) -> Result<(Pending, oneshot::Receiver<Received>), WorkerError> {
        let (answer, receiver) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let job = Job {
            id,
            slot: lease.slot as u32,
            signature,
            stream,
            sent_at: clock::nanoseconds(),
            core: rustix::thread::sched_getcpu() as u32,
            company: if joins { self.in_flight() as u32 } else { 0 },
            own_memory: own_memory.as_ref().map_or(0, |m| m.memory.length() as u64),
            inputs,
        };
        let mut message = Vec::with_capacity(256);
        job.encode(&mut message);
        let written = self
            .layout
            .write_message(&self.memory, lease.slot, &message);
        written.ok_or_else(|| WorkerError::Invoke("it brings too many inputs".to_owned()))?;
        let sent = match &own_memory {
            Some(own) => self.send_parcel(id, own).await,
            None => Ok(()),
        };
        // From here to the push nothing waits: a caller that leaves in between would take with it a slot that
        // the worker never sees.
        self.layout.set(&self.memory, lease.slot, State::Queued);
        {
            let mut running = lock(&self.running);
            // Under the lock, so that a death either sees this request or is seen here.
            if running.closed {
                return Err(self.died_error());
            }
            running.busy.push(lease.slot);
            running.requests[lease.slot] = Some(InFlight {
                id,
                answer,
                inputs: job.inputs,
                own_memory,
                lease: Arc::clone(lease),
                sent: Instant::now(),
                seen_running: None,
            });
        }
        let pending = Pending {
            supervisor: Arc::clone(self),
            slot: lease.slot,
            id,
            finished: false,
        };
        self.busy.notify_one();
        let push = || {
            self.queue
                .push(&self.memory, self.layout.slots, lease.slot as u32)
        };
        if let Err(error) = sent.and_then(|()| push())
            // Its end is closed: its death is about to be noticed and fails this request too.
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.end(&format!("it could not be handed a request: {error}"));
        }
        Ok((pending, receiver))
    }

    async fn send_parcel(&self, id: u64, own: &OwnMemory) -> io::Result<()> {
        let descriptor = [own.descriptor.as_fd()];
        loop {
            match socket::send(&self.parcels, &id.to_le_bytes(), &descriptor) {
                // Only with hundreds of large requests at once.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                sent => return sent,
            }
        }
    }

    /// From now on an invoke may take as long as the manifest says.
    pub(in crate::worker) fn proven(&self) {
        let limit = self.manifest.invoke_limit_ms;
        self.invoke_limit.store(limit, Ordering::Relaxed);
    }

    pub(in crate::worker) fn in_flight(&self) -> usize {
        self.layout.slots - self.permits.available_permits().min(self.layout.slots)
    }

    /// Sends a control message.
    pub(in crate::worker) async fn tell(&self, message: &ToWorker) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let send = |control: &OwnedFd| socket::send(control, &bytes, &[]);
        self.control.async_io(Interest::WRITABLE, send).await
    }

    /// Receives a control message.
    pub(in crate::worker) async fn hear(&self) -> io::Result<wire::FromWorker> {
        hear(&self.control).await
    }

    /// Ends the process. The first reason stands.
    pub(in crate::worker) fn end(&self, reason: &str) {
        lock(&self.ended_for).get_or_insert_with(|| reason.to_owned());
        self.process.kill();
    }

    pub(in crate::worker) async fn died(&self) -> WorkerDeath {
        let mut death = self.death.subscribe();
        let known = death.wait_for(Option::is_some).await;
        match known.as_deref() {
            Ok(Some(death)) => death.clone(),
            _ => WorkerDeath {
                reason: "the agent is shutting down".to_owned(),
                stderr: String::new(),
                suspects: Vec::new(),
            },
        }
    }

    /// Known from the moment on in which no slot is given any more.
    pub(in crate::worker) fn is_gone(&self) -> bool {
        self.permits.is_closed()
    }

    pub(in crate::worker) fn died_error(&self) -> WorkerError {
        let death = self.death.borrow();
        let reason = death.as_ref().map(|d| d.reason.clone());
        let reason = reason.or_else(|| lock(&self.ended_for).clone());
        WorkerError::Died(reason.unwrap_or_else(|| "its process has ended".to_owned()))
    }
}

impl Pending {
    /// The answer has come, or never will.
    pub(in crate::worker) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let Supervisor { layout, memory, .. } = &*self.supervisor;
        // Not begun: it never will, and the worker says so when it comes to it. Running: ask to stop
        // between nodes. Either way the slot stays the worker's until it answers.
        if !layout.swap(memory, self.slot, State::Queued, State::Cancelled)
            && let Ok(message) = serde_json::to_vec(&ToWorker::Cancel(self.id))
        {
            // A full socket means a worker that is not listening: the invoke limit takes care of it.
            let _ = socket::send(self.supervisor.control.get_ref(), &message, &[]);
        }
    }
}

/// Receives one control message; an error also when the worker has closed its end.
pub(in crate::worker) async fn hear(control: &AsyncFd<OwnedFd>) -> io::Result<wire::FromWorker> {
    let mut buffer = vec![0; wire::MAX_CONTROL_BYTES];
    let (length, _) = control
        .async_io(Interest::READABLE, |control| {
            socket::receive(control, &mut buffer)
        })
        .await?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&buffer[..length])?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
