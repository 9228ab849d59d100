//! Telemetry: a sample each interval into the outbox, and from there to the broker whenever it is there.
//!
//! The list of what may leave is the type [`Sample`]; the level decides how much of it is filled in. Trouble
//! here is reported and never more than that: it is the least important thing an agent does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use edgeward_models::DeviceId;
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
use super::pause;
use super::speaker::{SpeakError, sealed};
use crate::config::{Telemetry, TelemetryLevel};
use crate::watch::resources::Resources;

/// What travels together, before compression.
const PARCEL_SAMPLES: usize = 32;
const PARCEL_BYTES: usize = 32 * 1024;
/// After refusals by the broker at most.
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
    let period = Duration::from_secs(u64::from(settings.interval_seconds.max(1)));
    let mut reporter = Reporter {
        topic: Topic::Telemetry(identity.device.clone()).in_fleet(&identity.fleet),
        workshop,
        identity,
        link,
        outbox: None,
        trouble: None,
        unkept: 0,
        settings,
        resources: Resources::new(),
        parcel_samples: PARCEL_SAMPLES,
    };
    reporter.open().await;
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    timer.reset();
    let mut sessions = reporter.link.sessions();
    let (mut paused_until, mut failures) = (None, 0);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = timer.tick() => {
                if reporter.outbox.is_none() {
                    reporter.open().await;
                }
                if let Err(problem) = reporter.sample() {
                    reporter.close(&problem).await;
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
            match sent {
                Ok(()) => failures = 0,
                Err(ReportError::Outbox(problem)) => reporter.close(&problem).await,
                Err(problem) => {
                    warn!(problem = %chain(&problem), "telemetry not sent");
                    failures += 1;
                    paused_until = Some(now + pause::after(failures).min(REFUSED_PAUSE));
                }
            }
        }
        reporter.tell();
    }
}

/// What would be sent if the interval ended now; `None` where nothing is.
pub fn preview(workshop: &Workshop, device: &DeviceId) -> Option<TelemetryBatch> {
    let settings = &workshop.config.telemetry;
    let models = match settings.level {
        TelemetryLevel::Off => return None,
        TelemetryLevel::Health => Vec::new(),
        TelemetryLevel::Metrics => workshop.engine.peek_samples(),
    };
    let figures = &workshop.board.figures;
    let sample = Sample {
        sequence: 1,
        at: clock(),
        interval_seconds: settings.interval_seconds,
        models,
        device: Resources::new().sample(workshop.state.root()),
    };
    Some(TelemetryBatch {
        format: FORMAT,
        device: device.clone(),
        boot_id: workshop.board.boot_id().to_owned(),
        samples: vec![sample],
        dropped: figures.lost_samples.load(Ordering::Relaxed),
    })
}

struct Reporter {
    topic: String,
    workshop: Arc<Workshop>,
    identity: Arc<Identity>,
    link: Link,
    /// Absent while it cannot be used; tried again with each sample.
    outbox: Option<Outbox>,
    /// What went wrong with it last.
    trouble: Option<String>,
    /// Samples that were not kept and are not counted in the outbox yet.
    unkept: u64,
    settings: Telemetry,
    resources: Resources,
    /// Halved when a parcel turns out too large for the broker.
    parcel_samples: usize,
}

impl Reporter {
    async fn open(&mut self) {
        let (directory, limit) = (self.workshop.state.outbox(), self.settings.outbox_bytes);
        // A thread of its own: opening reads everything, and a damaged store may panic.
        let opened = tokio::task::spawn_blocking(move || Outbox::open(&directory, limit)).await;
        let trouble = match opened {
            Ok(Ok((outbox, damage))) => {
                self.outbox = Some(outbox);
                damage.map(|damage| format!("it was damaged and begins anew: {damage}"))
            }
            Ok(Err(e)) => Some(chain(&e)),
            Err(e) => Some(e.to_string()),
        };
        if trouble.is_some() && trouble != self.trouble {
            error!(problem = ?trouble, "the telemetry outbox failed");
            self.trouble = trouble;
        }
        self.tell();
    }

