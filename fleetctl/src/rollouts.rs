//! Rollouts in waves: how they stand in the repository, what their devices make of them, and how they are changed.
//!
//! The repository and the statuses hold everything there is to know, so whoever widens rollouts (`overseer`) may
//! end at any moment and begin anew. Every change is a new signed desired state, like a push.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use edgeward_models::fleet::health::Soak;
use edgeward_models::fleet::rollout::{Wish, Withdrawn};
use edgeward_models::fleet::status::{Phase, Status};
use edgeward_models::fleet::waves::{Tally, Waves};
use edgeward_models::name::{DeviceId, GroupName, ModelName, RolloutId};
use edgeward_models::sign::Repository;
use jiff::Timestamp;
use rand::Rng;
use serde::Serialize;

use crate::history;
use crate::operator::Operator;
use crate::printer::plain;

/// A rollout that is under way.
#[derive(Debug, Clone)]
pub struct Rollout {
    pub group: GroupName,
    pub model: ModelName,
    pub wish: Wish,
    pub waves: Waves,
    pub members: BTreeSet<DeviceId>,
}

/// There is no such rollout, or it is another one by now.
#[derive(Debug, thiserror::Error)]
#[error(
    "no rollout of {model} in waves is under way in group {group}; `fleetctl rollout list` shows those that are"
)]
pub struct NotUnderWay {
    group: GroupName,
    model: ModelName,
}

impl NotUnderWay {
    pub fn of(group: &GroupName, model: &ModelName) -> Self {
        Self {
            group: group.clone(),
            model: model.clone(),
        }
    }
}

/// What a device has made of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "kebab-case")]
pub enum Outcome {
    /// It serves the version and has watched it for as long as it should.
    Healthy,
    Failed(String),
    /// It had no outcome when its time was up; what it said last.
    Silent(String),
    Pending(String),
}

/// The devices of a group.
pub fn members(repository: &Repository, group: &GroupName) -> Result<BTreeSet<DeviceId>> {
    let all = repository.membership()?.into_iter();
    let members = all.filter_map(|(device, groups)| groups.contains(group).then_some(device));
    Ok(members.collect())
}

pub fn new_rollout(sequence: u64) -> Result<RolloutId> {
    let random: u32 = rand::rng().random();
    format!("r{sequence}-{random:08x}")
        .parse()
        .context("cannot name the rollout")
}

/// All rollouts in waves that are under way.
pub fn under_way(repository: &Repository) -> Result<Vec<Rollout>> {
    let mut rollouts = Vec::new();
    let membership = repository.membership()?;
    for group in repository.groups()? {
        let desired = repository.desired(&group)?;
        for (model, wish) in desired.into_iter().flat_map(|d| d.models) {
            let Some(waves) = wish.waves.clone() else {
                continue;
            };
            let members = membership.iter().filter(|(_, g)| g.contains(&group));
            rollouts.push(Rollout {
                members: members.map(|(device, _)| device.clone()).collect(),
                group: group.clone(),
                model,
                waves,
                wish,
            });
        }
    }
    Ok(rollouts)
}

impl Rollout {
    /// Whether both are the same one, at whatever wave.
    pub fn is(&self, other: &Self) -> bool {
        (&self.group, &self.model, &self.wish.rollout)
            == (&other.group, &other.model, &other.wish.rollout)
    }

    /// The devices that may move now.
    pub fn moving(&self) -> impl Iterator<Item = &DeviceId> {
        self.members.iter().filter(|d| self.wish.includes(d))
    }

    /// The outcome of each device that may move now, by what was heard of them.
    pub fn outcomes(
        &self,
        heard: &BTreeMap<DeviceId, Status>,
        now: Timestamp,
    ) -> BTreeMap<DeviceId, Outcome> {
        let late = now > self.waves.silent_from();
        let outcome = |device: &DeviceId| match heard.get(device) {
            Some(status) => self.outcome(status),
            None => Outcome::Pending("has not spoken yet".to_owned()),
        };
        let outcomes = self.moving().map(|device| {
            let outcome = match outcome(device) {
                Outcome::Pending(said) if late => Outcome::Silent(said),
                outcome => outcome,
            };
            (device.clone(), outcome)
        });
        outcomes.collect()
    }

    fn outcome(&self, status: &Status) -> Outcome {
        let about = status.models.iter().find(|m| {
            // What a device says of an earlier rollout means nothing for this one.
            m.model == self.model && m.rollout.as_ref() == Some(&self.wish.rollout)
        });
        let Some(model) = about else {
            return Outcome::Pending("has not begun".to_owned());
        };
        let reason = || {
            let reason = model.reason.as_deref().or(status.last_error.as_deref());
            plain(reason.unwrap_or("it gave no reason"))
        };
        let active = model.active.as_ref();
        let serves = active.is_some_and(|active| active.version == self.wish.version);
        match (model.phase, model.soak) {
            (Phase::Refused, _) | (_, Some(Soak::Failed)) => Outcome::Failed(reason()),
            (Phase::Active, Some(Soak::Passed)) if serves => Outcome::Healthy,
            (Phase::Active, _) if serves => Outcome::Pending("active, being watched".to_owned()),
            (phase, _) => Outcome::Pending(match &model.reason {
                Some(reason) => format!("{}: {}", phase.word(), plain(reason)),
                None => phase.word().to_owned(),
            }),
        }
    }

