//! Hands the worker's replies to the requests that wait for them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{InFlight, Supervisor, Table, lock};
use crate::worker::slots::State;
use crate::worker::socket;
use crate::worker::wire::{self, Outcome, Reply};

impl Supervisor {
    /// Runs until the process has ended.
    pub(super) async fn take_replies(self: Arc<Self>) {
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
}
