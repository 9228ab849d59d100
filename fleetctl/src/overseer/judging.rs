//! What follows from what the devices of a rollout say: a signed change, or a line for the operator.

use std::collections::BTreeMap;

use anyhow::Result;
use edgeward_models::fleet::rollout::Wish;
use edgeward_models::fleet::waves::Decision;
use edgeward_models::name::DeviceId;
use edgeward_models::sign::Repository;
use jiff::Timestamp;

use super::{End, Overseer, ending};
use crate::rollouts::{self, NotUnderWay, Outcome, Rollout};

impl Overseer<'_> {
    /// Does what follows from what the devices of a rollout say. Its end, if this is it.
    pub(super) async fn judge(&mut self, rollout: &Rollout) -> Result<Option<End>> {
        let now = Timestamp::now();
        let outcomes = rollout.outcomes(&self.heard, now);
        self.tell_devices(rollout, &outcomes);
        let tally = rollouts::tally(&outcomes);
        let decision = rollout.waves.decide(&tally, now);
        let (group, model) = (&rollout.group, &rollout.model);
        let advance = format!("`fleetctl rollout advance {model} --group {group}`");
        let counts = format!(
            "{}: {} of {} devices healthy, {} failed",
            rollout.wave(),
            tally.healthy,
            outcomes.len(),
            tally.failed + tally.silent
        );
        match decision {
            Decision::Wait => self.tell(rollout, counts),
            Decision::Paused => self.tell(rollout, format!("{counts}; paused")),
            Decision::AwaitApproval => {
                self.tell(rollout, format!("{counts}; {advance} opens the next one"));
            }
            Decision::Widen => {
                self.tell(rollout, format!("{counts}; the next one opens"));
                self.revise(rollout, "widen", |_, now| Ok(rollouts::widened(now)))
                    .await?;
            }
            Decision::Complete => {
                let done = self
                    .revise(rollout, "complete", |_, now| Ok(rollouts::completed(now)))
                    .await?;
                if done.is_none() {
                    return Ok(None);
                }
                self.tell(
                    rollout,
                    format!("complete: {} devices healthy", tally.healthy),
                );
                return Ok(Some(End::Complete));
            }
            Decision::Halt(reason) => {
                let back = self
                    .revise(rollout, &format!("halt ({reason})"), |repository, now| {
                        rollouts::withdrawn(repository, now, &reason)
                    })
                    .await?;
                let Some(wish) = back else {
                    return Ok(None);
                };
                let back = wish.withdrawn.is_some().then(|| Box::new(wish));
                self.tell(rollout, ending::halted(&reason, back.as_deref()));
                return Ok(Some(End::Halted { reason, back }));
            }
            Decision::Halted => {
                let reason = rollout.waves.halted.clone().unwrap_or_default();
                self.tell(rollout, ending::halted(&reason, None));
                return Ok(Some(End::Halted { reason, back: None }));
            }
        }
        Ok(None)
    }

    /// Signs a change, unless somebody else has changed the rollout meanwhile: then it is looked at anew.
    async fn revise(
        &self,
        rollout: &Rollout,
        what: &str,
        change: impl FnOnce(&Repository, &Rollout) -> Result<Wish>,
    ) -> Result<Option<Wish>> {
        let unchanged = |repository: &Repository, now: &Rollout| {
            if now.wish != rollout.wish {
                return Err(NotUnderWay::of(&rollout.group, &rollout.model).into());
            }
            change(repository, now)
        };
        let (group, model) = (&rollout.group, &rollout.model);
        match rollouts::revise(self.operator, group, model, what, unchanged).await {
            Err(error) if error.is::<NotUnderWay>() => Ok(None),
            revised => revised.map(Some),
        }
    }

    fn tell(&mut self, rollout: &Rollout, said: String) {
        let key = (rollout.wish.rollout.clone(), None);
        if self.told.insert(key, said.clone()).as_ref() != Some(&said) {
            let (group, model, version) = (&rollout.group, &rollout.model, &rollout.wish.version);
            self.operator
                .printer
                .note(&format!("{model} {version} for group {group}: {said}"));
        }
    }

    fn tell_devices(&mut self, rollout: &Rollout, outcomes: &BTreeMap<DeviceId, Outcome>) {
        for (device, outcome) in outcomes {
            let said = ending::words(outcome).join(" ");
            let key = (rollout.wish.rollout.clone(), Some(device.clone()));
            if self.told.insert(key, said.clone()).as_ref() != Some(&said) {
                self.operator.printer.note(&format!("  {device}: {said}"));
            }
        }
    }
}
