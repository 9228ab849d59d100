//! How careful a push is: waves, the halt rule, and what a device holds against a new version.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use edgeward_models::fleet::health::HealthLimits;
use edgeward_models::fleet::waves::{HaltRule, Size, Waves, later};
use edgeward_models::name::{DeviceId, GroupName};
use edgeward_models::sign::Repository;
use jiff::Timestamp;

use super::change::Pace;
use crate::rollouts;

/// Waves and limits of a rollout.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Roll out in waves of so many devices or such shares of the group, those of the waves before included; the
    /// last wave is everybody
    #[arg(
        long,
        value_name = "SIZE,…",
        value_delimiter = ',',
        conflicts_with_all = ["percent", "label"]
    )]
    waves: Vec<Size>,
    /// Devices that go before all others, in a wave of their own
    #[arg(
        long,
        value_name = "DEVICE,…",
        value_delimiter = ',',
        conflicts_with_all = ["percent", "label"]
    )]
    canary: Vec<DeviceId>,
    /// Each further wave waits for `fleetctl rollout advance`
    #[arg(long)]
    approve: bool,
    /// The share of devices that may fail before the rollout is halted
    #[arg(long, value_name = "P", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    max_failed_percent: u8,
    /// How many devices must have an outcome before that share counts; it always does at a wave's end
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_devices: u32,
    /// A device that has no outcome for so long counts as failed; jitter and soak are not counted. Longer than devices
    /// wait for their maintenance windows
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    silence: u32,
    /// When the whole rollout must be over; it is halted otherwise
    #[arg(long, value_name = "SECONDS", default_value_t = 7 * 24 * 3600)]
    deadline: u32,
    /// How often the new version may crash on a device during its soak; beyond any of these limits the device puts
    /// the previous version back
    #[arg(long, value_name = "N", default_value_t = HealthLimits::default().max_crashes)]
    max_crashes: u32,
    /// Failed requests in percent, beyond those of the previous version
    #[arg(long, value_name = "P", default_value_t = HealthLimits::default().max_error_percent, value_parser = clap::value_parser!(u8).range(0..=100))]
    max_error_percent: u8,
    /// The slowest hundredth of its invokes, in percent of the previous version's
    #[arg(long, value_name = "P", default_value_t = HealthLimits::default().max_p99_percent)]
    max_p99_percent: u32,
}

impl Plan {
    pub fn health(&self) -> HealthLimits {
        HealthLimits {
            max_crashes: self.max_crashes,
            max_error_percent: self.max_error_percent,
            max_p99_percent: self.max_p99_percent,
        }
    }

    /// The plan for this group, no wave of it open, and the devices of the group. `None`: not in waves.
    pub fn waves(
        &self,
        repository: &Repository,
        group: &GroupName,
        pace: &Pace,
    ) -> Result<Option<(Waves, BTreeSet<DeviceId>)>> {
        if self.waves.is_empty() && self.canary.is_empty() {
            if self.approve {
                bail!("--approve is about waves: say which with --waves or --canary");
            }
            return Ok(None);
        }
        let members = rollouts::members(repository, group)?;
        if let Some(stranger) = self.canary.iter().find(|c| !members.contains(c)) {
            bail!("device {stranger} is not in group {group} and cannot be its canary");
        }
        let halt = HaltRule {
            min_devices: self.min_devices,
            max_failed_percent: self.max_failed_percent,
        };
        let canaries = self.canary.iter().cloned().collect();
        let now = Timestamp::now();
        let mut waves = Waves::plan(canaries, self.waves.clone(), halt, now)?;
        waves.approve = self.approve;
        let busy = pace.jitter.saturating_add(pace.soak_seconds());
        waves.silence_seconds = self.silence.saturating_add(busy);
        waves.ends = later(now, self.deadline);
        Ok(Some((waves, members)))
    }
}
