//! Waves: which devices of a group may move to a new version now, and when a rollout must stop.
//!
//! A rollout orders the devices of its group: canaries first, then by hash of device and rollout. Each wave reaches
//! further in that order. What is signed is how far ([`Waves::reach`]), so a device decides alone whether it is
//! meant and needs no list of the others; `fleetctl` knows the group and widens by signing a longer reach, never a
//! shorter one. Whether it may is [`Waves::decide`]'s to say.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::rollout::place;
use crate::name::{DeviceId, RolloutId};

mod decision;

pub use decision::{Decision, Tally};

/// A rollout in waves, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waves {
    /// They go first, in a wave of their own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub canaries: BTreeSet<DeviceId>,
    /// How many devices each wave reaches, those of the waves before it included. The last one is everybody.
    pub sizes: Vec<Size>,
    /// How many waves may move now, that of the canaries included.
    pub open: u32,
    /// The last place in the order by hash that may move now; absent: canaries only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<u64>,
    pub halt: HaltRule,
    /// Each further wave waits for an operator's word.
    #[serde(default)]
    pub approve: bool,
    /// No further wave until it is resumed; the halt rule goes on counting.
    #[serde(default)]
    pub paused: bool,
    /// Why it was stopped where there was no version to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
    /// When the newest wave was opened.
    pub opened: Timestamp,
    /// A device of it that has no outcome this long after counts as failed.
    pub silence_seconds: u32,
    /// When the whole rollout must be over.
    pub ends: Timestamp,
}

/// How many devices of a group a wave reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Size {
    Devices(u32),
    /// 1 to 100; of a group of any size at least one device.
    Percent(u8),
}

/// When failures stop a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaltRule {
    /// The rule counts from so many outcomes on, and in any case when a wave has all of them.
    pub min_devices: u32,
    /// More than this share of the outcomes, in percent, stops the rollout.
    pub max_failed_percent: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WavesError {
    #[error(
        "{0:?} is no size of a wave; write a number of devices such as 5 or a share such as 10%"
    )]
    Size(String),
    #[error("the waves get smaller: {1} after {0}; each counts the devices of those before it too")]
    Shrinking(Size, Size),
}

impl HaltRule {
    pub fn is_broken(&self, tally: &Tally) -> bool {
        let failed = tally.failed + tally.silent;
        let outcomes = failed + tally.healthy;
        let counts = outcomes >= self.min_devices as usize || tally.pending == 0;
        counts && failed * 100 > usize::from(self.max_failed_percent) * outcomes
    }
}

impl Waves {
    /// The plan of a rollout, no wave of it open yet.
    pub fn plan(
        canaries: BTreeSet<DeviceId>,
        mut sizes: Vec<Size>,
        halt: HaltRule,
        now: Timestamp,
    ) -> Result<Self, WavesError> {
        if sizes.last() != Some(&Size::Percent(100)) {
            sizes.push(Size::Percent(100));
        }
        for pair in sizes.windows(2) {
            if pair[1].is_less_than(pair[0]) {
                return Err(WavesError::Shrinking(pair[0], pair[1]));
            }
        }
        Ok(Self {
            canaries,
            sizes,
            open: 0,
            reach: None,
            halt,
            approve: false,
            paused: false,
            halted: None,
            opened: now,
            silence_seconds: 0,
            ends: now,
        })
    }

    /// Whether this device may move now. What once was included stays so in all later waves.
    pub fn includes(&self, device: &DeviceId, rollout: &RolloutId) -> bool {
        if self.open == 0 {
            return false;
        }
        let reached = |reach| place(device, rollout, "wave") <= reach;
        self.reaches_everybody()
            || self.canaries.contains(device)
            || self.reach.is_some_and(reached)
    }

    /// How many waves there are.
    pub fn count(&self) -> u32 {
        u32::try_from(self.sizes.len()).unwrap_or(u32::MAX - 1) + u32::from(self.has_canaries())
    }

    pub fn reaches_everybody(&self) -> bool {
        self.open >= self.count()
    }

    /// The same rollout with its next wave open; waves that would add no device of the group are passed over. The
    /// last one is everybody, whoever that is.
    pub fn widened(
        &self,
        members: &BTreeSet<DeviceId>,
        rollout: &RolloutId,
        now: Timestamp,
    ) -> Self {
        let reached = |waves: &Self| {
            let included = members.iter().filter(|m| waves.includes(m, rollout));
            included.count()
        };
        let before = reached(self);
        let mut next = Self {
            opened: now,
            ..self.clone()
        };
        while !next.reaches_everybody() {
            next.open += 1;
            next.reach = next.reach(members, rollout);
            if reached(&next) > before {
                break;
            }
        }
        if reached(&next) == members.len() {
            next.open = next.count();
        }
        next
    }

    /// When a device of the newest wave that has said nothing counts as failed.
    pub fn silent_from(&self) -> Timestamp {
        later(self.opened, self.silence_seconds)
    }

    fn has_canaries(&self) -> bool {
        !self.canaries.is_empty()
    }

    /// How far the newest wave reaches among these devices, and no less far than the one before it.
    fn reach(&self, members: &BTreeSet<DeviceId>, rollout: &RolloutId) -> Option<u64> {
        let wave = (self.open as usize).checked_sub(1 + usize::from(self.has_canaries()))?;
        let (canaries, others): (Vec<&DeviceId>, Vec<&DeviceId>) =
            members.iter().partition(|m| self.canaries.contains(*m));
        let wanted = self.sizes.get(wave)?.of(members.len());
        let mut places: Vec<u64> = others
            .into_iter()
            .map(|device| place(device, rollout, "wave"))
            .collect();
        places.sort_unstable();
        let last = wanted.saturating_sub(canaries.len()).min(places.len());
        let reach = last.checked_sub(1).map(|last| places[last]);
        reach.max(self.reach)
    }
}

impl Size {
    /// Of a group of so many devices.
    pub fn of(self, members: usize) -> usize {
        match self {
            Self::Devices(devices) => (devices as usize).min(members),
            Self::Percent(percent) => (members * usize::from(percent)).div_ceil(100),
        }
    }

    /// Whatever the size of the group. A number and a share can be compared in a group only.
    fn is_less_than(self, other: Self) -> bool {
        match (self, other) {
            (Self::Devices(a), Self::Devices(b)) => a < b,
            (Self::Percent(a), Self::Percent(b)) => a < b,
            _ => false,
        }
    }
}

impl FromStr for Size {
    type Err = WavesError;

    fn from_str(text: &str) -> Result<Self, WavesError> {
        let wrong = || WavesError::Size(text.chars().take(20).collect());
        let digits = text.strip_suffix('%').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let size = match text.ends_with('%') {
            true => Self::Percent(digits.parse().map_err(|_| wrong())?),
            false => Self::Devices(digits.parse().map_err(|_| wrong())?),
        };
        match size {
            Self::Devices(0) | Self::Percent(0 | 101..) => Err(wrong()),
            size => Ok(size),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices(devices) => write!(f, "{devices}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = WavesError;

    fn try_from(text: String) -> Result<Self, WavesError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// So many seconds after; the end of time, where that is beyond it.
pub fn later(from: Timestamp, seconds: u32) -> Timestamp {
    from.saturating_add(SignedDuration::from_secs(seconds.into()))
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
