//! One delegate of a version, with what its driver kept from the last time.
//!
//! `proof` calls this for each delegate in turn. A driver that starts with nothing compiles, and has the time for
//! that. One that fails with what it kept is tried once more without, so that damage there costs time and not the
//! delegate.

use std::time::Duration;

use edgeward_models::manifest::DelegateChoice;
use tracing::warn;

use super::driver_caches;
use super::evidence::Subject;
use super::proof::{Prover, Refusal};
use crate::worker::{DriverCache, Worker};

impl Prover<'_> {
    /// A worker on this delegate that passed everything.
    pub(super) async fn attempt(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
    ) -> Result<Worker, Refusal> {
        let manifest = subject.manifest();
        let opened = driver_caches::open(self.config, choice, manifest).await;
        let Some(cache) = opened.map_err(Refusal::new)? else {
            return self.prove_in_worker(subject, choice, None).await;
        };
        let kept = !cache.is_empty();
        let refusal = match self.with_cache(subject, choice, &cache).await {
            Err(refusal) if !refusal.device_fault => refusal,
            proven => return proven,
        };
        // Whatever went wrong: the next start must not meet what this one left or found there.
        driver_caches::clear(&cache).await.map_err(Refusal::new)?;
        if !kept {
            return Err(refusal);
        }
        warn!(
            model = %manifest.model, version = %manifest.version, delegate = %choice.delegate,
            reason = refusal.reason, "delegate failed with what it had kept and is tried without"
        );
        let again = self.with_cache(subject, choice, &cache).await;
        let Err(again) = again else {
            return again;
        };
        driver_caches::clear(&cache).await.map_err(Refusal::new)?;
        Err(Refusal {
            reason: format!(
                "{}; before that, with what it had kept: {}",
                again.reason, refusal.reason
            ),
            ..again
        })
    }

    async fn with_cache(
        &self,
        subject: &Subject,
        choice: &DelegateChoice,
        cache: &DriverCache,
    ) -> Result<Worker, Refusal> {
        let profile = self.config.delegates.get(&choice.delegate);
        let limits = profile.and_then(|profile| profile.cache.as_ref());
        let first = limits.map(|limits| Duration::from_millis(limits.first_load_timeout_ms));
        let patient = Prover {
            first_load: first.filter(|_| cache.is_empty()),
            ..*self
        };
        let kept = Some(cache.clone());
        let worker = patient.prove_in_worker(subject, choice, kept).await?;
        match cache.excess().await {
            Some(reason) => Err(Refusal::new(reason)),
            None => Ok(worker),
        }
    }
}
