//! Requests that belong together, for a model that keeps state.
//!
//! Each sequence has a stream of the worker, which is an interpreter of its own, and its requests run one after
//! another. A request that was sent and not answered leaves a state that nobody knows, and a worker takes all
//! state with it: then the sequence is lost, and says so to whoever goes on with it. It is never continued on
//! other state than it left.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgeward_models::manifest;
use tokio::sync::OwnedMutexGuard;

use super::loaded::Hold;
use crate::worker::Stream;

/// Lost sequences that are remembered with their reason, for each that may run.
const REMEMBERED_PER_PLACE: usize = 4;

/// What a request says of the sequence that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    pub id: SequenceId,
    /// Begins it, on fresh state.
    pub start: bool,
    /// Is its last request.
    pub end: bool,
}

/// A sequence's name: the protocol allows both kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SequenceId {
    Number(u64),
    Text(String),
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Why a request cannot have its turn.
#[derive(Debug, PartialEq)]
pub(super) enum NoTurn {
    /// It does not run, or not any more.
    Unknown(String),
    /// As many run as may.
    Full { most: u32 },
    /// Requests of the same sequence took the time that there was.
    Waited,
}

/// The sequences of one version.
#[derive(Debug)]
pub(super) struct Sequences {
    limits: manifest::Sequences,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The process that has the streams.
    worker: u32,
    running: HashMap<SequenceId, Running>,
    lost: HashMap<SequenceId, String>,
    /// Numbers of streams that nobody has.
    free: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Running {
    number: u32,
    /// Held by the request whose turn it is; also tells this sequence from another of the same name.
    gate: Arc<tokio::sync::Mutex<()>>,
    used: Instant,
}

/// A request's turn in its sequence. Dropped between sending and answer, it loses the sequence.
pub(super) struct Turn {
    hold: Hold,
    sequence: Sequence,
    running: Running,
    /// It made the sequence, so that nothing is left of it if it is not sent.
    made: bool,
    sent: bool,
    _gate: OwnedMutexGuard<()>,
}

impl Sequences {
    pub(super) fn new(limits: manifest::Sequences) -> Self {
        Self {
            limits,
            table: Mutex::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one runs that was heard of lately.
    pub(super) fn any(&self, now: Instant) -> bool {
        let idle = Duration::from_secs(self.limits.idle_seconds.into());
        let table = self.table();
        let mut running = table.running.values();
        running.any(|running| now.saturating_duration_since(running.used) <= idle)
    }

    /// Finds the sequence, or makes it if this request starts it. True: it was made.
    fn find(
        &self,
        worker: u32,
        sequence: &Sequence,
        now: Instant,
    ) -> Result<(Running, bool), NoTurn> {
        let mut table = self.table();
        if table.worker != worker {
            let lost: Vec<_> = table.running.drain().map(|(id, _)| id).collect();
            for id in lost {
                table.lose(id, "its worker was replaced", self.limits.most);
            }
            table.worker = worker;
            table.free = (1..=self.limits.most).rev().collect();
        }
        let idle = Duration::from_secs(self.limits.idle_seconds.into());
        let expired = |running: &Running| {
            now.saturating_duration_since(running.used) > idle && running.gate.try_lock().is_ok()
        };
        if let Some(running) = table.running.get_mut(&sequence.id) {
            if sequence.start || !expired(running) {
                running.used = now;
                return Ok((running.clone(), false));
            }
            table.expire(&sequence.id, idle, self.limits.most);
        }
        if !sequence.start {
            let known = table.lost.get(&sequence.id).cloned();
            return Err(NoTurn::Unknown(known.unwrap_or_else(|| {
                "no request has started it, or it has ended".to_owned()
            })));
        }
        table.lost.remove(&sequence.id);
        if table.free.is_empty() {
            let oldest = table.running.iter().filter(|(_, r)| expired(r));
            let oldest = oldest.min_by_key(|(_, r)| r.used).map(|(id, _)| id.clone());
            let oldest = oldest.ok_or(NoTurn::Full {
                most: self.limits.most,
            })?;
            table.expire(&oldest, idle, self.limits.most);
        }
        let number = table.free.pop().ok_or(NoTurn::Full {
            most: self.limits.most,
        })?;
        let running = Running {
            number,
            gate: Arc::default(),
            used: now,
        };
        table.running.insert(sequence.id.clone(), running.clone());
        Ok((running, true))
    }

    /// Takes a sequence out, if it is still this one.
    fn remove(&self, id: &SequenceId, running: &Running, lost_because: Option<&str>) {
        let mut table = self.table();
        if !table.has(id, running) {
            return;
        }
        table.running.remove(id);
        table.free.push(running.number);
        if let Some(reason) = lost_because {
            table.lose(id.clone(), reason, self.limits.most);
        }
    }

    /// Waits for the requests of the same sequence that came before.
    pub(super) async fn turn(
        hold: &Hold,
        worker: u32,
        sequence: &Sequence,
        wait: Duration,
    ) -> Result<Turn, NoTurn> {
        let sequences = &hold.sequences;
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let (running, made) = sequences.find(worker, sequence, Instant::now())?;
            let gate = Arc::clone(&running.gate).lock_owned();
            let gate = tokio::time::timeout_at(deadline, gate).await;
            let gate = gate.map_err(|_| NoTurn::Waited)?;
            // It may have ended or been lost while this one waited; `find` knows what that means.
            if sequences.table().has(&sequence.id, &running) {
                return Ok(Turn {
                    hold: hold.clone(),
                    sequence: sequence.clone(),
                    running,
                    made,
                    sent: false,
                    _gate: gate,
                });
            }
        }
    }
}

impl Table {
    /// Whether this very sequence still runs, and not another of the same name.
    fn has(&self, id: &SequenceId, running: &Running) -> bool {
        let found = self.running.get(id);
        found.is_some_and(|found| Arc::ptr_eq(&found.gate, &running.gate))
    }

