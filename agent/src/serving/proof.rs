//! Delegates are proven, not assumed.
//!
//! Each delegate of the manifest, in order, gets a fresh worker (a failed one may have damaged its heap). It is
//! accepted only if it loads, takes its share of the graph's nodes and reproduces the version's golden
//! vectors; a version without any is measured against the built-in kernels' answers. Then the worker is
//! warmed up and sealed. Each refusal is kept with its reason. `engine` calls this for a new version,
//! `supervise` for every restart.

use std::time::Duration;

use edgeward_models::fleet::status::{ActiveVersion, RefusedDelegate};
use edgeward_models::manifest::{DelegateChoice, Manifest};
use edgeward_models::name::DelegateName;
use tracing::{info, warn};

use super::budget::Grant;
use super::error::LoadFailure;
use super::evidence::Subject;
use super::loaded::slots;
use crate::config::Config;
use crate::worker::{DriverCache, Spawner, Worker, WorkerError, WorkerSpec};

mod batching;
mod check;

/// The end of a dead worker's stderr that is kept in a reason.
const LAST_WORDS_BYTES: usize = 300;

/// A worker that passed everything.
pub(super) struct Proven {
    pub(super) worker: Worker,
    pub(super) active: ActiveVersion,
    /// Which of the manifest's delegates it runs on.
    pub(super) choice: usize,
    /// The delegates before it that were tried or passed over, by index.
    pub(super) refused: Vec<(usize, RefusedDelegate)>,
}

/// Why one delegate was refused.
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) device_fault: bool,
}

impl Refusal {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            device_fault: false,
        }
    }
}

/// What proving needs of the device.
pub(super) struct Prover<'a> {
    pub(super) config: &'a Config,
    pub(super) spawner: &'a Spawner,
    pub(super) grant: Grant,
    /// While a driver compiles: how long it may take. `None`: as always.
    pub(super) first_load: Option<Duration>,
}

impl<'a> Prover<'a> {
    pub(super) fn new(config: &'a Config, spawner: &'a Spawner, grant: Grant) -> Self {
        Self {
            config,
            spawner,
            grant,
            first_load: None,
        }
    }

    /// Tries the delegates in order, passing over those in `skip`.
    pub(super) async fn prove(
        &self,
        subject: &Subject,
        skip: &[(usize, RefusedDelegate)],
    ) -> Result<Proven, LoadFailure> {
        let manifest = subject.manifest();
        let mut refused: Vec<(usize, RefusedDelegate)> = Vec::new();
        let mut device_fault = false;
        for (choice, delegate) in manifest.delegates.iter().enumerate() {
            if let Some(known) = skip.iter().find(|(index, _)| *index == choice) {
                refused.push(known.clone());
                continue;
            }
            match self.attempt(subject, delegate).await {
                Ok(worker) => {
                    let active = active_version(manifest, delegate, &worker, &refused);
                    return Ok(Proven {
                        worker,
                        active,
                        choice,
                        refused,
                    });
                }
                Err(refusal) => {
                    warn!(
                        model = %manifest.model, version = %manifest.version,
                        delegate = %delegate.delegate, reason = refusal.reason, "delegate refused"
                    );
                    device_fault |= refusal.device_fault;
                    let delegate = delegate.delegate.clone();
                    let reason = refusal.reason;
                    refused.push((choice, RefusedDelegate { delegate, reason }));
                }
            }
        }
        let refused: Vec<_> = refused.into_iter().map(|(_, r)| r).collect();
        let reasons: Vec<_> = refused
            .iter()
            .map(|r| format!("{}: {}", r.delegate, r.reason))
            .collect();
        Err(LoadFailure {
            model: manifest.model.clone(),
            version: manifest.version.clone(),
            reason: reasons.join("; "),
            refused,
            device_fault,
        })
    }

