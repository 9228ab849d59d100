//! The agent's side of a running worker: who holds which slot, which requests are in it, and its death.
//!
//! Three tasks serve a worker: one hands its replies to the requests that wait for them, one ends it when an
//! invoke exceeds the model's limit, one notices its death and fails what was in flight. All of them end
//! with the process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgeward_models::{Digest, Manifest};
use sha2::Digest as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::memory::Memory;
use super::process::Process;
use super::queue::Pushing;
use super::slots::{Layout, State};
use super::wire::{self, Job, Outcome, Reply, TensorRef, ToWorker};
use super::{WorkerDeath, WorkerError, socket};

/// What all handles, slots, answers and tasks of one worker share.
pub(super) struct Supervisor {
    pub(super) manifest: Arc<Manifest>,
    pub(super) layout: Layout,
    pub(super) memory: Memory,
    pub(super) process: Process,
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
    /// Wakes the watchdog when there is something to watch.
    busy: Notify,
    /// Why we ended it ourselves.
    ended_for: Mutex<Option<String>>,
    death: watch::Sender<Option<WorkerDeath>>,
}

/// Our ends of what connects us with the worker.
pub(super) struct Ends {
    pub(super) bell: AsyncFd<OwnedFd>,
    pub(super) parcels: OwnedFd,
    pub(super) control: AsyncFd<OwnedFd>,
}

/// A slot that is taken. Given back when the caller and the worker both let go of it.
pub(super) struct Lease {
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) slot: usize,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The last one used is the next one given: its memory is warm, and idle slots never get any.
        lock(&self.supervisor.free).push(self.slot);
    }
}

