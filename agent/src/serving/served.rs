//! A request's way through one version: admitted, filled, run, counted.
//!
//! The doors call `begin`, then `input` once per tensor, then `infer`. Whatever happens to the future or the
//! [`Request`] in between, the version is held until it is dropped and the outcome is counted once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::manifest::{Datatype, Manifest, Signature};

use super::admission::{check_input, retry_after_seconds};
use super::error::{RETRY_SOON_SECONDS, ServeError};
use super::loaded::{Hold, Loaded};
use super::sequences::{NoTurn, Sequence, Sequences, Turn};
use super::shadow::{Answer, Mirror};
use super::stats::{Outcome, Statistics, Times};
use crate::strings;
use crate::worker::{Slot, WorkerError};

/// One served version, as a request sees it.
#[derive(Clone)]
pub struct Served {
    hold: Hold,
    /// Where its requests are mirrored to.
    mirror: Option<Mirror>,
}

/// One admitted request.
pub struct Request {
    slot: Slot,
    signature: usize,
    /// Inputs filled so far.
    filled: usize,
    deadline: Instant,
    /// How long the request waited for its slot.
    waited: Duration,
    turn: Option<Turn>,
    mirror: Option<Mirror>,
    tally: Tally,
}

/// Counts how a request ended, when it is dropped.
struct Tally {
    hold: Hold,
    begun: Instant,
    /// What to count; a request that is dropped before anything was decided was left by its caller.
    outcome: Outcome,
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self.outcome != Outcome::Succeeded {
            self.hold.stats.ended(self.outcome);
        }
    }
}

impl Tally {
    fn fails(&mut self, error: ServeError) -> ServeError {
        self.outcome = Outcome::of(&error);
        error
    }

    fn deadline_passed(&mut self, deadline: Instant) -> ServeError {
        let given = deadline.saturating_duration_since(self.begun);
        self.fails(ServeError::Deadline(given.as_millis() as u64))
    }
}

impl Served {
    pub(super) fn new(hold: Hold) -> Self {
        Self::mirrored(hold, None)
    }

    pub(super) fn mirrored(hold: Hold, mirror: Option<Mirror>) -> Self {
        Self { hold, mirror }
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        self.hold.manifest()
    }

    /// Whether a request would find a worker.
    pub fn ready(&self) -> bool {
        self.hold.ready()
    }

    pub fn statistics(&self) -> Statistics {
        self.hold.stats.statistics()
    }