    fn lose(&mut self, id: SequenceId, reason: &str, most: u32) {
        if self.lost.len() >= most as usize * REMEMBERED_PER_PLACE {
            self.lost.clear();
        }
        self.lost.insert(id, reason.to_owned());
    }

    fn expire(&mut self, id: &SequenceId, idle: Duration, most: u32) {
        if let Some(running) = self.running.remove(id) {
            self.free.push(running.number);
            let reason = format!("it was idle for longer than {} s", idle.as_secs());
            self.lose(id.clone(), &reason, most);
        }
    }
}

impl Turn {
    /// From here on the state may have changed. Returns where the request is to run.
    pub(super) fn send(&mut self) -> Stream {
        self.sent = true;
        Stream {
            number: self.running.number,
            begin: self.sequence.start,
            end: self.sequence.end,
        }
    }

    pub(super) fn answered(mut self) {
        self.sent = false;
        self.made = false;
        if self.sequence.end {
            let sequences = &self.hold.sequences;
            sequences.remove(&self.sequence.id, &self.running, None);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let sequences = &self.hold.sequences;
        if self.sent {
            let reason = "its last request was not answered, so its state is unknown";
            sequences.remove(&self.sequence.id, &self.running, Some(reason));
        } else if self.made {
            sequences.remove(&self.sequence.id, &self.running, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: u32 = 7;

    fn sequences(most: u32) -> Sequences {
        Sequences::new(manifest::Sequences {
            most,
            idle_seconds: 10,
        })
    }

    fn part(id: u64, start: bool) -> Sequence {
        Sequence {
            id: SequenceId::Number(id),
            start,
            end: false,
        }
    }

    fn unknown(found: Result<(Running, bool), NoTurn>) -> String {
        match found {
            Err(NoTurn::Unknown(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sequence_keeps_its_stream_and_no_other_gets_it() {
        let (sequences, now) = (sequences(2), Instant::now());
        let find = |part: &Sequence| sequences.find(WORKER, part, now);
        assert!(unknown(find(&part(1, false))).contains("no request has started it"));
        let (one, made) = find(&part(1, true)).expect("one");
        let (two, _) = find(&part(2, true)).expect("two");
        assert!(made && one.number != two.number);
        assert_eq!(find(&part(1, false)).expect("one").0.number, one.number);
        assert_eq!(
            find(&part(3, true)).expect_err("full"),
            NoTurn::Full { most: 2 }
        );
        sequences.remove(&SequenceId::Number(1), &one, None);
        assert_eq!(find(&part(3, true)).expect("three").0.number, one.number);
        let text = Sequence {
            id: SequenceId::Text("2".to_owned()),
            ..part(2, false)
        };
        assert!(unknown(find(&text)).contains("no request"));
    }

    #[test]
    fn an_idle_sequence_gives_its_place_away_and_is_told_so() {
        let (sequences, start) = (sequences(1), Instant::now());
        assert!(!sequences.any(start));
        sequences.find(WORKER, &part(1, true), start).expect("one");
        let later = start + Duration::from_secs(9);
        assert!(sequences.find(WORKER, &part(2, true), later).is_err());
        assert!(sequences.any(later));
        let late = start + Duration::from_secs(11);
        assert!(!sequences.any(late));
        sequences.find(WORKER, &part(2, true), late).expect("two");
        let said = unknown(sequences.find(WORKER, &part(1, false), late));
        assert!(said.contains("idle for longer than 10 s"), "{said}");
        // Also where nobody wants its place.
        let later = late + Duration::from_secs(11);
        let said = unknown(sequences.find(WORKER, &part(2, false), later));
        assert!(said.contains("idle"), "{said}");
    }

    #[test]
    fn a_new_worker_has_none_of_the_old_ones_sequences() {
        let (sequences, now) = (sequences(1), Instant::now());
        sequences.find(WORKER, &part(1, true), now).expect("one");
        let said = unknown(sequences.find(WORKER + 1, &part(1, false), now));
        assert!(said.contains("worker was replaced"), "{said}");
        sequences
            .find(WORKER + 1, &part(1, true), now)
            .expect("anew");
        sequences
            .find(WORKER + 1, &part(1, false), now)
            .expect("on");
    }

    #[test]
    fn what_is_remembered_of_lost_sequences_has_an_end() {
        let (sequences, now) = (sequences(2), Instant::now());
        for id in 0..100 {
            let (running, _) = sequences.find(WORKER, &part(id, true), now).expect("place");
            sequences.remove(&SequenceId::Number(id), &running, Some("lost"));
        }
        assert!(sequences.table().lost.len() <= 8);
    }
}
