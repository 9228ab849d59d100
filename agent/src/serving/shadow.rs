//! A shadow: requests that were answered are put to another version as well, and the two answers compared.
//!
//! The caller has its answer first: what is mirrored begins when the caller's side lets go of it, and the slot is held
//! no longer than it takes to copy its tensors. Few are on their way at once; when all places are taken, or other
//! requests wait for the version that answers, a request is not mirrored but counted as dropped. Of a difference
//! numbers are kept here, never values.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgeward_models::fleet::routing::ShadowStatus;
use edgeward_models::manifest::{Manifest, Signature, Tolerance};
use edgeward_models::{ModelName, Version};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use super::golden::{Deviation, Expected, Input, deviation};
use super::loaded::{Hold, Loaded};
use super::served::Served;
use crate::worker::{self, KeptInputs, Slot};

/// Mirrored requests on their way at once: each holds its tensors in memory.
const PLACES: usize = 4;
/// Differences that are kept; the oldest goes.
const KEPT: usize = 8;
/// Nobody waits for the shadow's answer.
const TIME: Duration = Duration::from_secs(10);
/// More bytes than this are copied and compared on a thread of their own.
const LONG: usize = 64 << 10;

/// What came of one version's shadow.
#[derive(Debug)]
pub(super) struct Shadow {
    version: Version,
    places: Arc<Semaphore>,
    compared: AtomicU64,
    different: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    latest: Mutex<VecDeque<Difference>>,
}

/// An answer of the shadow that differed, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub model: ModelName,
    /// The version that answered the caller, and the shadow.
    pub version: Version,
    pub shadow: Version,
    pub output: String,
    /// The largest absolute difference of two elements, and what the tolerance allows; none: the shape, the type or
    /// a string differs.
    #[serde(default)]
    pub largest: Option<f64>,
    #[serde(default)]
    pub allowed: Option<f64>,
    /// Seconds since 1970 by the device's clock.
    pub at: i64,
}

impl Shadow {
    pub(super) fn of(version: Version) -> Self {
        Self {
            version,
            places: Arc::new(Semaphore::new(PLACES)),
            compared: AtomicU64::new(0),
            different: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latest: Mutex::default(),
        }
    }

    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    pub(super) fn status(&self) -> ShadowStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ShadowStatus {
            version: self.version.clone(),
            compared: count(&self.compared),
            different: count(&self.different),
            dropped: count(&self.dropped),
            failed: count(&self.failed),
        }
    }

    pub(super) fn differences(&self) -> Vec<Difference> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().cloned().collect()
    }

    fn differs(&self, difference: Difference) {
        self.different.fetch_add(1, Ordering::Relaxed);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() >= KEPT {
            latest.pop_front();
        }
        latest.push_back(difference);
    }
}

/// Where a request is mirrored to.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) shadow: Arc<Shadow>,
    pub(super) to: Hold,
}

impl Mirror {
    /// Keeps what a request brings, if it can be mirrored now.
    pub(super) fn keep(self, from: &Hold, slot: &Slot, signature: usize) -> Option<Mirrored> {
        let place = self.shadow.places.clone().try_acquire_owned();
        let (Ok(place), true) = (place, from.waiting.is_empty()) else {
            self.shadow.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        Some(Mirrored {
            mirror: self,
            from: from.manifest().clone(),
            signature,
            inputs: slot.keep(),
            place,
        })
    }
}

/// A request whose tensors are kept until its answer is there.
pub(super) struct Mirrored {
    mirror: Mirror,
    from: Arc<Manifest>,
    signature: usize,
    inputs: KeptInputs,
    place: OwnedSemaphorePermit,
}

impl Mirrored {
    fn signature(&self) -> &Signature {
        &self.from.signatures[self.signature]
    }

    /// The caller has its answer: the shadow's turn.
    fn begin(self, answer: worker::Answer) {
        // Where there is no runtime any more nobody asks what came of it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.compare(answer));
        }
    }

    async fn compare(self, answer: worker::Answer) {
        let outputs = 0..self.signature().outputs.len();
        let bytes: usize = outputs.map(|index| answer.output(index).len()).sum();
        let long = bytes + self.inputs.bytes() > LONG;
        let copied = aside(long, move || self.copied(&answer)).await;
        let Some((mirror, question, place)) = copied else {
            return;
        };
        let shadow = mirror.shadow.clone();
        match question {
            Ok(question) => match question.ask(mirror.to, long).await {
                Ok(None) => {
                    shadow.compared.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(difference)) => {
                    shadow.compared.fetch_add(1, Ordering::Relaxed);
                    shadow.differs(difference);
                }
                Err(problem) => shadow.fails(&problem),
            },
            Err(problem) => shadow.fails(&problem),
        }
        drop(place);
    }

