//! What is said when a rollout in waves is over, and the way back of the devices that had moved.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use edgeward_models::fleet::rollout::Wish;
use edgeward_models::name::DeviceId;
use jiff::Timestamp;
use serde_json::json;

use super::{End, Overseer};
use crate::commands::change::Waiting;
use crate::devices::Device;
use crate::operator::Operator;
use crate::printer::table;
use crate::rollouts::{Outcome, Rollout};
use crate::watch::{self, Wanted, Watch, What};
use crate::{FAILED, REFUSED};

/// Word and text of an outcome.
pub fn words(outcome: &Outcome) -> Vec<String> {
    let (word, text) = match outcome {
        Outcome::Healthy => ("healthy", ""),
        Outcome::Failed(reason) => ("failed", reason.as_str()),
        Outcome::Silent(reason) => ("silent", reason.as_str()),
        Outcome::Pending(reason) => ("pending", reason.as_str()),
    };
    vec![word.to_owned(), text.to_owned()]
}

pub fn halted(reason: &str, back: Option<&Wish>) -> String {
    match back {
        Some(wish) => format!(
            "halted: {reason}; the devices that moved go back to {}",
            wish.version
        ),
        None => format!(
            "halted: {reason}; the group ran nothing before, so there is nothing to go back to: push another version"
        ),
    }
}

/// How a rollout ended that is not under way any more, by what is signed for its group now.
pub(super) fn of(operator: &Operator, rollout: &Rollout) -> Result<End> {
    let desired = operator.repository()?.desired(&rollout.group)?;
    let wish = desired.and_then(|mut desired| desired.models.remove(&rollout.model));
    let id = &rollout.wish.rollout;
    let end = match wish {
        Some(wish) if wish.rollout == *id => End::Complete,
        Some(wish) => match &wish.withdrawn {
            Some(withdrawn) if withdrawn.rollout == *id => End::Halted {
                reason: withdrawn.reason.clone(),
                back: Some(Box::new(wish)),
            },
            _ => End::Superseded,
        },
        None => End::Superseded,
    };
    let said = match &end {
        End::Complete => "complete".to_owned(),
        End::Halted { reason, back } => halted(reason, back.as_deref()),
        End::Superseded => "superseded: something else was signed for the group".to_owned(),
    };
    operator.printer.note(&said);
    Ok(end)
}

/// Says how a rollout ended. Where devices go back, waits until they have.
pub(super) async fn tell(
    overseer: &Overseer<'_>,
    end: &End,
    waiting: &Waiting,
) -> Result<ExitCode> {
    let printer = &overseer.operator.printer;
    let Some(rollout) = &overseer.only else {
        return Ok(ExitCode::SUCCESS);
    };
    let outcomes = rollout.outcomes(&overseer.heard, Timestamp::now());
    let (word, reason) = match end {
        End::Complete => ("complete", None),
        End::Halted { reason, .. } => ("halted", Some(reason)),
        End::Superseded => ("superseded", None),
    };
    let mut returned = Vec::new();
    if let End::Halted {
        back: Some(wish), ..
    } = end
    {
        let moved = rollout.moving().filter_map(|id| overseer.devices.get(id));
        returned = way_back(overseer, rollout, wish, moved.cloned().collect(), waiting).await?;
    }
    let went = |id: &DeviceId| returned.iter().find(|(device, _)| device == id);
    if waiting.json {
        let rows = outcomes.iter().map(|(device, outcome)| {
            let back = went(device).map(|(_, outcome)| outcome);
            json!({"device": device, "result": outcome, "back": back})
        });
        printer.json(&json!({
            "group": rollout.group, "model": rollout.model, "version": rollout.wish.version,
            "rollout": rollout.wish.rollout, "outcome": word, "reason": reason,
            "devices": rows.collect::<Vec<_>>(),
        }))?;
    } else {
        let rows = outcomes.iter().map(|(device, outcome)| {
            let mut row = vec![device.to_string()];
            row.extend(words(outcome));
            if let (
                Some((_, back)),
                End::Halted {
                    back: Some(wish), ..
                },
            ) = (went(device), end)
            {
                row.push(match back {
                    watch::Outcome::Active { .. } | watch::Outcome::Routed { .. } => {
                        format!("back on {}", wish.version)
                    }
                    watch::Outcome::Refused { reason } | watch::Outcome::Silent { reason } => {
                        format!("not back on {}: {reason}", wish.version)
                    }
                });
            }
            row
        });
        printer.data(&table(&rows.collect::<Vec<_>>()))?;
    }
    Ok(match end {
        End::Complete => ExitCode::SUCCESS,
        End::Halted { .. } => ExitCode::from(REFUSED),
        End::Superseded => ExitCode::from(FAILED),
    })
}

/// Follows the devices that moved until they run again what they ran before.
async fn way_back(
    overseer: &Overseer<'_>,
    rollout: &Rollout,
    wish: &Wish,
    moved: Vec<Device>,
    waiting: &Waiting,
) -> Result<Vec<(DeviceId, watch::Outcome)>> {
    let operator = overseer.operator;
    let wanted = Wanted {
        group: rollout.group.clone(),
        // Any later desired state of the group asks for it as well.
        sequence: 0,
        model: rollout.model.clone(),
        what: What::Active {
            version: wish.version.clone(),
            release: wish.release,
        },
    };
    let time = Duration::from_secs(waiting.timeout + u64::from(wish.jitter_seconds));
    let watch = Watch::new(wanted, moved, operator.home.memory()?);
    Ok(watch::follow(operator, watch, time).await?.outcomes())
}