    /// One delegate in one fresh worker.
    pub(super) async fn prove_in_worker(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
        cache: Option<DriverCache>,
    ) -> Result<Worker, Refusal> {
        let worker = self.start(subject, choice, self.grant, cache).await?;
        let facts = worker.facts();
        let builtin = choice.delegate.as_str() == DelegateName::BUILTIN;
        let total = facts.total_nodes.max(1);
        let share = facts.delegated_nodes as f32 / total as f32;
        // The built-in kernels take whatever is left: a share means nothing for them.
        if !builtin && share < choice.least_share {
            return Err(Refusal::new(format!(
                "it took {} of {} nodes ({:.0} %) where at least {:.0} % are asked for",
                facts.delegated_nodes,
                facts.total_nodes,
                share * 100.0,
                choice.least_share * 100.0
            )));
        }
        if facts.keeps_state && self.opens_no_files_late(choice) {
            return Err(Refusal::new(
                "the model keeps state, so each sequence needs a new interpreter and the delegate is started \
                 again, which a sealed worker does not allow; set opens_files_late in the delegate's profile"
                    .to_owned(),
            ));
        }
        self.check(subject, choice, &worker).await?;
        self.warm_up(subject, &worker).await?;
        self.try_batching(subject, choice, &worker).await?;
        worker.seal().await.map_err(|e| self.refusal(e))?;
        let facts = worker.facts();
        info!(
            model = %subject.manifest().model, version = %subject.manifest().version,
            delegate = %choice.delegate, pid = facts.pid, delegated_nodes = facts.delegated_nodes,
            total_nodes = facts.total_nodes, load_ms = facts.load_time.as_millis() as u64,
            "delegate proven"
        );
        Ok(worker)
    }

    /// Whether a plugin may open nothing any more once its worker serves.
    fn opens_no_files_late(&self, choice: &DelegateChoice) -> bool {
        let profile = self.config.delegates.get(&choice.delegate);
        profile.is_some_and(|profile| !profile.opens_files_late)
    }

    async fn start(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
        grant: Grant,
        cache: Option<DriverCache>,
    ) -> Result<Worker, Refusal> {
        let profile = match choice.delegate.as_str() {
            DelegateName::BUILTIN | DelegateName::XNNPACK => None,
            name => match self.config.delegates.get(&choice.delegate) {
                Some(profile) => Some(profile.clone()),
                None => {
                    return Err(Refusal::new(format!(
                        "this device has no delegate profile {name}"
                    )));
                }
            },
        };
        let manifest = subject.manifest();
        let request_bytes = usize::try_from(manifest.request_bytes())
            .map_err(|_| Refusal::new("its requests are larger than this machine can address"))?;
        let spec = WorkerSpec {
            manifest: manifest.clone(),
            model_path: subject.installed.model_path(),
            delegate: choice.clone(),
            profile,
            cache,
            library: self.config.tflite.library.clone(),
            instances: grant.instances,
            threads: grant.threads,
            batching: self.batching(manifest),
            slots: slots(grant, &self.config.limits),
            request_bytes,
            memory_limit_bytes: self.config.tflite.worker_memory_bytes,
            load_timeout: self.patience(),
            proving_invoke_limit: self.first_load,
            sandbox: self.config.sandbox,
        };
        let started = Worker::start(self.spawner, spec).await;
        started.map_err(|e| self.refusal(e))
    }

    /// A first invoke may compile a graph for an accelerator, so proving has the time of loading.
    fn patience(&self) -> Duration {
        self.first_load
            .unwrap_or(Duration::from_millis(self.config.tflite.load_timeout_ms))
    }

    fn refusal(&self, error: WorkerError) -> Refusal {
        Refusal {
            device_fault: matches!(error, WorkerError::Start(_)),
            reason: match error {
                WorkerError::Deadline => {
                    let setting = match self.first_load {
                        Some(_) => "first_load_timeout_ms of the delegate's cache",
                        None => "[tflite] load_timeout_ms",
                    };
                    let time = self.patience();
                    format!("no answer within {time:?}; raise {setting} if the device needs it")
                }
                other => other.to_string(),
            },
        }
    }
}

fn active_version(
    manifest: &Manifest,
    delegate: &DelegateChoice,
    worker: &Worker,
    refused: &[(usize, RefusedDelegate)],
) -> ActiveVersion {
    ActiveVersion {
        version: manifest.version.clone(),
        release: manifest.release,
        delegate: delegate.delegate.clone(),
        delegated_nodes: worker.facts().delegated_nodes,
        total_nodes: worker.facts().total_nodes,
        refused_delegates: refused.iter().map(|(_, r)| r.clone()).collect(),
    }
}

/// The end of what a dead worker wrote, in one line.
pub(super) fn last_words(stderr: &str) -> String {
    let text = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return String::new();
    }
    let mut start = text.len().saturating_sub(LAST_WORDS_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("; its last words: {}", &text[start..])
}

#[cfg(test)]
mod tests {
    #[test]
    fn last_words_are_one_short_line_and_never_cut_a_character() {
        assert_eq!(super::last_words(" \n"), "");
        assert_eq!(super::last_words("a\nb\n"), "; its last words: a b");
        let long = "ä".repeat(1000);
        assert!(super::last_words(&long).len() < 400);
        assert!(super::last_words(&long[..1999 - 1]).ends_with('ä'));
    }
}