    /// Copies all tensors; with the answer and the inputs the slot is given back.
    fn copied(
        self,
        answer: &worker::Answer,
    ) -> (Mirror, Result<Question, String>, OwnedSemaphorePermit) {
        let signature = self.signature();
        let inputs = (0..signature.inputs.len()).map(|index| Input {
            shape: self.inputs.shape(index),
            bytes: self.inputs.filled(index).to_vec(),
        });
        let inputs = inputs.collect();
        let question = Expected::of(signature, answer).map(|expected| Question {
            model: self.from.model.clone(),
            version: self.from.version.clone(),
            signature: signature.name.clone(),
            inputs,
            expected,
        });
        (self.mirror, question, self.place)
    }
}

impl Shadow {
    fn fails(&self, problem: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        debug!(shadow = %self.version, problem, "a mirrored request was not answered");
    }
}

/// A request with the answer that its caller got.
struct Question {
    model: ModelName,
    version: Version,
    signature: String,
    inputs: Vec<Input>,
    expected: Vec<Expected>,
}

impl Question {
    /// Puts it to the shadow. `None`: the answers are the same, within the tolerance of the shadow's delegate.
    async fn ask(self, to: Hold, long: bool) -> Result<Option<Difference>, String> {
        let manifest = to.manifest().clone();
        let signature = manifest
            .signatures
            .iter()
            .position(|s| s.name == self.signature);
        let signature =
            signature.ok_or_else(|| format!("it has no signature {:?}", self.signature))?;
        let tolerance = tolerance(&to);
        let bytes = self.inputs.iter().map(|input| input.bytes.len()).sum();
        let deadline = Instant::now() + TIME;
        let problem = |e: super::ServeError| e.to_string();
        let begun = Served::new(to).begin(signature, bytes, deadline).await;
        let mut request = begun.map_err(problem)?;
        for input in &self.inputs {
            let memory = request.input(&input.shape, input.bytes.len());
            memory.map_err(problem)?.copy_from_slice(&input.bytes);
        }
        let answer = request.infer().await.map_err(problem)?;
        let compared = aside(long, move || {
            let outputs = &manifest.signatures[signature].outputs;
            self.first_difference(outputs, &answer, &manifest.version, tolerance)
        });
        compared.await.ok_or("it could not be compared")?
    }

    fn first_difference(
        &self,
        outputs: &[edgeward_models::manifest::TensorSpec],
        answer: &worker::Answer,
        shadow: &Version,
        tolerance: Tolerance,
    ) -> Result<Option<Difference>, String> {
        for expected in &self.expected {
            let same = |spec: &edgeward_models::manifest::TensorSpec| {
                spec.name == expected.name && spec.datatype == expected.datatype
            };
            let found = match outputs.iter().position(same) {
                None => Some(Deviation::Shape),
                Some(output) => {
                    let (shape, bytes) = (answer.shape(output), answer.output(output));
                    deviation(expected, shape, bytes, tolerance)?
                }
            };
            let Some(found) = found else {
                continue;
            };
            let (largest, allowed) = found.distance().unzip();
            return Ok(Some(Difference {
                model: self.model.clone(),
                version: self.version.clone(),
                shadow: shadow.clone(),
                output: expected.name.clone(),
                largest,
                allowed,
                at: jiff::Timestamp::now().as_second(),
            }));
        }
        Ok(None)
    }
}

/// What the manifest allows on the delegate that it runs on.
fn tolerance(loaded: &Loaded) -> Tolerance {
    let delegate = loaded.active().delegate;
    let choices = &loaded.manifest().delegates;
    let choice = choices.iter().find(|choice| choice.delegate == delegate);
    choice.map_or_else(Tolerance::default, |choice| choice.tolerance)
}

/// Runs short work here and long work on a thread of its own.
async fn aside<T: Send + 'static>(
    long: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if long {
        tokio::task::spawn_blocking(work).await.ok()
    } else {
        Some(work())
    }
}

/// An answer, and what begins when its caller has it.
pub struct Answer {
    answer: worker::Answer,
    mirrored: Option<Mirrored>,
}

impl Answer {
    pub(super) fn new(answer: worker::Answer, mirrored: Option<Mirrored>) -> Self {
        Self { answer, mirrored }
    }
}

impl std::ops::Deref for Answer {
    type Target = worker::Answer;

    fn deref(&self) -> &worker::Answer {
        &self.answer
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(mirrored) = self.mirrored.take() {
            mirrored.begin(self.answer.take());
        }
    }
}
