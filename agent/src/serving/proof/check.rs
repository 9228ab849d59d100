//! The evidence in a worker, case by case: golden vectors, or generated inputs beside the built-in kernels' answers.
//!
//! A free dimension says nothing of the sizes that a model takes: one published model cannot even be allocated at
//! the size its file gives. So generated inputs are tried from small to large on the built-in kernels, which
//! refuse a wrong size with an error, and only what those took is given to any other delegate.

use std::time::Instant;

use edgeward_models::manifest::DelegateChoice;
use edgeward_models::name::DelegateName;
use tracing::info;

use super::{Prover, Refusal, last_words};
use crate::serving::budget::Grant;
use crate::serving::evidence::{Cases, Evidence, Subject};
use crate::serving::golden::{self, Case, Expected};
use crate::worker::{Answer, Slot, Stream, Worker, WorkerError};

impl Prover<'_> {
    /// Whether a worker reproduces the evidence.
    pub(super) async fn check(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
        worker: &Worker,
    ) -> Result<(), Refusal> {
        let builtin = choice.delegate.as_str() == DelegateName::BUILTIN;
        let (cases, to_compare) = match &*subject.evidence {
            Evidence::Golden(cases) => (cases, true),
            Evidence::Generated(found) => {
                let own = !found.initialized() && builtin;
                let find = || self.find(subject, builtin.then_some(worker));
                match found.get_or_try_init(find).await? {
                    // Just now, in this worker.
                    Some(_) if own => return Ok(()),
                    // The built-in kernels are what others are compared with: here they need only run.
                    Some(cases) => (cases, !builtin),
                    None if builtin => {
                        info!(
                            model = %subject.manifest().model,
                            "no generated input fits the model, golden vectors would"
                        );
                        return Ok(());
                    }
                    None => {
                        return Err(Refusal::new(
                            "it cannot be proven: the version has no golden vectors, and the built-in kernels \
                             answer no generated input",
                        ));
                    }
                }
            }
        };
        for (number, (case, expected)) in cases.iter().enumerate() {
            let stream = stream(worker, number, cases.len());
            let answer = self.answer(worker, case, stream).await?;
            if to_compare {
                compare(case, &answer, expected, choice)?;
            }
        }
        Ok(())
    }

    /// Generated inputs with the built-in kernels' answers: those of `worker`, or of one that lives no longer than
    /// this. `None`: the model has free dimensions and took none of the sizes that were tried.
    async fn find(
        &self,
        subject: &Subject,
        worker: Option<&Worker>,
    ) -> Result<Option<Cases>, Refusal> {
        if let Some(worker) = worker {
            return self.find_in(subject, worker).await;
        }
        let because = |refusal: Refusal| Refusal {
            reason: format!(
                "it cannot be proven: the version has no golden vectors, and the built-in kernels do not answer \
                 generated inputs ({})",
                refusal.reason
            ),
            device_fault: refusal.device_fault,
        };
        let name: DelegateName = DelegateName::BUILTIN
            .parse()
            .map_err(|e| Refusal::new(format!("{e}")))?;
        let grant = Grant {
            instances: 1,
            most: 1,
            threads: 1,
        };
        let builtin = DelegateChoice::new(name);
        let worker = self.start(subject, &builtin, grant, None).await;
        let worker = worker.map_err(because)?;
        self.find_in(subject, &worker).await.map_err(because)
    }

    async fn find_in(&self, subject: &Subject, worker: &Worker) -> Result<Option<Cases>, Refusal> {
        let mut cases = Vec::new();
        for signature in 0..subject.manifest().signatures.len() {
            match self.fitting(subject, signature, worker).await? {
                Some(fitting) => cases.extend(fitting),
                None => return Ok(None),
            }
        }
        let total = cases.len();
        let mut answered = Vec::with_capacity(total);
        for (number, case) in cases.into_iter().enumerate() {
            let stream = stream(worker, number, total);
            let answer = self.answer(worker, &case, stream).await?;
            let signature = &subject.manifest().signatures[case.signature];
            let expected = Expected::of(signature, &answer).map_err(Refusal::new)?;
            answered.push((case, expected));
        }
        Ok(Some(answered))
    }

    /// Cases for one signature, at the smallest shapes that it takes.
    async fn fitting(
        &self,
        subject: &Subject,
        signature: usize,
        worker: &Worker,
    ) -> Result<Option<Vec<Case>>, Refusal> {
        let manifest = subject.manifest();
        let candidates = golden::candidates(manifest, &manifest.signatures[signature]);
        // One shape needs no trying: what it says is said where its answers are asked for.
        let certain = candidates.len() == 1;
        for shapes in &candidates {
            let cases = golden::generated(manifest, signature, shapes).map_err(Refusal::new)?;
            if certain {
                return Ok(Some(cases));
            }
            if self.runs(worker, &cases).await? {
                return Ok(Some(cases));
            }
        }
        Ok(None)
    }

    /// Whether a worker answers all of these cases.
    async fn runs(&self, worker: &Worker, cases: &[Case]) -> Result<bool, Refusal> {
        for case in cases {
            match self.run(worker, case, stream(worker, 0, 1)).await {
                Ok(_) => {}
                Err(WorkerError::Invoke(_)) => return Ok(false),
                Err(error) => return Err(self.gone_wrong(worker, case, error).await),
            }
        }
        Ok(true)
    }

    /// The first invoke of an interpreter is slow. The evidence warmed one; with several, as many requests at
    /// once reach the others. A model that keeps state gets new ones for its requests.
    pub(super) async fn warm_up(&self, subject: &Subject, worker: &Worker) -> Result<(), Refusal> {
        let first = subject.evidence.cases().and_then(|cases| cases.first());
        let several = self.grant.instances > 1 && !worker.facts().keeps_state;
        let Some((case, _)) = first.filter(|_| several) else {
            return Ok(());
        };
        let runs = (0..self.grant.instances).map(|_| self.run(worker, case, Stream::default()));
        for run in futures::future::join_all(runs).await {
            run.map_err(|e| self.refusal(e))?;
        }
        Ok(())
    }

    async fn answer(
        &self,
        worker: &Worker,
        case: &Case,
        stream: Stream,
    ) -> Result<Answer, Refusal> {
        match self.run(worker, case, stream).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.gone_wrong(worker, case, error).await),
        }
    }

    /// Why a case has no answer.
    async fn gone_wrong(&self, worker: &Worker, case: &Case, error: WorkerError) -> Refusal {
        if let WorkerError::Died(_) = error {
            let words = last_words(&worker.died().await.stderr);
            return Refusal::new(format!("{}: {error}{words}", case.name));
        }
        let refusal = self.refusal(error);
        Refusal {
            reason: format!("{}: {}", case.name, refusal.reason),
            ..refusal
        }
    }

    /// One case through the ordinary request path.
    pub(in crate::serving) async fn run(
        &self,
        worker: &Worker,
        case: &Case,
        stream: Stream,
    ) -> Result<Answer, WorkerError> {
        let slot = worker.lease(case.bytes(), self.patience()).await?;
        self.run_in(slot, case, stream).await
    }

    /// The same in a slot that was taken for it.
    pub(super) async fn run_in(
        &self,
        mut slot: Slot,
        case: &Case,
        stream: Stream,
    ) -> Result<Answer, WorkerError> {
        let deadline = Instant::now() + self.patience();
        for input in &case.inputs {
            slot.input(&input.shape, input.bytes.len())?
                .copy_from_slice(&input.bytes);
        }
        slot.in_stream(stream);
        slot.invoke(case.signature, deadline).await
    }
}

/// Where the evidence of a model that keeps state runs: all cases in order as one sequence, on an interpreter
/// that goes with the last of them.
fn stream(worker: &Worker, case: usize, cases: usize) -> Stream {
    let keeps_state = worker.facts().keeps_state;
    Stream {
        number: u32::from(keeps_state),
        begin: keeps_state && case == 0,
        end: keeps_state && case + 1 == cases,
    }
}

fn compare(
    case: &Case,
    answer: &Answer,
    expected: &[Expected],
    choice: &DelegateChoice,
) -> Result<(), Refusal> {
    expected.iter().try_for_each(|e| {
        let (shape, bytes) = (answer.shape(e.output), answer.output(e.output));
        golden::compare(e, shape, bytes, choice.tolerance)
            .map_err(|reason| Refusal::new(format!("{}: {reason}", case.name)))
    })
}
