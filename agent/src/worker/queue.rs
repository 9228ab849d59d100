//! The way of a job to a free interpreter thread, and of the news of its reply back.
//!
//! Both ways are words in shared memory; the kernel is asked only to wake someone who sleeps. Measured on one
//! core, a round trip through a pair of sockets takes nearly twice as long. Jobs go through a ring of slot
//! numbers with a futex under it; the agent only writes there, so nothing the worker does can make it wait.
//! The agent sleeps in its event loop, so replies ring an event descriptor, once per sleep and not per reply.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::futex::{self, Timespec};

use super::memory::{ALIGNMENT, Memory, aligned};

/// Offsets, each on a line of its own. How many jobs were ever pushed, wrapping.
const PUSHED: usize = 0;
/// Interpreter threads that sleep.
const SLEEPERS: usize = ALIGNMENT;
/// 1: the agent sleeps and wants to be woken.
const AGENT_SLEEPS: usize = 2 * ALIGNMENT;
const RING: usize = 3 * ALIGNMENT;

/// What the queue takes at the beginning of the shared memory.
pub fn bytes(slots: usize) -> usize {
    aligned(RING + places(slots) * size_of::<u32>()).unwrap_or(usize::MAX)
}

/// At least as many places as slots, since a slot is in the queue once; a power of two, so that the count may
/// wrap.
fn places(slots: usize) -> usize {
    slots.next_power_of_two()
}

fn word(memory: &Memory, offset: usize) -> io::Result<&AtomicU32> {
    let outside = || io::Error::other("the job queue lies outside of its memory");
    memory.word(offset).ok_or_else(outside)
}

/// The place of the `number`-th job.
fn place(memory: &Memory, slots: usize, number: u32) -> io::Result<&AtomicU32> {
    let place = number as usize % places(slots);
    word(memory, RING + place * size_of::<u32>())
}

/// The agent's end.
#[derive(Debug, Default)]
pub struct Pushing {
    pushed: Mutex<u32>,
}

impl Pushing {
    /// Hands a slot to the first interpreter thread that is free.
    pub fn push(&self, memory: &Memory, slots: usize, slot: u32) -> io::Result<()> {
        let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        place(memory, slots, *pushed)?.store(slot, Ordering::Relaxed);
        *pushed = pushed.wrapping_add(1);
        let count = word(memory, PUSHED)?;
        // Sequentially consistent with the sleeper's two steps: either we see it, or it sees the new count.
        count.store(*pushed, Ordering::SeqCst);
        drop(pushed);
        if word(memory, SLEEPERS)?.load(Ordering::SeqCst) > 0 {
            futex::wake(count, futex::Flags::empty(), 1)?;
        }
        Ok(())
    }

    /// Asks to be woken for replies that come from now on. Look for those that are there already afterwards.
    pub fn about_to_sleep(&self, memory: &Memory) -> io::Result<()> {
        word(memory, AGENT_SLEEPS)?.store(1, Ordering::SeqCst);
        // The look at the states must not happen before: the other half is in `ring`.
        fence(Ordering::SeqCst);
        Ok(())
    }
}

/// The worker's end, shared by its threads.
#[derive(Debug)]
pub struct Taking {
    taken: Mutex<u32>,
    bell: OwnedFd,
}

impl Taking {
    /// `bell`: what the agent watches.
    pub fn new(bell: OwnedFd) -> Self {
        Self {
            taken: Mutex::new(0),
            bell,
        }
    }