    /// Takes a slot for a request of `bytes` input bytes; waits at most the configured queue time and never
    /// past the deadline.
    pub async fn begin(
        &self,
        signature: usize,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Request, ServeError> {
        self.begin_in(None, signature, bytes, deadline).await
    }

    /// The same for a request that may belong to a sequence, whose earlier requests it waits for.
    pub async fn begin_in(
        &self,
        sequence: Option<&Sequence>,
        signature: usize,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Request, ServeError> {
        let loaded: &Loaded = &self.hold;
        let mut tally = Tally {
            hold: self.hold.clone(),
            begun: Instant::now(),
            outcome: Outcome::Cancelled,
        };
        let manifest = loaded.manifest();
        if signature >= manifest.signatures.len() {
            return Err(tally.fails(ServeError::Invalid(format!(
                "model {} has no signature number {signature}",
                manifest.model
            ))));
        }
        let limit = manifest.request_bytes();
        if bytes as u64 > limit {
            return Err(tally.fails(too_large(loaded, bytes as u64, limit)));
        }
        let left = deadline.saturating_duration_since(tally.begun);
        if left.is_zero() {
            return Err(tally.deadline_passed(deadline));
        }
        let Some(place) = loaded.waiting.enter() else {
            return Err(tally.fails(overloaded(loaded)));
        };
        let worker = match loaded.serving_worker(deadline).await {
            Some(Ok(worker)) => worker,
            Some(Err(error)) => return Err(tally.fails(error)),
            None => return Err(tally.deadline_passed(deadline)),
        };
        let facts = worker.facts();
        let turn = match sequence {
            None if facts.keeps_state => Err(needs_sequence(loaded)),
            None => Ok(None),
            Some(_) if !facts.keeps_state => Err(keeps_no_state(loaded)),
            Some(sequence) => {
                let wait = left.min(loaded.queue_timeout);
                let turn = Sequences::turn(&self.hold, facts.pid, sequence, wait).await;
                turn.map(Some).map_err(|no| match no {
                    NoTurn::Waited if Instant::now() >= deadline => tally.deadline_passed(deadline),
                    no => no_turn(loaded, sequence, no),
                })
            }
        };
        let turn = match turn {
            Ok(turn) => turn,
            Err(error) => return Err(tally.fails(error)),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let leased = worker.lease(bytes, left.min(loaded.queue_timeout)).await;
        drop(place);
        match leased {
            Ok(slot) => Ok(Request {
                slot,
                signature,
                filled: 0,
                deadline,
                waited: tally.begun.elapsed(),
                turn,
                mirror: self.mirror.clone(),
                tally,
            }),
            Err(WorkerError::Busy(_) | WorkerError::Deadline) if Instant::now() >= deadline => {
                Err(tally.deadline_passed(deadline))
            }
            Err(WorkerError::Busy(_)) => Err(tally.fails(overloaded(loaded))),
            // The worker went while this request had no part in it yet.
            Err(WorkerError::Died(reason)) => Err(tally.fails(loaded.worker_gone(reason))),
            Err(error) => Err(tally.fails(explain(loaded, error))),
        }
    }
}

impl Request {
    pub fn signature(&self) -> &Signature {
        &self.tally.hold.manifest().signatures[self.signature]
    }

    /// Memory for the `bytes` of the next input (signature's order), after its shape was checked against the manifest.
    /// Strings are written in the form of [`crate::strings`], and are as long as they are; any other datatype
    /// has the bytes that [`super::check_shape`] says.
    pub fn input(&mut self, shape: &[i64], bytes: usize) -> Result<&mut [u8], ServeError> {
        let loaded: &Loaded = &self.tally.hold;
        let signature = &loaded.manifest().signatures[self.signature];
        let checked = match signature.inputs.get(self.filled) {
            Some(spec) => check_input(spec, shape, bytes),
            None => Err(ServeError::Invalid(format!(
                "signature {:?} takes {} inputs, not more",
                signature.name,
                signature.inputs.len()
            ))),
        };
        let limit = loaded.manifest().request_bytes();
        let checked = match checked {
            Ok(()) if bytes as u64 > limit => Err(too_large(loaded, bytes as u64, limit)),
            other => other,
        };
        if let Err(error) = checked {
            return Err(self.tally.fails(error));
        }
        match self.slot.input(shape, bytes) {
            Ok(memory) => {
                self.filled += 1;
                Ok(memory)
            }
            Err(error) => {
                let error = explain(&self.tally.hold, error);
                Err(self.tally.fails(error))
            }
        }
    }

    /// Runs the model. At the deadline the answer is `Deadline`, whatever the device is doing; dropping the
    /// future cancels what has not started.
    pub async fn infer(self) -> Result<Answer, ServeError> {
        let Self {
            mut slot,
            signature,
            filled,
            deadline,
            waited,
            mut turn,
            mirror,
            mut tally,
        } = self;
        let hold = tally.hold.clone();
        let wanted = &hold.manifest().signatures[signature];
        if let Some(missing) = wanted.inputs.get(filled) {
            return Err(tally.fails(ServeError::Invalid(format!(
                "input {:?} is missing",
                missing.name
            ))));
        }
        for (index, spec) in wanted.inputs.iter().enumerate() {
            if spec.datatype == Datatype::Bytes
                && let Err(error) = strings::check(slot.filled(index), &slot.shape(index))
            {
                let text = format!("input {:?}: {error}", spec.name);
                return Err(tally.fails(ServeError::Invalid(text)));
            }
        }
        let chose_shapes = chose_shapes(&hold, signature, &slot);
        let mut known = None;
        if !hold.poison.is_empty() {
            let digest = slot.input_digest();
            if hold.poison.refuses(&digest, Instant::now()) {
                let model = hold.manifest().model.clone();
                return Err(tally.fails(ServeError::Poison { model }));
            }
            // If it crashes the worker again, it takes no other request with it.
            if hold.poison.blames(&digest) {
                slot.alone();
            }
            known = Some(digest);
        }
        if let Some(turn) = &mut turn {
            slot.in_stream(turn.send());
        }
        // A sequence's state is in one version alone.
        let mirror = mirror.filter(|_| turn.is_none());
        let mirrored = mirror.and_then(|mirror| mirror.keep(&hold, &slot, signature));
        match slot.invoke(signature, deadline).await {
            Ok(answer) => {
                if let Some(turn) = turn {
                    turn.answered();
                }
                tally.outcome = Outcome::Succeeded;
                let answered = Instant::now();
                hold.stats.succeeded(Times {
                    queue: waited + answer.queue_time(),
                    invoke: answer.invoke_time(),
                    total: answered.saturating_duration_since(tally.begun),
                    answered,
                });
                hold.stats.batches.answered(answer.batch());
                if let Some(digest) = known {
                    hold.poison.answered(&digest);
                }
                Ok(Answer::new(answer, mirrored))
            }
            Err(WorkerError::Deadline) => Err(tally.deadline_passed(deadline)),
            Err(WorkerError::Died(reason)) => {
                let model = hold.manifest().model.clone();
                Err(tally.fails(ServeError::Crashed { model, reason }))
            }
            Err(error) => {
                hold.in_doubt.notify_one();
                let error = tally.fails(explain(&hold, error));
                if chose_shapes && matches!(error, ServeError::Failed { .. }) {
                    // No caller's odd shapes may speak against a version.
                    tally.outcome = Outcome::Invalid;
                }
                Err(error)
            }
        }
    }
}

/// Whether a request has shapes that the model leaves open and with which it was never seen to run.
fn chose_shapes(loaded: &Loaded, signature: usize, slot: &Slot) -> bool {
    let inputs = &loaded.manifest().signatures[signature].inputs;
    let open = inputs.iter().any(|spec| spec.shape.contains(&-1));
    let cases = loaded.subject.evidence.cases();
    open && !cases.into_iter().flatten().any(|(case, _)| {
        let mut shapes = case.inputs.iter().enumerate();
        case.signature == signature
            && shapes.all(|(index, input)| slot.has_shape(index, &input.shape))
    })
}

fn too_large(loaded: &Loaded, needed: u64, limit: u64) -> ServeError {
    ServeError::TooLarge {
        model: loaded.manifest().model.clone(),
        needed,
        limit,
    }
}

fn needs_sequence(loaded: &Loaded) -> ServeError {
    ServeError::Invalid(format!(
        "model {} keeps state between requests: say which sequence this one belongs to with the parameter \
         sequence_id, with sequence_start in its first request and sequence_end in its last (both, if it stands \
         alone)",
        loaded.manifest().model
    ))
}

fn keeps_no_state(loaded: &Loaded) -> ServeError {
    ServeError::Invalid(format!(
        "model {} keeps no state between requests: leave out sequence_id",
        loaded.manifest().model
    ))
}

fn no_turn(loaded: &Loaded, sequence: &Sequence, no: NoTurn) -> ServeError {
    let model = loaded.manifest().model.clone();
    match no {
        NoTurn::Unknown(reason) => ServeError::SequenceLost {
            model,
            sequence: sequence.id.clone(),
            reason,
        },
        NoTurn::Full { most } => ServeError::SequencesFull {
            model,
            most,
            retry_after_seconds: RETRY_SOON_SECONDS,
        },
        NoTurn::Waited => overloaded(loaded),
    }
}

fn overloaded(loaded: &Loaded) -> ServeError {
    let ahead = loaded.waiting.ahead();
    let invoke = loaded.stats.latest_invoke_micros();
    ServeError::Overloaded {
        model: loaded.manifest().model.clone(),
        retry_after_seconds: retry_after_seconds(ahead, loaded.interpreters(), invoke),
    }
}

/// What a worker's error means to a caller.
fn explain(loaded: &Loaded, error: WorkerError) -> ServeError {
    let model = loaded.manifest().model.clone();
    match error {
        WorkerError::TooLarge { needed, limit } => too_large(loaded, needed, limit),
        WorkerError::Busy(_) => overloaded(loaded),
        WorkerError::Invoke(reason) => ServeError::Failed { model, reason },
        WorkerError::Died(reason) => ServeError::Crashed { model, reason },
        other => loaded.worker_gone(other.to_string()),
    }
}
