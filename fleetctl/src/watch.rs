//! Follows a rollout on the devices it concerns, until each has an outcome or the time is up.
//!
//! `push` and `rollback` use it. [`Watch`] holds what is known and decides; [`follow`] brings it the
//! messages, over as many connections as it takes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use edgeward_models::codec;
use edgeward_models::fleet::routing::{Routing, RoutingStatus};
use edgeward_models::fleet::status::{Online, Phase, Status};
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::{DeviceId, GroupName, ModelName, Version};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::Instant;

use crate::devices::Device;
use crate::memory::Memory;
use crate::operator::{Operator, is_broken_link, jittered};
use crate::printer::plain;
use crate::statuses;

/// With more devices than this, lines that move are one bar.
const MOST_LINES: usize = 16;

/// What was asked of the group.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub group: GroupName,
    pub sequence: u64,
    pub model: ModelName,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    /// A version as the active one.
    Active { version: Version, release: u64 },
    /// Versions beside it.
    Routing(Routing),
}

/// How it ended on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    Active {
        delegate: String,
    },
    Routed {
        /// Each version beside the active one, and where it runs.
        versions: Vec<String>,
    },
    Refused {
        reason: String,
    },
    /// The time was up; what was known by then.
    Silent {
        reason: String,
    },
}

struct Follower {
    device: Device,
    online: Option<Online>,
    /// In words, for people.
    said: Option<String>,
    /// What was not believed, and why.
    ignored: Option<String>,
    outcome: Option<Outcome>,
    line: Option<ProgressBar>,
}

/// The devices of a rollout and how far each is.
pub struct Watch {
    wanted: Wanted,
    followers: BTreeMap<DeviceId, Follower>,
    memory: Memory,
}

impl Watch {
    pub fn new(wanted: Wanted, devices: Vec<Device>, memory: Memory) -> Self {
        let followers = devices
            .into_iter()
            .map(|device| {
                let follower = Follower {
                    online: None,
                    said: None,
                    ignored: None,
                    outcome: None,
                    line: None,
                    device,
                };
                (follower.device.id.clone(), follower)
            })
            .collect();
        Self {
            wanted,
            followers,
            memory,
        }
    }

    /// Takes a status message. Returns what has changed, in words.
    fn hear(&mut self, id: &DeviceId, message: &[u8]) -> Option<String> {
        let follower = self.followers.get_mut(id).filter(|f| f.outcome.is_none())?;
        let judged = statuses::read(&follower.device, message).and_then(|status| {
            self.memory.judge(&follower.device, &status)?;
            Ok(status)
        });
        let said = match judged {
            Err(why) => {
                let said = format!("an unbelievable status was ignored: {}", plain(&why));
                let new = follower.ignored.as_ref() != Some(&said);
                follower.ignored = Some(said.clone());
                return new.then_some(said);
            }
            Ok(status) => {
                follower.outcome = outcome(&self.wanted, &status);
                progress(&self.wanted, &status)
            }
        };
        if follower.said.as_ref() == Some(&said) {
            return None;
        }
        follower.said = Some(said.clone());
        Some(said)
    }

    fn hear_online(&mut self, id: &DeviceId, message: &[u8]) {
        if let Some(follower) = self.followers.get_mut(id)
            && let Ok(online) = codec::decode("online", message)
        {
            follower.online = Some(online);
        }
    }

    fn pending(&self) -> impl Iterator<Item = &Follower> {
        self.followers.values().filter(|f| f.outcome.is_none())
    }

    /// Every device with its outcome; those without one are silent.
    pub fn outcomes(self) -> Vec<(DeviceId, Outcome)> {
        self.followers
            .into_values()
            .map(|follower| {
                let outcome = follower.outcome.unwrap_or_else(|| {
                    let presence = match follower.online {
                        None => "never seen by this broker".to_owned(),
                        Some(Online { online: true, .. }) => "online".to_owned(),
                        Some(Online { reason, .. }) => format!("offline ({})", plain(&reason)),
                    };
                    let said = follower.said.map(|said| format!("; last said: {said}"));
                    let ignored = follower.ignored.map(|ignored| format!("; {ignored}"));
                    Outcome::Silent {
                        reason: presence + &said.unwrap_or_default() + &ignored.unwrap_or_default(),
                    }
                });
                (follower.device.id, outcome)
            })
            .collect()
    }
}

/// The outcome that a status means, if it means one.
fn outcome(wanted: &Wanted, status: &Status) -> Option<Outcome> {
    let model = status.models.iter().find(|m| m.model == wanted.model)?;
    // What a device says of an earlier desired state is no answer to this one.
    let answers_this = status
        .groups
        .iter()
        .any(|g| g.group == wanted.group && g.sequence >= wanted.sequence);
    let (version, release) = match &wanted.what {
        What::Active { version, release } => (version, *release),
        What::Routing(routing) => {
            return answers_this.then(|| routed(routing, model.routing.as_ref()))?;
        }
    };
    if let Some(active) = &model.active
        && active.version == *version
        && active.release == release
        && model.phase == Phase::Active
    {
        return Some(Outcome::Active {
            delegate: format!(
                "{} ({} of {} nodes)",
                active.delegate, active.delegated_nodes, active.total_nodes
            ),
        });
    }
    if answers_this && model.phase == Phase::Refused && model.target.as_ref() == Some(version) {
        let reason = model.reason.as_deref().or(status.last_error.as_deref());
        return Some(Outcome::Refused {
            reason: plain(reason.unwrap_or("it gave no reason")),
        });
    }
    None
}