/// The memory of a request that is larger than a slot.
pub(super) struct OwnMemory {
    pub(super) descriptor: OwnedFd,
    pub(super) memory: Memory,
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
pub(super) type Received = (Outcome, Option<OwnedFd>);

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

type Suspect = (Arc<Lease>, Vec<TensorRef>, Option<Arc<OwnMemory>>);

/// A request that was handed over; dropping it cancels.
pub(super) struct Pending {
    supervisor: Arc<Supervisor>,
    slot: usize,
    id: u64,
    finished: bool,
}

impl Supervisor {
    /// Puts a started and set-up worker under supervision.
    pub(super) fn new(
        manifest: Arc<Manifest>,
        layout: Layout,
        memory: Memory,
        process: Process,
        ends: Ends,
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
            busy: Notify::new(),
            ended_for: Mutex::new(None),
            death: watch::Sender::new(None),
        });
        tokio::spawn(Arc::clone(&supervisor).take_replies());
        tokio::spawn(Arc::clone(&supervisor).watch_invokes());
        tokio::spawn(Arc::clone(&supervisor).notice_death());
        supervisor
    }

    pub(super) async fn lease(self: &Arc<Self>, wait: Duration) -> Result<Arc<Lease>, WorkerError> {
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
    pub(super) async fn submit(
        self: &Arc<Self>,
        lease: &Arc<Lease>,
        signature: u32,
        inputs: Vec<TensorRef>,
        own_memory: Option<Arc<OwnMemory>>,
    ) -> Result<(Pending, oneshot::Receiver<Received>), WorkerError> {
        let (answer, receiver) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let job = Job {
            id,
            slot: lease.slot as u32,
            signature,
            sent_at: super::clock::nanoseconds(),
            core: rustix::thread::sched_getcpu() as u32,
            own_memory: own_memory.as_ref().map_or(0, |m| m.memory.length() as u64),
            inputs,
        };
        let mut message = Vec::with_capacity(256);
        job.encode(&mut message);
        let written = self
            .layout
            .write_message(&self.memory, lease.slot, &message);
        written.ok_or_else(|| WorkerError::Invoke("it brings too many inputs".to_owned()))?;
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
                own_memory: own_memory.clone(),
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
        let handed_over = async {
            if let Some(own) = &own_memory {
                self.send_parcel(id, own).await?;
            }
            self.queue
                .push(&self.memory, self.layout.slots, lease.slot as u32)
        };
        if let Err(error) = handed_over.await
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

    pub(super) fn in_flight(&self) -> usize {
        self.layout.slots - self.permits.available_permits().min(self.layout.slots)
    }

    /// Sends a control message.
    pub(super) async fn tell(&self, message: &ToWorker) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let send = |control: &OwnedFd| socket::send(control, &bytes, &[]);
        self.control.async_io(Interest::WRITABLE, send).await
    }

    /// Receives a control message.
    pub(super) async fn hear(&self) -> io::Result<wire::FromWorker> {
        hear(&self.control).await
    }

    /// Ends the process. The first reason stands.
    pub(super) fn end(&self, reason: &str) {
        lock(&self.ended_for).get_or_insert_with(|| reason.to_owned());
        self.process.kill();
    }

    pub(super) async fn died(&self) -> WorkerDeath {
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

    pub(super) fn died_error(&self) -> WorkerError {
        let death = self.death.borrow();
        let reason = death.as_ref().map(|d| d.reason.clone());
        let reason = reason.or_else(|| lock(&self.ended_for).clone());
        WorkerError::Died(reason.unwrap_or_else(|| "its process has ended".to_owned()))
    }

    async fn take_replies(self: Arc<Self>) {
        let mut buffer = [0; wire::MAX_MESSAGE_BYTES];
        let mut done = Vec::new();
        let mut death = self.death.subscribe();
        let taking = async {
            loop {
                // First this, then a look: what comes after the look rings the bell.
                let taken = self.queue.about_to_sleep(&self.memory);
                let taken = taken.and_then(|()| self.take_done(&mut done, &mut buffer));
                if let Err(error) = taken {
                    self.end(&format!("it sent a reply that cannot be believed: {error}"));
                    return;
                }
                let Ok(mut rung) = self.bell.readable().await else {
                    return;
                };
                rung.clear_ready();
            }
        };
        tokio::select! {
            () = taking => {}
            _ = death.wait_for(Option::is_some) => {}
        }
    }

    /// Hands on all replies that are there.
    fn take_done(
        &self,
        done: &mut Vec<InFlight>,
        buffer: &mut [u8; wire::MAX_MESSAGE_BYTES],
    ) -> io::Result<()> {
        {
            let Table { requests, busy, .. } = &mut *lock(&self.running);
            busy.retain(|&slot| {
                let is_done = self.layout.is(&self.memory, slot, State::Done);
                if is_done {
                    done.extend(requests[slot].take());
                }
                !is_done
            });
        }
        for request in done.drain(..) {
            let slot = request.lease.slot;
            let message = self.layout.read_message(&self.memory, slot, buffer);
            let message = message.ok_or_else(|| io::Error::other("its length is wrong"))?;
            let reply = Reply::decode(message).map_err(io::Error::other)?;
            if reply.id != request.id {
                return Err(io::Error::other("it is for another request"));
            }
            let parcel = match &reply.outcome {
                Outcome::Done(done) if done.own_memory > 0 => Some(self.receive_parcel(reply.id)?),
                _ => None,
            };
            // The caller may have left: then the slot is given back here.
            let _ = request.answer.send((reply.outcome, parcel));
        }
        Ok(())
    }

    /// The memory that a reply said to have sent before it.
    fn receive_parcel(&self, id: u64) -> io::Result<OwnedFd> {
        let mut stored = lock(&self.stored_parcels);
        loop {
            if let Some(at) = stored.iter().position(|(of, _)| *of == id) {
                return Ok(stored.swap_remove(at).1);
            }
            if stored.len() > self.layout.slots {
                return Err(io::Error::other("it sent memory that belongs to no reply"));
            }
            stored.push(socket::receive_parcel(&self.parcels)?);
        }
    }

    /// Ends the process when one invoke takes longer than the manifest allows. No caller's deadline does.
    async fn watch_invokes(self: Arc<Self>) {
        let limit = Duration::from_millis(self.manifest.invoke_limit_ms);
        let tick = (limit / 20).clamp(Duration::from_millis(5), Duration::from_millis(500));
        let mut death = self.death.subscribe();
        let watching = async {
            loop {
                self.busy.notified().await;
                while self.has_requests() {
                    tokio::time::sleep(tick).await;
                    if self.an_invoke_exceeds(limit, tick) {
                        self.end(&format!("an invoke exceeded its limit of {limit:?}"));
                        return;
                    }
                }
            }
        };
        tokio::select! {
            () = watching => {}
            _ = death.wait_for(Option::is_some) => {}
        }
    }

    fn has_requests(&self) -> bool {
        !lock(&self.running).busy.is_empty()
    }

    fn an_invoke_exceeds(&self, limit: Duration, tick: Duration) -> bool {
        let now = Instant::now();
        let mut newest = None;
        for request in lock(&self.running).requests.iter_mut().flatten() {
            newest = newest.max(Some(request.sent));
            if self
                .layout
                .is(&self.memory, request.lease.slot, State::Running)
            {
                let since = *request.seen_running.get_or_insert(now);
                if now.duration_since(since) >= limit {
                    return true;
                }
            }
        }
        // The states are the worker's own words. One that only claims to be idle hangs all the same: every
        // slot's request may run for the limit before the newest one, and no longer.
        let patience = limit
            .saturating_add(tick)
            .saturating_mul(self.layout.slots as u32 + 1);
        newest.is_some_and(|sent| now.duration_since(sent) > patience)
    }

    async fn notice_death(self: Arc<Self>) {
        let exit = self.process.ended().await;
        let ours = lock(&self.ended_for).clone();
        let mut death = WorkerDeath {
            reason: ours.unwrap_or(exit.words),
            stderr: exit.stderr,
            suspects: Vec::new(),
        };
        // What fails from now on says why, though the whole death is not known yet.
        lock(&self.ended_for).get_or_insert_with(|| death.reason.clone());
        self.permits.close();
        let failed: Vec<InFlight> = {
            let mut running = lock(&self.running);
            running.closed = true;
            running.busy.clear();
            running
                .requests
                .iter_mut()
                .filter_map(Option::take)
                .collect()
        };
        let mut suspects: Vec<Suspect> = Vec::new();
        for request in failed {
            let slot = request.lease.slot;
            if self.layout.is(&self.memory, slot, State::Running) {
                suspects.push((request.lease, request.inputs, request.own_memory));
            }
            // Dropping the sender fails the request, at once.
            drop(request.answer);
        }
        if !suspects.is_empty() {
            let digests = tokio::task::spawn_blocking(move || {
                let digest = |(lease, inputs, own): &Suspect| lease.digest(inputs, own.as_deref());
                suspects.iter().map(digest).collect()
            });
            death.suspects = digests.await.unwrap_or_default();
        }
        self.death.send_replace(Some(death));
    }
}

impl Lease {
    /// The memory that inputs lie in, where their area begins, and how long it is.
    pub(super) fn input_area<'a>(
        &'a self,
        own: Option<&'a OwnMemory>,
    ) -> (&'a Memory, usize, usize) {
        match own {
            Some(own) => (&own.memory, 0, own.memory.length()),
            None => {
                let layout = &self.supervisor.layout;
                let begin = layout.inputs(self.slot).unwrap_or(0);
                (&self.supervisor.memory, begin, layout.input_area)
            }
        }
    }

    /// SHA-256 over all inputs.
    #[allow(unsafe_code)]
    pub(super) fn digest(&self, inputs: &[TensorRef], own: Option<&OwnMemory>) -> Digest {
        let mut hasher = sha2::Sha256::new();
        let (memory, begin, _) = self.input_area(own);
        for input in inputs {
            let (offset, length) = (begin + input.offset as usize, input.length as usize);
            // SAFETY: input memory is written only through `Slot::input`, which needs the slot by unique
            // reference: not while it is being hashed, and never again after it was handed over.
            if let Some(bytes) = unsafe { memory.bytes(offset, length) } {
                hasher.update(bytes);
            }
        }
        Digest::from_bytes(hasher.finalize().into())
    }
}

impl Pending {
    /// The answer has come, or never will.
    pub(super) fn finish(mut self) {
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
pub(super) async fn hear(control: &AsyncFd<OwnedFd>) -> io::Result<wire::FromWorker> {
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
