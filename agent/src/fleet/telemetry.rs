//! Telemetry: a sample each interval into the outbox, and from there to the broker whenever it is there.
//!
//! The list of what may leave is the type [`Sample`]; the level decides how much of it is filled in. Trouble
//! here is reported and never more than that: it is the least important thing an agent does.

use std::sync::Arc;
use std::time::Duration;

use edgeward_models::codec;
use edgeward_models::fleet::signed::Purpose;
use edgeward_models::fleet::telemetry::{FORMAT, Sample, TelemetryBatch};
use edgeward_models::fleet::topic::Topic;
use tokio::sync::watch;
use tracing::{error, warn};

use super::board::chain;
use super::identity::Identity;
use super::job::{Workshop, clock};
use super::mqtt::{Link, LinkError};
use super::outbox::{Outbox, OutboxError, Parcel};
use super::speaker::{SpeakError, sealed};
use crate::config::{Telemetry, TelemetryLevel};
use crate::watch::resources::Resources;

/// What travels together, before compression.
const PARCEL_SAMPLES: usize = 32;
const PARCEL_BYTES: usize = 32 * 1024;
/// After a refusal by the broker.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Samples and sends until `stop`.
pub async fn report(
    workshop: Arc<Workshop>,
    identity: Arc<Identity>,
    link: Link,
    mut stop: watch::Receiver<bool>,
) {
    let settings = workshop.config.telemetry.clone();
    if settings.level == TelemetryLevel::Off {
        return;
    }
    let Some(outbox) = open(&workshop, &settings).await else {
        return;
    };
    let period = Duration::from_secs(u64::from(settings.interval_seconds.max(1)));
    let mut reporter = Reporter {
        topic: Topic::Telemetry(identity.device.clone()).in_fleet(&identity.fleet),
        workshop,
        identity,
        link,
        outbox,
        settings,
        resources: Resources::new(),
        parcel_samples: PARCEL_SAMPLES,
    };
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    timer.reset();
    let mut sessions = reporter.link.sessions();
    let mut paused_until = None;
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = timer.tick() => {
                if let Err(problem) = reporter.sample() {
                    error!(problem = %chain(&problem), "telemetry sample lost");
                    reporter.workshop.board.error(chain(&problem));
                }
            }
            Ok(()) = sessions.changed() => paused_until = None,
        }
        let now = tokio::time::Instant::now();
        if paused_until.is_none_or(|until| until <= now) {
            let sent = tokio::select! {
                // What is not acknowledged stays in the outbox.
                _ = stop.changed() => return,
                sent = reporter.send() => sent,
            };
            if let Err(problem) = sent {
                warn!(problem = %chain(&problem), "telemetry not sent");
                paused_until = Some(now + REFUSED_PAUSE);
            }
        }
    }
}

async fn open(workshop: &Workshop, settings: &Telemetry) -> Option<Outbox> {
    let (directory, limit) = (workshop.state.outbox(), settings.outbox_bytes);
    // A thread of its own: opening reads everything, and a damaged store may panic.
    let opened = tokio::task::spawn_blocking(move || Outbox::open(&directory, limit)).await;
    let problem = match opened {
        Ok(Ok((outbox, None))) => return Some(outbox),
        Ok(Ok((outbox, Some(damage)))) => {
            workshop.board.error(format!(
                "the telemetry outbox was damaged and begins anew: {damage}"
            ));
            return Some(outbox);
        }
        Ok(Err(e)) => chain(&e),
        Err(e) => e.to_string(),
    };
    error!(%problem, "no outbox: this boot sends no telemetry");
    workshop.board.error(format!("no telemetry: {problem}"));
    None
}

struct Reporter {
    topic: String,
    workshop: Arc<Workshop>,
    identity: Arc<Identity>,
    link: Link,
    outbox: Outbox,
    settings: Telemetry,
    resources: Resources,
    /// Halved when a parcel turns out too large for the broker.
    parcel_samples: usize,
}

impl Reporter {
    fn sample(&mut self) -> Result<(), OutboxError> {
        let models = match self.settings.level {
            TelemetryLevel::Metrics => self.workshop.engine.take_samples(),
            TelemetryLevel::Health | TelemetryLevel::Off => Vec::new(),
        };
        let device = self.resources.sample(self.workshop.state.root());
        // The reserve is for what must be written.
        if device.disk_free_bytes < self.workshop.reserve() {
            warn!("disk nearly full; telemetry sample not kept");
            return Ok(());
        }
        self.outbox.push(&Sample {
            sequence: self.outbox.next_sequence(),
            at: clock(),
            interval_seconds: self.settings.interval_seconds,
            models,
            device,
        })
    }

    /// Sends parcel after parcel while the broker takes them.
    async fn send(&mut self) -> Result<(), ReportError> {
        while let Some(parcel) = self.outbox.parcel(self.parcel_samples, PARCEL_BYTES)? {
            let message = self.message(&parcel)?;
            match self.link.publish(&self.topic, message, false).await {
                Ok(()) => self.outbox.arrived(&parcel)?,
                Err(LinkError::TooLarge { .. }) if parcel.samples.len() > 1 => {
                    self.parcel_samples = parcel.samples.len() / 2;
                }
                Err(problem @ LinkError::TooLarge { .. }) => {
                    // It would be in the way of all others for ever.
                    warn!(%problem, "telemetry sample discarded");
                    self.outbox.discard(&parcel)?;
                }
                Err(LinkError::NotConnected | LinkError::Lost) => return Ok(()),
                Err(problem) => return Err(problem.into()),
            }
        }
        Ok(())
    }

    fn message(&self, parcel: &Parcel) -> Result<Vec<u8>, ReportError> {
        let batch = TelemetryBatch {
            format: FORMAT,
            device: self.identity.device.clone(),
            boot_id: self.workshop.board.boot_id().to_owned(),
            samples: parcel.samples.clone(),
            dropped: self.outbox.dropped(),
        };
        let payload = codec::encode("telemetry", &batch).map_err(SpeakError::from)?;
        let message = sealed(&self.identity, Purpose::Telemetry, payload)?;
        zstd::bulk::compress(&message, 3).map_err(ReportError::Compress)
    }
}

#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Speak(#[from] SpeakError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot compress a telemetry message")]
    Compress(#[source] std::io::Error),
}
