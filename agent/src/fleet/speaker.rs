//! What the device tells its fleet of itself: signed statuses, and the presence messages of its connections.
//!
//! A status is retained and published when something in it has changed, and on every new connection; a fetch
//! that only progresses is told of less often, since a whole fleet fetches at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_models::DeviceId;
use edgeward_models::codec::{self, CodecError};
use edgeward_models::fleet::signed::{self, Purpose};
use edgeward_models::fleet::status::{Online, Phase, Status};
use edgeward_models::fleet::topic::Topic;
use tracing::warn;

use super::admin::Preview;
use super::board::{Board, chain};
use super::identity::{Identity, IdentityError};
use super::job::Workshop;
use super::mqtt::{Link, LinkError, LinkState, Presence};
use super::{pause, telemetry};
use crate::config::Residency;

/// Changes within this time are told together.
const GATHER: Duration = Duration::from_millis(200);
/// Progress alone is told this often.
const PROGRESS: Duration = Duration::from_secs(3);
/// A status that could not be published is tried again after at most this time.
const RETRY: Duration = Duration::from_secs(60);
/// A status is told at least this often, so that a device which is well differs from one that hangs.
const ALIVE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum SpeakError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A signed message as it travels, before compression.
pub fn sealed(
    identity: &Identity,
    purpose: Purpose,
    payload: Vec<u8>,
) -> Result<Vec<u8>, SpeakError> {
    let envelope = signed::seal(purpose, &identity.device, payload, |bytes| {
        identity.sign(bytes)
    })?;
    Ok(codec::encode("signed envelope", &envelope)?)
}

/// Birth, last will and goodbye of this boot.
pub fn presence(board: &Board) -> Presence {
    let message = |online: bool, reason: &'static str| {
        let boot_id = board.boot_id().to_owned();
        Box::new(move |session: u64| {
            let message = online_message(&boot_id, online, reason, session);
            codec::encode("presence", &message).unwrap_or_default()
        })
    };
    Presence {
        born: message(true, BORN),
        lost: message(false, "connection lost"),
        stopped: message(false, "stopped"),
    }
}

const BORN: &str = "connected";

fn online_message(boot_id: &str, online: bool, reason: &str, session: u64) -> Online {
    Online {
        online,
        reason: reason.to_owned(),
        boot_id: boot_id.to_owned(),
        session,
    }
}

/// What would be told now, message by message.
pub fn preview(workshop: &Workshop, device: &DeviceId) -> Preview {
    Preview {
        online: online_message(workshop.board.boot_id(), true, BORN, 1),
        status: status(workshop, device.clone(), 1),
        telemetry: telemetry::preview(workshop, device),
    }
}

/// Publishes statuses for as long as it is polled.
pub async fn speak(workshop: Arc<Workshop>, identity: Arc<Identity>, link: Link) {
    let topic = Topic::Status(identity.device.clone()).in_fleet(&identity.fleet);
    let mut changes = workshop.board.changes();
    let mut sessions = link.sessions();
    let (mut sequence, mut failures) = (0, 0);
    let mut told: Option<(Status, Instant)> = None;
    loop {
        let pause = match told {
            Some(_) => ALIVE,
            None => pause::after(failures).min(RETRY),
        };
        let news = async {
            tokio::select! {
                Ok(()) = sessions.changed() => told = None,
                Ok(()) = changes.changed() => tokio::time::sleep(GATHER).await,
                else => return false,
            }
            true
        };
        // Without news it is told again after the pause.
        if tokio::time::timeout(pause, news).await == Ok(false) {
            return;
        }
        changes.mark_unchanged();
        if *link.state().borrow() != LinkState::Connected {
            // Told on the next connection.
            continue;
        }
        let status = status(&workshop, identity.device.clone(), sequence + 1);
        if let Some((before, at)) = &told {
            let same = lasting(before) == lasting(&status);
            let progressed = phases(before) != phases(&status);
            let recent = at.elapsed() < ALIVE;
            if same && recent && (!progressed || at.elapsed() < PROGRESS) {
                continue;
            }
        }
        sequence += 1;
        match publish(&identity, &link, &topic, &status).await {
            Ok(()) => (told, failures) = (Some((status, Instant::now())), 0),
            Err(problem) => {
                failures += 1;
                warn!(problem = %chain(&problem), "status not published");
                told = None;
            }
        }
    }
}

/// The status as it is told to the fleet.
pub fn status(workshop: &Workshop, device: DeviceId, sequence: u64) -> Status {
    let mut status = workshop.board.status(
        device,
        sequence,
        &workshop.engine,
        &workshop.audit,
        workshop.state.free_bytes(),
    );
    if workshop.config.residency == Residency::OnSite {
        status.keep_words_back();
    }
    status
}

async fn publish(
    identity: &Identity,
    link: &Link,
    topic: &str,
    status: &Status,
) -> Result<(), SpeakError> {
    let payload = codec::encode("status", status)?;
    let message = sealed(identity, Purpose::Status, payload)?;
    Ok(link.publish(topic, message, true).await?)
}

/// A status without what changes all the time.
fn lasting(status: &Status) -> Status {
    let mut status = status.clone();
    (status.sequence, status.at, status.disk_free_bytes) = (0, 0, 0);
    for model in &mut status.models {
        if let Phase::Fetching { .. } = model.phase {
            model.phase = Phase::Fetching { have: 0, of: 0 };
        }
    }
    status
}

fn phases(status: &Status) -> Vec<Phase> {
    status.models.iter().map(|m| m.phase).collect()
}
