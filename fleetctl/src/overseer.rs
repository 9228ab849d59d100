//! Widens rollouts in waves, or stops them, by what their devices say.
//!
//! `rollout watch` and `push --waves` oversee one rollout until it is over, `controller` all of them for ever. All
//! that is known stands in the repository and in the statuses that the broker retains, so an overseer may end at any
//! moment, and another one goes on. Nothing is decided before the statuses that the broker holds have been heard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use edgeward_models::fleet::rollout::Wish;
use edgeward_models::fleet::status::Status;
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::{DeviceId, GroupName, ModelName, RolloutId};
use tokio::time::Instant;

use crate::carrier::Standing;
use crate::commands::change::Waiting;
use crate::devices::Device;
use crate::link::Link;
use crate::operator::{Operator, is_broken_link, jittered};
use crate::printer::plain;
use crate::rollouts::{self, Rollout};
use crate::statuses;

mod ending;
mod judging;

/// Deadlines are looked at this often even when no device says anything.
const TICK: Duration = Duration::from_secs(1);
/// After so much silence all retained statuses have arrived.
const QUIET: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a rollout ended.
#[derive(Debug, Clone)]
enum End {
    Complete,
    /// The devices that moved go back, to this wish where there is one.
    Halted {
        reason: String,
        back: Option<Box<Wish>>,
    },
    /// Something else was signed for the group.
    Superseded,
}

struct Overseer<'a> {
    operator: &'a Operator,
    /// The one to oversee, as it was last seen under way; absent: all of them.
    only: Option<Rollout>,
    rollouts: Vec<Rollout>,
    /// The timestamp of the repository that they were read from.
    read_at: Vec<u8>,
    devices: BTreeMap<DeviceId, Device>,
    heard: BTreeMap<DeviceId, Status>,
    /// What was told last, by rollout and device.
    told: HashMap<(RolloutId, Option<DeviceId>), String>,
}

/// Oversees one rollout until it is over, and says how it ended.
pub async fn watch(
    operator: &Operator,
    group: &GroupName,
    model: &ModelName,
    waiting: &Waiting,
) -> Result<ExitCode> {
    let rollout = rollouts::find(&operator.repository()?, group, model)?;
    let mut overseer = Overseer::new(operator, Some(rollout));
    let end = overseer.oversee().await?.context("it did not end")?;
    ending::tell(&overseer, &end, waiting).await
}

/// Oversees all rollouts, for ever.
pub async fn control(operator: &Operator) -> Result<()> {
    let mut overseer = Overseer::new(operator, None);
    loop {
        let Err(error) = overseer.oversee().await else {
            return Ok(());
        };
        // Another operator's newer repository, a key that is not here, a broker that refuses: a person must look, and
        // what stands goes on meanwhile.
        operator.printer.warn(&format!("{error:#}; trying again"));
        overseer.read_at.clear();
        tokio::time::sleep(jittered(LONGEST_PAUSE)).await;
    }
}

impl<'a> Overseer<'a> {
    fn new(operator: &'a Operator, only: Option<Rollout>) -> Self {
        Self {
            operator,
            only,
            rollouts: Vec::new(),
            read_at: Vec::new(),
            devices: BTreeMap::new(),
            heard: BTreeMap::new(),
            told: HashMap::new(),
        }
    }

    /// Until the one rollout is over; for ever, where it is all of them. Broken connections are made anew.
    async fn oversee(&mut self) -> Result<Option<End>> {
        let mut pause = TICK;
        loop {
            let started = Instant::now();
            match self.oversee_once().await {
                Ok(end) => return Ok(end),
                Err(error) if is_broken_link(&error) => {
                    let printer = &self.operator.printer;
                    printer.note(&format!("{error:#}; connecting again"));
                    if started.elapsed() > LONGEST_PAUSE {
                        pause = TICK;
                    }
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same over one connection.
    async fn oversee_once(&mut self) -> Result<Option<End>> {
        let link = self.operator.connect().await?;
        self.catch_up(&link).await?;
        let mut followed = BTreeSet::new();
        loop {
            self.read()?;
            if let (Some(only), true) = (&self.only, self.rollouts.is_empty()) {
                return ending::of(self.operator, only).map(Some);
            }
            self.listen(&link, &mut followed).await?;
            for rollout in self.rollouts.clone() {
                let end = self.judge(&rollout).await?;
                if end.is_some() && self.only.is_some() {
                    link.close().await;
                    return Ok(end);
                }
            }
        }
    }

    /// A change that was signed and did not reach the broker reaches it now.
    async fn catch_up(&self, link: &Link) -> Result<()> {
        let repository = self.operator.repository()?;
        let carrier = self.operator.carrier(link);
        let standing = carrier.standing(&repository).await?;
        if standing != Standing::Same {
            carrier.sync(&repository, standing).await?;
        }
        Ok(())
    }

    /// Reads the rollouts anew, if the repository has changed.
    fn read(&mut self) -> Result<()> {
        let timestamp = self.operator.home.timestamp()?;
        if timestamp == self.read_at {
            return Ok(());
        }
        let repository = self.operator.repository()?;
        self.rollouts = rollouts::under_way(&repository)?;
        self.read_at = repository.timestamp()?;
        if let Some(only) = &mut self.only {
            self.rollouts.retain(|rollout| rollout.is(only));
            if let Some(now) = self.rollouts.first() {
                only.clone_from(now);
            }
        }
        let registry = self.operator.home.devices();
        for id in self.rollouts.iter().flat_map(|r| &r.members) {
            if self.devices.contains_key(id) {
                continue;
            }
            match registry.get(id)? {
                Some(device) => drop(self.devices.insert(id.clone(), device)),
                None => self.operator.printer.warn(&format!(
                    "device {id} is in the group and its certificate is not in this home: nothing it says can be \
                     believed"
                )),
            }
        }
        Ok(())
    }

    /// Takes what the devices say. The first time it asks for a device it waits for what the broker retains.
    async fn listen(&mut self, link: &Link, followed: &mut BTreeSet<DeviceId>) -> Result<()> {
        let moving = self.rollouts.iter().flat_map(Rollout::moving);
        let new: BTreeSet<DeviceId> = moving.filter(|d| !followed.contains(*d)).cloned().collect();
        let fleet = self.operator.home.fleet();
        let topic = |device: &DeviceId| Topic::Status(device.clone()).in_fleet(fleet);
        link.follow(&new.iter().map(topic).collect::<Vec<_>>())
            .await?;
        let settling = !new.is_empty();
        followed.extend(new);
        loop {
            let patience = if settling { QUIET } else { TICK };
            let news = link.news(Instant::now() + patience).await?;
            let quiet = news.is_empty();
            self.hear(news)?;
            if quiet || !settling {
                return Ok(());
            }
        }
    }

    fn hear(&mut self, news: HashMap<String, Bytes>) -> Result<()> {
        if news.is_empty() {
            return Ok(());
        }
        // Read and written each time: other commands of this operator remember as well.
        let mut memory = self.operator.home.memory()?;
        for (topic, message) in news {
            let Some(Topic::Status(id)) = Topic::parse(self.operator.home.fleet(), &topic) else {
                continue;
            };
            let Some(device) = self.devices.get(&id) else {
                continue;
            };
            let judged = statuses::read(device, &message).and_then(|status| {
                memory.judge(device, &status)?;
                Ok(status)
            });
            match judged {
                Ok(status) => drop(self.heard.insert(id, status)),
                Err(why) => {
                    let why = plain(&why);
                    self.operator
                        .printer
                        .warn(&format!("{id}: a status is not believed: {why}"));
                }
            }
        }
        memory.save()
    }
}
