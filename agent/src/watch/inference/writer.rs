//! The thread that writes inference records and settles accounts; the only one that waits for the disk.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tracing::{error, info};

use super::caller::{Caller, Line};
use super::{COMMIT_AFTER, COMMIT_RECORDS, MINUTE, Record, Shared};
use crate::config::{Config, InferenceRecords};
use crate::serving::Outcome;
use crate::watch::audit::{Audit, INFERENCES, New, SideLog};
use crate::watch::usage::{self, Months};
use crate::worker::turns;

/// One request, and one minute of one caller with one version.
const EVENT: &str = "inference";
const MINUTE_EVENT: &str = "inference-minute";
/// Records that could not be written.
pub(super) const LOST_EVENT: &str = "inferences-lost";

pub(super) struct Writer {
    mode: InferenceRecords,
    /// Absent where nothing is to be recorded.
    log: Option<SideLog>,
    months: Months,
    lost: u64,
    /// Whether the last write failed: said once.
    failing: bool,
}

/// What is to be done.
struct Work {
    records: Vec<Record>,
    lost: u64,
    /// Since when accounts grew, if they are to be settled.
    settle: Option<Instant>,
    stop: bool,
}

impl Shared {
    /// Waits until there is something to write.
    fn wait(&self) -> Work {
        let mut inbox = self.inbox();
        loop {
            let commit = inbox.oldest.map(|oldest| oldest + COMMIT_AFTER);
            let settle = inbox.unsettled.map(|first| first + MINUTE);
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
            let (stop, full) = (inbox.stop, inbox.records.len() >= COMMIT_RECORDS);
            if stop || full || due(commit) || due(settle) {
                inbox.oldest = None;
                let settles = stop || due(settle);
                return Work {
                    records: std::mem::take(&mut inbox.records),
                    lost: std::mem::take(&mut inbox.lost),
                    settle: settles.then(|| inbox.unsettled.take()).flatten(),
                    stop,
                };
            }
            let next = commit.into_iter().chain(settle).min();
            inbox = match next {
                None => self.news.wait(inbox).unwrap_or_else(|e| e.into_inner()),
                Some(next) => {
                    let time = next.saturating_duration_since(Instant::now());
                    let woken = self.news.wait_timeout(inbox, time);
                    woken.unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
    }
}

impl Writer {
    pub(super) fn new(config: &Config, audit: Audit) -> Self {
        let (directory, bytes) = (&config.state_directory, config.audit.inference_bytes);
        let mode = config.audit.inference;
        Self {
            mode,
            log: (mode != InferenceRecords::Off)
                .then(|| SideLog::new(directory, INFERENCES, bytes, audit)),
            months: Months::new(directory),
            lost: 0,
            failing: false,
        }
    }

    pub(super) fn run(mut self, shared: &Shared) {
        turns::give_way(turns::NICENESS);
        loop {
            let work = shared.wait();
            self.lost += work.lost;
            let mut entries: Vec<New> = work.records.iter().map(entry).collect();
            if let Some(since) = work.settle {
                let from = Timestamp::now() - since.elapsed();
                let accounts: Vec<_> = shared
                    .callers()
                    .into_iter()
                    .flat_map(|caller| {
                        let lines = caller.take_recent().into_iter();
                        lines.map(|line| (caller.clone(), line)).collect::<Vec<_>>()
                    })
                    .collect();
                if self.mode == InferenceRecords::PerCallerMinute {
                    let minutes = accounts.iter();
                    entries.extend(minutes.map(|(caller, line)| minute(caller, line, from)));
                }
                self.settle(accounts.iter().map(|(caller, line)| row(caller, line)));
            }
            self.commit(entries);
            if let Some(log) = &mut self.log {
                log.check_point(work.stop);
            }
            if work.stop {
                return;
            }
        }
    }

    fn commit(&mut self, entries: Vec<New>) {
        let count = entries.len() as u64;
        let Some(log) = self.log.as_mut().filter(|_| count > 0) else {
            return;
        };
        let lost = (self.lost > 0).then(|| New::now(LOST_EVENT, json!({"records": self.lost})));
        let written = log.append(lost.into_iter().chain(entries));
        match written {
            Ok(()) => {
                self.lost = 0;
                if std::mem::take(&mut self.failing) {
                    info!("inference records are written again");
                }
            }
            Err(problem) => {
                self.lost += count;
                if !std::mem::replace(&mut self.failing, true) {
                    error!(%problem, source = ?std::error::Error::source(&problem), "inference records are lost until they can be written");
                }
            }
        }
    }

    fn settle(&mut self, rows: impl Iterator<Item = usage::Row>) {
        if let Err(problem) = self.months.add(rows) {
            error!(%problem, "the month's usage could not be written; it is kept and tried again with the next minute");
        }
    }
}

fn entry(record: &Record) -> New {
    let mut fields = named(&record.caller, record.manifest.as_deref());
    fields.insert("outcome".to_owned(), record.outcome.word().into());
    if let Some(id) = &record.id {
        fields.insert("id".to_owned(), id.as_str().into());
    }
    New {
        event: EVENT,
        at: Timestamp::try_from(record.at).unwrap_or_default(),
        fields: Value::Object(fields),
    }
}

fn minute(caller: &Caller, line: &Line, from: Timestamp) -> New {
    let mut fields = named(caller, line.manifest.as_deref());
    let outcomes = Outcome::ALL.iter().zip(line.outcomes);
    let outcomes: Map<_, _> = outcomes
        .filter(|(_, count)| *count > 0)
        .map(|((_, word), count)| ((*word).to_owned(), count.into()))
        .collect();
    let usage = line.usage;
    fields.insert("from".to_owned(), from.to_string().into());
    fields.insert("outcomes".to_owned(), Value::Object(outcomes));
    let compute_ms = usage.compute.as_micros() as f64 / 1000.0;
    fields.insert("compute_ms".to_owned(), compute_ms.into());
    fields.insert("received_bytes".to_owned(), usage.received_bytes.into());
    fields.insert("sent_bytes".to_owned(), usage.sent_bytes.into());
    New::now(MINUTE_EVENT, Value::Object(fields))
}

/// Who, and which model and version.
fn named(caller: &Caller, manifest: Option<&edgeward_models::Manifest>) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("caller".to_owned(), caller.who.to_string().into());
    if let Some(manifest) = manifest {
        fields.insert("model".to_owned(), manifest.model.to_string().into());
        fields.insert("version".to_owned(), manifest.version.to_string().into());
    }
    fields
}

fn row(caller: &Caller, line: &Line) -> usage::Row {
    let manifest = line.manifest.as_deref();
    usage::Row {
        caller: caller.who.to_string(),
        model: manifest.map(|m| m.model.to_string()),
        version: manifest.map(|m| m.version.to_string()),
        requests: line.usage.requests,
        succeeded: line.outcomes[Outcome::Succeeded as usize],
        compute_us: u64::try_from(line.usage.compute.as_micros()).unwrap_or(u64::MAX),
        received_bytes: line.usage.received_bytes,
        sent_bytes: line.usage.sent_bytes,
    }
}
