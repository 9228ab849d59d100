//! What this device should run, as the newest verified repository says.
//!
//! One look at a source yields a [`Goal`] or says why not. Looking changes nothing but trust itself, which
//! `models::verify` commits only when everything verified.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use edgeward_models::chunk::Source;
use edgeward_models::fleet::rollout::Wish;
use edgeward_models::fleet::routing::Routing;
use edgeward_models::fleet::status::AppliedGroup;
use edgeward_models::verify::{Policy, TrustStore, Update, VerifiedRepository, VerifyError};
use edgeward_models::{DeviceId, Digest, ModelName, Version};
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::board::chain;
use super::deadline::Deadline;
use super::state::Applied;

/// The wishes of all groups of this device, merged.
#[derive(Debug)]
pub struct Goal {
    pub repository: VerifiedRepository,
    /// Where the files come from.
    pub source: Arc<dyn Source>,
    pub groups: Vec<AppliedGroup>,
    pub wishes: BTreeMap<ModelName, Wish>,
    /// What is wanted beside the wished versions, from the groups whose wishes were taken.
    pub routing: BTreeMap<ModelName, Routing>,
    /// Every group was read, so a model that nobody wishes for may be let go.
    pub complete: bool,
    /// Why nothing new may be installed.
    pub bar: Option<String>,
    /// From a directory that somebody holds out: no waiting for a moment in the rollout.
    pub local: bool,
    /// This device's renewed certificate (PEM), if the fleet holds one out.
    pub certificate: Option<String>,
    /// The key (SHA-256 of its public half) with which this device was taken out of the fleet, if it was.
    pub removed: Option<Digest>,
    /// What an operator should hear.
    pub notes: Vec<String>,
}

pub enum Looked {
    Goal(Goal),
    /// Verified, and older than what this device knows.
    Older {
        offered: u64,
        known: u64,
    },
}

/// A look at a repository may take this long: large metadata over a slow line does. Chunks of models, which come
/// later, have no such limit.
const LOOK_TIME: Duration = Duration::from_secs(600);

/// Updates trust from `source` and reads what it wishes of `device`.
pub async fn look(
    trust: &Mutex<TrustStore>,
    source: Arc<dyn Source>,
    device: &DeviceId,
    policy: Policy,
    applied: &Applied,
    local: bool,
) -> Result<Looked, VerifyError> {
    let limited: Arc<dyn Source> = Arc::new(Deadline::new(source.clone(), LOOK_TIME));
    let updated = {
        let mut trust = trust.lock().await;
        trust
            .update(limited.clone(), Timestamp::now(), policy)
            .await?
    };
    let repository = match updated {
        Update::Current(repository) => repository,
        Update::Older { offered, known } => return Ok(Looked::Older { offered, known }),
    };
    let mut goal = Goal {
        bar: repository.install_bar().map(str::to_owned),
        groups: Vec::new(),
        wishes: BTreeMap::new(),
        routing: BTreeMap::new(),
        complete: true,
        local,
        certificate: None,
        removed: None,
        notes: Vec::new(),
        source,
        repository,
    };
    for group in goal.repository.groups(&*limited, device).await? {
        let desired = goal.repository.desired(&*limited, &group).await?;
        let before = applied.groups.get(&group).copied().unwrap_or(0);
        let sequence = desired.as_ref().map_or(0, |d| d.sequence);
        if sequence < before {
            // Metadata cannot go back, so the operator's own repository did: a restored backup.
            goal.notes.push(format!(
                "the desired state of group {group} went back from {before} to {sequence} and is ignored; \
                 publish a newer one"
            ));
            goal.complete = false;
        } else {
            let (wishes, mut routing) = desired.map(|d| (d.models, d.routing)).unwrap_or_default();
            for (model, wish) in wishes {
                let routing = routing.remove(&model).unwrap_or_default();
                merge(&mut goal, model, wish, routing);
            }
        }
        goal.groups.push(AppliedGroup {
            group,
            sequence: sequence.max(before),
        });
    }
    match goal.repository.certificate(&*limited, device).await {
        Ok(certificate) => goal.certificate = certificate,
        // Versions do not wait for it.
        Err(problem) => goal.notes.push(format!(
            "a renewed certificate cannot be read: {}",
            chain(&problem)
        )),
    }
    match goal.repository.removed(&*limited, device).await {
        Ok(removed) => goal.removed = removed,
        Err(problem) => goal.notes.push(format!(
            "whether this device was taken out of the fleet cannot be read: {}",
            chain(&problem)
        )),
    }
    // A device that is in no group is told nothing: it keeps what it has.
    goal.complete &= !goal.groups.is_empty();
    Ok(Looked::Goal(goal))
}

/// Where two groups want different versions of one model the newer release wins, with its group's routing.
fn merge(goal: &mut Goal, model: ModelName, wish: Wish, mut routing: Routing) {
    if let Err(problem) = routing.check() {
        let note = format!("the routing of {model} is not applied: {problem}");
        goal.notes.push(note);
        routing = Routing::default();
    }
    let Some(other) = goal.wishes.get(&model) else {
        goal.routing.insert(model.clone(), routing);
        goal.wishes.insert(model, wish);
        return;
    };
    let newer = if wish.release > other.release {
        &wish
    } else {
        other
    };
    if other.version != wish.version {
        goal.notes.push(format!(
            "two groups of this device want {model} {} and {}; the newer release, {}, is taken",
            other.version, wish.version, newer.version
        ));
    }
    if wish.release > other.release {
        goal.routing.insert(model.clone(), routing);
        goal.wishes.insert(model, wish);
    } else if wish.version == other.version
        && goal.routing.get(&model).is_none_or(Routing::is_empty)
    {
        goal.routing.insert(model, routing);
    }
}

/// What one device should do about one wish.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Run this version.
    Run(Version),
    /// Not this device's turn.
    NotYet,
}

/// A device outside the wave stays where it is; one that has nothing yet takes what the group ran before.
pub fn target(wish: &Wish, device: &DeviceId, has_something: bool) -> Target {
    if wish.includes(device) {
        return Target::Run(wish.version.clone());
    }
    match &wish.previous {
        Some(previous) if !has_something => Target::Run(previous.clone()),
        _ => Target::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_device_outside_the_wave_takes_what_its_group_ran_before() {
        let mut wish = Wish {
            previous: Some(Version::new(1, 0, 0)),
            percent: 0,
            ..Wish::new(Version::new(2, 0, 0), 2, "r2".parse().expect("name"))
        };
        let device: DeviceId = "scanner-1".parse().expect("name");
        assert_eq!(target(&wish, &device, true), Target::NotYet);
        let previous = Target::Run(Version::new(1, 0, 0));
        assert_eq!(target(&wish, &device, false), previous);
        wish.percent = 100;
        let newest = Target::Run(Version::new(2, 0, 0));
        assert_eq!(target(&wish, &device, true), newest);
    }
}