    /// The next slot to run. Waits for one, unless there is none and `stops` says that nobody should: then `None`.
    pub fn take(
        &self,
        memory: &Memory,
        slots: usize,
        stops: impl Fn() -> bool,
    ) -> io::Result<Option<u32>> {
        let (count, sleepers) = (word(memory, PUSHED)?, word(memory, SLEEPERS)?);
        loop {
            let pushed = {
                // Held while the place is read: it is reused when later jobs are through.
                let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
                let pushed = count.load(Ordering::SeqCst);
                if pushed != *taken {
                    let slot = place(memory, slots, *taken)?.load(Ordering::Relaxed);
                    *taken = taken.wrapping_add(1);
                    return Ok(Some(slot));
                }
                pushed
            };
            if stops() {
                return Ok(None);
            }
            sleepers.fetch_add(1, Ordering::SeqCst);
            let slept = futex::wait(count, futex::Flags::empty(), pushed, None);
            sleepers.fetch_sub(1, Ordering::SeqCst);
            match slept {
                Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets all threads that wait for a job look whether they should.
    pub fn wake_all(&self, memory: &Memory) -> io::Result<()> {
        futex::wake(
            word(memory, PUSHED)?,
            futex::Flags::empty(),
            i32::MAX as u32,
        )?;
        Ok(())
    }

    /// Shows the jobs that are queued, in their order, to `choose`, and takes as many of the first as it says.
    /// `slots_seen` is where they are put. Returns how many jobs were ever pushed by then.
    pub fn take_more(
        &self,
        memory: &Memory,
        slots: usize,
        slots_seen: &mut Vec<u32>,
        choose: impl FnOnce(&[u32]) -> usize,
    ) -> io::Result<u32> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let pushed = word(memory, PUSHED)?.load(Ordering::SeqCst);
        slots_seen.clear();
        for number in 0..pushed.wrapping_sub(*taken) {
            let place = place(memory, slots, taken.wrapping_add(number))?;
            slots_seen.push(place.load(Ordering::Relaxed));
        }
        let chosen = choose(slots_seen).min(slots_seen.len());
        *taken = taken.wrapping_add(chosen as u32);
        drop(taken);
        // Whoever looks may have been woken for a job that it leaves to others.
        if chosen < slots_seen.len() && self.idle(memory) > 0 {
            futex::wake(word(memory, PUSHED)?, futex::Flags::empty(), 1)?;
        }
        Ok(pushed)
    }

    /// Interpreter threads that have nothing to do.
    pub fn idle(&self, memory: &Memory) -> usize {
        word(memory, SLEEPERS).map_or(0, |count| count.load(Ordering::Relaxed) as usize)
    }

    /// Waits until there are other than `pushed` jobs, at most so long.
    pub fn wait_for_more(&self, memory: &Memory, pushed: u32, most: Duration) -> io::Result<()> {
        let (count, sleepers) = (word(memory, PUSHED)?, word(memory, SLEEPERS)?);
        let most = Timespec::try_from(most).map_err(io::Error::other)?;
        sleepers.fetch_add(1, Ordering::SeqCst);
        let slept = futex::wait(count, futex::Flags::empty(), pushed, Some(&most));
        sleepers.fetch_sub(1, Ordering::SeqCst);
        use rustix::io::Errno;
        match slept {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A reply is there: wakes the agent if it sleeps.
    pub fn ring(&self, memory: &Memory) -> io::Result<()> {
        // The reply's state is out before the question whether anyone sleeps.
        fence(Ordering::SeqCst);
        if word(memory, AGENT_SLEEPS)?.swap(0, Ordering::SeqCst) == 1 {
            rustix::io::write(&self.bell, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }
}

/// An event descriptor for [`Taking::ring`]. It is never read: the agent's loop notes each ring.
#[allow(unsafe_code)]
pub fn bell() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the call takes no pointers; a number that is not negative is a new descriptor of ours.
    unsafe {
        let descriptor = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    #[test]
    fn every_job_is_taken_once_whoever_is_free() {
        const SLOTS: usize = 5;
        const JOBS: u32 = 20_000;
        let (_descriptor, memory) = Memory::create("test", bytes(SLOTS)).expect("memory");
        let memory = Arc::new(memory);
        let taking = Arc::new(Taking::new(bell().expect("bell")));
        let (sender, receiver) = std::sync::mpsc::channel();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (memory, taking, sender) = (memory.clone(), taking.clone(), sender.clone());
                std::thread::spawn(move || {
                    loop {
                        let slot = taking.take(&memory, SLOTS, || false).expect("take");
                        let slot = slot.expect("nobody stops it");
                        if slot == u32::MAX {
                            return;
                        }
                        sender.send(slot).expect("send");
                    }
                })
            })
            .collect();
        let pushing = Pushing::default();
        let mut free: Vec<u32> = (0..SLOTS as u32).collect();
        for _ in 0..JOBS {
            if let Some(slot) = free.pop() {
                pushing.push(&memory, SLOTS, slot).expect("push");
            }
            if free.is_empty() {
                free.push(receiver.recv().expect("a job that was taken"));
            }
        }
        let in_flight = SLOTS - free.len();
        let mut last: Vec<u32> = receiver.iter().take(in_flight).chain(free).collect();
        last.sort_unstable();
        assert_eq!(
            last,
            (0..SLOTS as u32).collect::<Vec<_>>(),
            "a slot was lost or doubled"
        );
        for _ in &threads {
            pushing.push(&memory, SLOTS, u32::MAX).expect("push");
        }
        for thread in threads {
            thread.join().expect("thread");
        }
    }

    #[test]
    fn the_bell_rings_once_per_sleep() {
        let (_descriptor, memory) = Memory::create("test", bytes(1)).expect("memory");
        let taking = Taking::new(bell().expect("bell"));
        let rings = || {
            let mut count = [0; 8];
            rustix::io::read(taking.bell.as_fd(), &mut count)
                .map_or(0, |_| u64::from_ne_bytes(count))
        };
        taking.ring(&memory).expect("ring");
        assert_eq!(rings(), 0, "nobody sleeps");
        Pushing::default().about_to_sleep(&memory).expect("sleep");
        taking.ring(&memory).expect("ring");
        taking.ring(&memory).expect("ring");
        assert_eq!(rings(), 1);
    }
}