    /// Which wave it is in, in words.
    pub fn wave(&self) -> String {
        format!("wave {} of {}", self.waves.open, self.waves.count())
    }
}

/// For whom a version is by now, if not for everybody.
pub fn share(wish: &Wish) -> String {
    match (&wish.waves, wish.percent) {
        (Some(waves), _) => format!(" (wave {} of {})", waves.open, waves.count()),
        (None, 100..) => String::new(),
        (None, percent) => format!(" ({percent} %)"),
    }
}

pub fn tally(outcomes: &BTreeMap<DeviceId, Outcome>) -> Tally {
    let mut tally = Tally::default();
    for outcome in outcomes.values() {
        match outcome {
            Outcome::Healthy => tally.healthy += 1,
            Outcome::Failed(_) => tally.failed += 1,
            Outcome::Silent(_) => tally.silent += 1,
            Outcome::Pending(_) => tally.pending += 1,
        }
    }
    tally
}

/// Signs and publishes a change to a rollout in waves; `what` names it.
pub async fn revise(
    operator: &Operator,
    group: &GroupName,
    model: &ModelName,
    what: &str,
    change: impl FnOnce(&Repository, &Rollout) -> Result<Wish>,
) -> Result<Wish> {
    let mut repository = operator.repository()?;
    let standing = operator.standing(&repository).await?;
    let rollout = find(&repository, group, model)?;
    let mut desired = repository
        .desired(group)?
        .with_context(|| format!("nothing was ever pushed to group {group}"))?;
    let wish = change(&repository, &rollout)?;
    desired.sequence += 1;
    desired.models.insert(model.clone(), wish.clone());
    let (version, share) = (&rollout.wish.version, share(&wish));
    history::remember(&mut desired, format!("{what} {model} {version}{share}"));
    repository.set_desired(&desired)?;
    let publication = repository.commit(&operator.keys(&repository)?, Timestamp::now())?;
    operator
        .publish(&repository, &publication, standing)
        .await?;
    Ok(wish)
}

/// The rollout in waves of a model in a group.
pub fn find(repository: &Repository, group: &GroupName, model: &ModelName) -> Result<Rollout> {
    let mut rollouts = under_way(repository)?;
    rollouts.retain(|rollout| rollout.group == *group && rollout.model == *model);
    Ok(rollouts
        .pop()
        .ok_or_else(|| NotUnderWay::of(group, model))?)
}

/// The wish that takes a rollout back: the whole group runs what it ran before. Where it ran nothing, the rollout
/// stays as it is and goes no further.
pub fn withdrawn(repository: &Repository, rollout: &Rollout, reason: &str) -> Result<Wish> {
    let wish = &rollout.wish;
    let Some(former) = &wish.previous else {
        let mut waves = rollout.waves.clone();
        waves.halted = Some(reason.to_owned());
        return Ok(Wish {
            waves: Some(waves),
            ..wish.clone()
        });
    };
    let versions = repository.versions(&rollout.model)?;
    let release = versions.iter().find(|(version, _)| version == former);
    let (_, release) = release.with_context(|| {
        format!(
            "{} {former} is not in the repository any more",
            rollout.model
        )
    })?;
    let sequence = repository
        .desired(&rollout.group)?
        .map_or(0, |d| d.sequence);
    Ok(Wish {
        jitter_seconds: wish.jitter_seconds,
        // What it goes back to needs no watching, least of all against what it leaves.
        soak_seconds: 0,
        withdrawn: Some(Withdrawn {
            version: wish.version.clone(),
            rollout: wish.rollout.clone(),
            reason: reason.to_owned(),
            at: Timestamp::now(),
        }),
        ..Wish::new(former.clone(), *release, new_rollout(sequence + 1)?)
    })
}

/// The wish of a rollout that has reached everybody.
pub fn completed(rollout: &Rollout) -> Wish {
    Wish {
        waves: None,
        percent: 100,
        ..rollout.wish.clone()
    }
}

/// The wish with the next wave open.
pub fn widened(rollout: &Rollout) -> Wish {
    let wish = &rollout.wish;
    let now = Timestamp::now();
    let waves = rollout.waves.widened(&rollout.members, &wish.rollout, now);
    Wish {
        waves: Some(waves),
        ..wish.clone()
    }
}
