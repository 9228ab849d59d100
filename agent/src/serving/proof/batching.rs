//! Whether requests may run together: seen, not assumed.
//!
//! A first dimension that is free need not be one of independent rows: a model may as well read it as time. So the
//! evidence is asked once more in one invoke, and each part of the answer must be what it is by itself. If it is not,
//! every request is run by itself; nothing else changes.

use edgeward_models::Manifest;
use edgeward_models::manifest::DelegateChoice;
use tracing::{info, warn};

use super::{Prover, Refusal};
use crate::config::Batching;
use crate::serving::evidence::{Cases, Subject};
use crate::serving::golden::{self, Case, Expected};
use crate::worker::{Answer, Stream, Worker, WorkerError};

impl Prover<'_> {
    /// How requests of this model are to be joined on this device.
    pub(super) fn batching(&self, manifest: &Manifest) -> Option<Batching> {
        self.config.models.get(&manifest.model)?.batching.clone()
    }

    /// Lets a worker join requests, if the device wants it and the model was seen to allow it. Refused is only a
    /// worker that does not survive the question.
    pub(super) async fn try_batching(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
        worker: &Worker,
    ) -> Result<(), Refusal> {
        let manifest = subject.manifest();
        let Some(batching) = self.batching(manifest) else {
            return Ok(());
        };
        let most = batching.max_batch_size as usize;
        let reason = match self.joins(subject, choice, worker, most).await {
            Ok(()) => {
                worker.allow_batching();
                info!(model = %manifest.model, version = %manifest.version, "requests are joined");
                return Ok(());
            }
            Err(Unfit::Said(reason)) => reason,
            Err(Unfit::Worker(error @ WorkerError::Invoke(_))) => error.to_string(),
            Err(Unfit::Worker(error)) => return Err(self.refusal(error)),
        };
        warn!(
            model = %manifest.model, version = %manifest.version, reason,
            "batching is configured, and requests are run one by one all the same"
        );
        Ok(())
    }

    async fn joins(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
        worker: &Worker,
        most: usize,
    ) -> Result<(), Unfit> {
        if worker.facts().keeps_state {
            return Err(Unfit::Said(
                "the model keeps state between requests".to_owned(),
            ));
        }
        let cases = subject.evidence.cases();
        for (number, signature) in subject.manifest().signatures.iter().enumerate() {
            if !signature.has_free_batch() {
                return Err(Unfit::Said(format!(
                    "the first dimension of an input or output of signature {:?} is not free, or one holds strings",
                    signature.name
                )));
            }
            let joined = cases.and_then(|cases| Joined::of(cases, number, most));
            let joined = joined.ok_or_else(|| {
                Unfit::Said(format!(
                    "no two different inputs are known for signature {:?} that fit into one batch: golden vectors would be",
                    signature.name
                ))
            })?;
            let slot = worker.lease_any(joined.case.bytes(), self.patience());
            let slot = slot.await.map_err(Unfit::Worker)?;
            let answer = self.run_in(slot, &joined.case, Stream::default()).await;
            joined
                .compare(&answer.map_err(Unfit::Worker)?, choice)
                .map_err(Unfit::Said)?;
        }
        Ok(())
    }
}

/// Why requests cannot be joined.
enum Unfit {
    Said(String),
    Worker(WorkerError),
}

/// Several cases in one.
struct Joined<'a> {
    case: Case,
    size: usize,
    /// How many rows each has, and what it answers by itself.
    parts: Vec<(usize, &'a [Expected])>,
}

impl<'a> Joined<'a> {
    /// The cases of one signature whose inputs differ in the first dimension alone, up to a size of `most`.
    fn of(cases: &'a Cases, signature: usize, most: usize) -> Option<Self> {
        let mut cases = cases.iter().filter(|(case, _)| case.signature == signature);
        let (first, expected) = cases.next()?;
        let mut joined = Self {
            size: rows(first)?,
            parts: vec![(rows(first)?, expected)],
            case: first.clone(),
        };
        // Beside its like, a row cannot show that it minds its neighbours.
        for (case, expected) in cases.filter(|(case, _)| case.inputs != first.inputs) {
            let fits = |(a, b): (&golden::Input, &golden::Input)| a.shape[1..] == b.shape[1..];
            let Some(count) = rows(case).filter(|count| joined.size + count <= most) else {
                continue;
            };
            if !joined.case.inputs.iter().zip(&case.inputs).all(fits) {
                continue;
            }
            for (all, input) in joined.case.inputs.iter_mut().zip(&case.inputs) {
                all.bytes.extend_from_slice(&input.bytes);
                all.shape[0] += count as i64;
            }
            joined.size += count;
            joined.parts.push((count, expected));
        }
        (joined.parts.len() > 1).then_some(joined)
    }

    fn compare(&self, answer: &Answer, choice: &DelegateChoice) -> Result<(), String> {
        let mut begin = 0;
        for (count, expected) in &self.parts {
            for expected in *expected {
                let bytes = answer.output(expected.output);
                let mut shape = answer.shape(expected.output).to_vec();
                if shape.first() != Some(&(self.size as i64)) {
                    return Err(format!(
                        "output {:?} has the shape {shape:?} for {} rows",
                        expected.name, self.size
                    ));
                }
                shape[0] = *count as i64;
                let row = bytes.len() / self.size;
                let bytes = &bytes[begin * row..(begin + count) * row];
                golden::compare(expected, &shape, bytes, choice.tolerance).map_err(|reason| {
                    format!("what it answers depends on its neighbours: {reason}")
                })?;
            }
            begin += count;
        }
        Ok(())
    }
}

/// The first dimension of all inputs.
fn rows(case: &Case) -> Option<usize> {
    let first = *case.inputs.first()?.shape.first()?;
    let same = case
        .inputs
        .iter()
        .all(|input| input.shape.first() == Some(&first));
    same.then(|| usize::try_from(first).ok())?
        .filter(|&count| count > 0)
}
