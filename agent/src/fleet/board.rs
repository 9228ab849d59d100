//! What this device would say of itself right now: one board that every task writes on and `status` reads.
//!
//! Changing something that others can see wakes whoever watches [`Board::changes`].

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use edgeward_models::fleet::health::Soak;
use edgeward_models::fleet::status::{AppliedGroup, FORMAT, ModelStatus, Phase, Status};
use edgeward_models::name::RolloutId;
use edgeward_models::{DeviceId, ModelName, Version};
use jiff::Timestamp;
use tokio::sync::watch;

use super::job::Role;
use super::metrics::Figures;
use crate::serving::Engine;
use crate::watch::audit::Audit;
pub use routing::RoutingLine;

mod routing;

/// The longest text for an operator that a status carries, in bytes.
const MAX_REASON_BYTES: usize = 600;
/// Warnings of one source that a status carries.
const MAX_WARNINGS: usize = 8;

pub struct Board {
    facts: Mutex<Facts>,
    changes: watch::Sender<u64>,
    boot_id: String,
    pub figures: Figures,
}

/// What the fleet side knows beside the engine's own list.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub groups: Vec<AppliedGroup>,
    pub models: BTreeMap<ModelName, Line>,
    pub timestamp_version: u64,
    pub stale: bool,
    pub last_error: Option<String>,
    /// By source: each replaces its own.
    pub warnings: BTreeMap<&'static str, Vec<String>>,
    /// Broker and state of the link, in words; absent without a fleet.
    pub link: Option<String>,
    pub connected: bool,
}

/// One model's line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub previous: Option<Version>,
    pub target: Option<Version>,
    /// The rollout that asks for it.
    pub rollout: Option<RolloutId>,
    pub phase: Phase,
    pub soak: Option<Soak>,
    pub reason: Option<String>,
    pub routing: Option<RoutingLine>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            previous: None,
            target: None,
            rollout: None,
            phase: Phase::Idle,
            soak: None,
            reason: None,
            routing: None,
        }
    }
}

impl Board {
    pub fn new() -> Self {
        Self {
            facts: Mutex::default(),
            changes: watch::Sender::new(0),
            boot_id: hex::encode(rand::random::<[u8; 8]>()),
            figures: Figures::default(),
        }
    }

    /// Drawn anew at each start of the agent.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Wakes at each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something that a status shows has changed elsewhere (the engine).
    pub fn touch(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    pub fn facts(&self) -> Facts {
        self.lock().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.lock());
        self.touch();
    }

    /// Changes one model's line.
    pub fn model(&self, model: &ModelName, change: impl FnOnce(&mut Line)) {
        let changed = {
            let mut facts = self.lock();
            let line = facts.models.entry(model.clone()).or_default();
            let before = line.clone();
            change(line);
            line.reason = line.reason.take().map(shortened);
            *line != before
        };
        if changed {
            self.touch();
        }
    }

    /// How far a version is, for whatever it is brought here.
    pub fn progress(
        &self,
        model: &ModelName,
        version: &Version,
        role: Role,
        phase: Phase,
        reason: Option<String>,
    ) {
        self.model(model, |line| match (role, &mut line.routing) {
            (Role::Active, _) => (line.phase, line.reason) = (phase, reason),
            (Role::Beside, Some(routing)) => routing.progress(version, phase, reason),
            // It is not wanted any more.
            (Role::Beside, None) => {}
        });
    }

    /// The newest verified metadata was signed at this time.
    pub fn trusts(&self, signed_at: Timestamp) {
        let figure = &self.figures.metadata_signed_at;
        figure.store(signed_at.as_second(), Ordering::Relaxed);
    }

    pub fn error(&self, text: impl Into<String>) {
        let text = shortened(text.into());
        if self.lock().last_error.as_ref() != Some(&text) {
            self.change(|facts| facts.last_error = Some(text));
        }
    }

    /// Replaces what `source` warns of; nothing when there is nothing more to warn of.
    pub fn warn(&self, source: &'static str, texts: Vec<String>) {
        let texts: Vec<String> = texts
            .into_iter()
            .take(MAX_WARNINGS)
            .map(shortened)
            .collect();
        let known = self
            .lock()
            .warnings
            .get(source)
            .cloned()
            .unwrap_or_default();
        if known != texts {
            self.change(|facts| drop(facts.warnings.insert(source, texts)));
        }
    }

    /// The whole status. `sequence` orders statuses of one boot.
    pub fn status(
        &self,
        device: DeviceId,
        sequence: u64,
        engine: &Engine,
        audit: &Audit,
        disk_free_bytes: u64,
    ) -> Status {
        let facts = self.facts();
        let mut sandbox = "enforced".to_owned();
        let mut lines = facts.models;
        let mut models: Vec<ModelStatus> = Vec::new();
        let mut beside = Vec::new();
        for served in engine.versions() {
            if served.sandbox != "enforced" {
                sandbox.clone_from(&served.sandbox);
            }
            if served.beside {
                beside.push(served);
                continue;
            }
            let line = lines.remove(&served.model).unwrap_or_default();
            let mut status = model_status(served.model, line);
            status.active = Some(served.active);
            if !served.ready {
                status.phase = Phase::BackingOff;
                status.reason = served.reason.map(shortened).or(status.reason);
            }
            models.push(status);
        }
        models.extend(
            lines
                .into_iter()
                .map(|(model, line)| model_status(model, line)),
        );
        models.sort_by(|a, b| a.model.cmp(&b.model));
        let shadows = engine.shadows();
        for model in &mut models {
            routing::complete(model, &beside);
            let shadow = shadows.iter().find(|(name, ..)| *name == model.model);
            if let (Some((_, status, _)), Some(routing)) = (shadow, &mut model.routing) {
                routing.shadow = Some(status.clone());
            }
        }
        let (audit_length, audit_head) = audit.head();
        Status {
            format: FORMAT,
            device,
            boot_id: self.boot_id.clone(),
            sequence,
            at: Timestamp::now().as_second(),
            agent_version: crate::VERSION.to_owned(),
            groups: facts.groups,
            models,
            timestamp_version: facts.timestamp_version,
            stale: facts.stale,
            sandbox,
            audit_length,
            audit_head,
            disk_free_bytes,
            last_error: facts.last_error,
            warnings: facts.warnings.into_values().flatten().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        // Facts are plain values: a panicking writer leaves at worst one of them old.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

fn model_status(model: ModelName, line: Line) -> ModelStatus {
    ModelStatus {
        model,
        active: None,
        previous: line.previous,
        target: line.target,
        rollout: line.rollout,
        phase: line.phase,
        soak: line.soak,
        reason: line.reason,
        routing: line.routing.map(RoutingLine::status),
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_REASON_BYTES {
        let end = text.floor_char_boundary(MAX_REASON_BYTES);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// An error with all its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_changes_wake_watchers() {
        let board = Board::new();
        let mut changes = board.changes();
        changes.mark_unchanged();
        let model: ModelName = "digits".parse().expect("name");
        board.model(&model, |line| line.phase = Phase::Proving);
        assert!(changes.has_changed().expect("open"));
        changes.mark_unchanged();
        board.model(&model, |line| line.phase = Phase::Proving);
        assert!(!changes.has_changed().expect("open"));
        board.error("x".repeat(5000));
        assert!(board.facts().last_error.expect("error").len() < 700);
    }
}
