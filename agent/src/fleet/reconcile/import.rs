//! A person's wish to apply a repository from a directory, and what they are told.

use std::sync::Arc;

use edgeward_models::chunk::Source;
use edgeward_models::fleet::status::Phase;
use serde_json::json;
use tokio::sync::mpsc;

use super::{LookRequest, Reconciler};
use crate::fleet::job::FaultKind;

/// A person's wish to apply a repository from a directory.
pub struct ImportRequest {
    pub source: Arc<dyn Source>,
    pub progress: mpsc::Sender<ImportEvent>,
}

/// What an import has to say.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportEvent {
    Progress(String),
    /// The last one. `lines` hold one sentence per model.
    Done {
        outcome: ImportOutcome,
        lines: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportOutcome {
    Applied,
    /// The directory's repository is older than this device's state: nothing to do.
    Older,
    Refused,
    Failed,
}

impl Reconciler {
    pub(super) fn import(&mut self, request: ImportRequest) {
        if self.membership.is_none() {
            let line = match self.workshop.board.facts().last_error {
                Some(problem) => format!("nothing can be verified on this device: {problem}"),
                None => "this device is not a member of a fleet, so nothing can be verified; `edgeward enroll` \
                         makes it one"
                    .to_owned(),
            };
            answer(Some(request.progress), ImportOutcome::Failed, vec![line]);
            return;
        }
        self.look_first(LookRequest {
            source: request.source,
            timestamp: None,
            import: Some(request.progress),
        });
    }

    /// An import is over when nothing works towards its wishes any more.
    pub(super) fn finish_import(&mut self) {
        let Some(goal) = self.goal.clone().filter(|_| self.import.is_some()) else {
            return;
        };
        let busy = |m| {
            let active = self.running.contains_key(m) || self.reloading.contains_key(m);
            active || self.beside.is_busy(m)
        };
        let busy = goal.wishes.keys().any(busy);
        if busy {
            return;
        }
        let facts = self.workshop.board.facts();
        let mut outcome = ImportOutcome::Applied;
        let mut lines = Vec::new();
        for (model, wish) in &goal.wishes {
            let line = facts.models.get(model).cloned().unwrap_or_default();
            let active = self.records.get(model).and_then(|r| r.active.as_ref());
            let runs = active.map_or("nothing".to_owned(), |a| a.version.to_string());
            let (beside, wrong) = self.beside_lines(model, &line);
            let reason = line.reason.unwrap_or_default();
            lines.push(match line.phase {
                Phase::Active => format!("{model} {runs} is active"),
                Phase::Waiting => format!("{model}: {runs} stays active; {reason}"),
                _ => {
                    let attempt = self.attempts.get(model).or(self.reloads.get(model));
                    let device = attempt.is_some_and(|a| {
                        matches!(a.error.kind, FaultKind::Device | FaultKind::Carrier)
                    });
                    outcome = if device && outcome != ImportOutcome::Refused {
                        ImportOutcome::Failed
                    } else {
                        ImportOutcome::Refused
                    };
                    format!(
                        "{model} {} was not taken, {runs} stays active: {reason}",
                        wish.version
                    )
                }
            });
            lines.extend(beside);
            if wrong && outcome == ImportOutcome::Applied {
                outcome = ImportOutcome::Refused;
            }
        }
        if lines.is_empty() {
            lines.push("nothing is wished for on this device".to_owned());
        }
        self.workshop.note(
            "import",
            json!({"timestamp": goal.repository.timestamp_version(), "outcome": outcome}),
        );
        answer(self.import.take(), outcome, lines);
    }
}

pub(super) fn answer(
    import: Option<mpsc::Sender<ImportEvent>>,
    outcome: ImportOutcome,
    lines: Vec<String>,
) {
    if let Some(import) = import {
        // Whoever asked may have gone.
        let _ = import.try_send(ImportEvent::Done { outcome, lines });
    }
}