    /// Lets go of an outbox that failed.
    async fn close(&mut self, problem: &OutboxError) {
        error!(problem = %chain(problem), "the telemetry outbox failed and is opened anew");
        self.trouble = Some(chain(problem));
        if let Some(outbox) = self.outbox.take() {
            // It may panic here as well.
            let _ = tokio::task::spawn_blocking(move || drop(outbox)).await;
        }
    }

    /// Shows what was lost.
    fn tell(&self) {
        let lost = self.unkept + self.outbox.as_ref().map_or(0, Outbox::dropped);
        let (samples, bytes) = self.outbox.as_ref().map_or((0, 0), Outbox::waiting);
        let figures = &self.workshop.board.figures;
        figures.outbox_samples.store(samples, Ordering::Relaxed);
        figures.outbox_bytes.store(bytes, Ordering::Relaxed);
        figures.lost_samples.store(lost, Ordering::Relaxed);
        let mut texts = Vec::new();
        if lost > 0 {
            texts.push(format!(
                "{lost} telemetry samples were lost before they were sent"
            ));
        }
        if let Some(trouble) = &self.trouble {
            texts.push(match self.outbox {
                Some(_) => format!("the telemetry outbox failed: {trouble}"),
                None => format!("no telemetry is kept, its outbox fails: {trouble}"),
            });
        }
        self.workshop.board.warn("telemetry", texts);
    }

    fn sample(&mut self) -> Result<(), OutboxError> {
        let models = match self.settings.level {
            TelemetryLevel::Metrics => self.workshop.engine.take_samples(),
            TelemetryLevel::Health | TelemetryLevel::Off => Vec::new(),
        };
        let device = self.resources.sample(self.workshop.state.root());
        self.unkept += 1;
        // The reserve is for what must be written.
        if device.disk_free_bytes < self.workshop.reserve() {
            warn!("disk nearly full; telemetry sample not kept");
            return Ok(());
        }
        let Some(outbox) = &mut self.outbox else {
            return Ok(());
        };
        outbox.push(&Sample {
            sequence: outbox.next_sequence(),
            at: clock(),
            interval_seconds: self.settings.interval_seconds,
            models,
            device,
        })?;
        self.unkept -= 1;
        outbox.count_dropped(self.unkept)?;
        self.unkept = 0;
        Ok(())
    }

    /// Sends parcel after parcel while the broker takes them.
    async fn send(&mut self) -> Result<(), ReportError> {
        while let Some(outbox) = &mut self.outbox
            && let Some(parcel) = outbox.parcel(self.parcel_samples, PARCEL_BYTES)?
        {
            let dropped = outbox.dropped();
            let message = self.message(&parcel, dropped)?;
            let published = self.link.publish(&self.topic, message, false).await;
            let Some(outbox) = &mut self.outbox else {
                return Ok(());
            };
            match published {
                Ok(()) => {
                    outbox.arrived(&parcel)?;
                    let figure = &self.workshop.board.figures.sent_samples;
                    figure.fetch_add(parcel.samples.len() as u64, Ordering::Relaxed);
                }
                Err(LinkError::TooLarge { .. }) if parcel.samples.len() > 1 => {
                    self.parcel_samples = parcel.samples.len() / 2;
                }
                Err(problem @ LinkError::TooLarge { .. }) => {
                    // It would be in the way of all others for ever.
                    warn!(%problem, "telemetry sample discarded");
                    outbox.discard(&parcel)?;
                }
                Err(LinkError::NotConnected | LinkError::Lost) => return Ok(()),
                Err(problem) => return Err(problem.into()),
            }
        }
        Ok(())
    }

    fn message(&self, parcel: &Parcel, dropped: u64) -> Result<Vec<u8>, ReportError> {
        let batch = TelemetryBatch {
            format: FORMAT,
            device: self.identity.device.clone(),
            boot_id: self.workshop.board.boot_id().to_owned(),
            samples: parcel.samples.clone(),
            dropped,
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