/// The outcome that a model's routing on a device means, if it means one.
fn routed(wanted: &Routing, said: Option<&RoutingStatus>) -> Option<Outcome> {
    let Some(said) = said else {
        let versions = Vec::new();
        return wanted.is_empty().then_some(Outcome::Routed { versions });
    };
    if said.overridden {
        let reason = format!("an override on the device holds: {}", said.routing);
        return Some(Outcome::Refused { reason });
    }
    if said.routing != *wanted {
        return None;
    }
    if let Some(refused) = said.versions.iter().find(|v| v.phase == Phase::Refused) {
        let reason = refused.reason.as_deref().unwrap_or("it gave no reason");
        let reason = format!("{}: {}", refused.version, plain(reason));
        return Some(Outcome::Refused { reason });
    }
    let versions = said.versions.iter().map(|v| {
        let served = v.served.as_ref().filter(|_| v.phase == Phase::Active)?;
        Some(format!("{} on {}", v.version, served.delegate))
    });
    let versions = versions.collect::<Option<_>>()?;
    Some(Outcome::Routed { versions })
}

/// How far a device is, in words.
fn progress(wanted: &Wanted, status: &Status) -> String {
    let Some(model) = status.models.iter().find(|m| m.model == wanted.model) else {
        return match &status.last_error {
            Some(error) => plain(error),
            None => "has not begun".to_owned(),
        };
    };
    if let What::Routing(_) = wanted.what {
        return beside(model.routing.as_ref());
    }
    let target = model
        .target
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut text = match model.phase {
        Phase::Active => match &model.active {
            Some(active) => format!("active {}", active.version),
            None => "active".to_owned(),
        },
        Phase::Fetching { have, of } => {
            format!(
                "fetching {target} {} %",
                (have.min(of) * 100).checked_div(of).unwrap_or(0)
            )
        }
        phase => format!("{} {target}", phase.word()),
    };
    if let Some(reason) = &model.reason {
        text.push_str(": ");
        text.push_str(&plain(reason));
    }
    text
}

fn beside(said: Option<&RoutingStatus>) -> String {
    let versions = said.into_iter().flat_map(|said| &said.versions);
    let versions = versions.map(|v| {
        let reason = v
            .reason
            .as_ref()
            .map(|reason| format!(": {}", plain(reason)));
        format!(
            "{} {}{}",
            v.version,
            v.phase.word(),
            reason.unwrap_or_default()
        )
    });
    let versions: Vec<_> = versions.collect();
    if versions.is_empty() {
        return "has not begun".to_owned();
    }
    versions.join(", ")
}

/// Follows until every device has an outcome or `time` is up. Broken connections are made anew.
pub async fn follow(operator: &Operator, mut watch: Watch, time: Duration) -> Result<Watch> {
    let until = Instant::now() + time;
    show(operator, &mut watch);
    // Long enough for a short command of the same operator to come and go.
    let mut pause = Duration::from_secs(2);
    while watch.pending().next().is_some() && Instant::now() < until {
        match follow_once(operator, &mut watch, until).await {
            Ok(()) => break,
            Err(error) if is_broken_link(&error) => {
                operator
                    .printer
                    .note(&format!("{error:#}; connecting again"));
                tokio::time::sleep(
                    jittered(pause).min(until.saturating_duration_since(Instant::now())),
                )
                .await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            Err(error) => return Err(error),
        }
    }
    watch.memory.save()?;
    for follower in watch.followers.values_mut() {
        if let Some(line) = follower.line.take() {
            line.finish_and_clear();
        }
    }
    Ok(watch)
}

async fn follow_once(operator: &Operator, watch: &mut Watch, until: Instant) -> Result<()> {
    let fleet = operator.home.fleet();
    let link = operator.connect().await?;
    let topics: Vec<_> = watch
        .pending()
        .flat_map(|f| {
            [
                Topic::Status(f.device.id.clone()),
                Topic::Online(f.device.id.clone()),
            ]
        })
        .map(|topic| topic.in_fleet(fleet))
        .collect();
    link.follow(&topics).await?;
    while watch.pending().next().is_some() {
        let news = link.news(until).await?;
        if news.is_empty() {
            break;
        }
        for (topic, message) in news {
            match Topic::parse(fleet, &topic) {
                Some(Topic::Online(id)) => watch.hear_online(&id, &message),
                Some(Topic::Status(id)) => {
                    if let Some(said) = watch.hear(&id, &message) {
                        tell(operator, watch, &id, said);
                    }
                }
                _ => {}
            }
        }
    }
    link.close().await;
    Ok(())
}

fn show(operator: &Operator, watch: &mut Watch) {
    if operator.printer.is_terminal() && watch.followers.len() <= MOST_LINES {
        for (id, follower) in &mut watch.followers {
            let line = operator.printer.line(id.as_str());
            line.set_message("waiting for its word");
            follower.line = Some(line);
        }
    }
}

fn tell(operator: &Operator, watch: &mut Watch, id: &DeviceId, said: String) {
    match watch.followers.get_mut(id).and_then(|f| f.line.as_ref()) {
        Some(line) => line.set_message(said),
        None => operator.printer.note(&format!("{id}: {said}")),
    }
}

#[cfg(test)]
mod tests;
