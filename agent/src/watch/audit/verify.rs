//! The whole audit log looked at: every segment, every line, and where something is not as it was written.
//!
//! `edgeward audit` uses it, beside a running agent or without one. That the newest entries were cut off cannot be
//! seen from the security log alone; somebody outside remembers how long it was (`fleetctl`, or `--expect`). How long
//! the other logs were, the security log says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeward_models::Digest;
use edgeward_models::durable::DurableError;
use serde::Serialize;

use super::book::{Book, CHECKPOINT_EVENT, SECURITY, Which};
use super::chain::SEGMENT_EVENT;
use super::segment::{Entry, Line, Lines, Position, archived, failed};

/// Further findings are only counted.
const MAX_FINDINGS: usize = 100;

/// What the log is like.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Which log.
    pub log: &'static str,
    /// Its files, oldest first.
    pub segments: usize,
    /// Numbers of the first and the last entry that are there; 0: none.
    pub first: u64,
    pub last: u64,
    /// Digest of the last one.
    pub head: Option<Digest>,
    /// The last line is incomplete: the device lost power, or the agent is writing it.
    pub torn: bool,
    pub findings: Vec<Finding>,
    /// Findings beyond those that are listed.
    pub more: usize,
}

/// Something that no agent wrote so.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub file: String,
    pub line: u64,
    pub problem: String,
}

/// An entry that must be in the log, as it was heard of elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub number: u64,
    pub digest: Digest,
}

/// Entries that must be there, by their numbers.
type Expectations = BTreeMap<u64, Digest>;

/// Looks at all logs, the security log first.
pub fn verify(directory: &Path, expected: Option<Expected>) -> Result<Vec<Report>, DurableError> {
    let expected = expected.map(|e| (e.number, e.digest)).into_iter().collect();
    let mut checkpoints = Checkpoints::default();
    let mut reports = vec![read_expecting(
        directory,
        SECURITY,
        expected,
        |entry, _| {
            checkpoints.note(entry);
            Ok(())
        },
    )?];
    reports[0].findings.append(&mut checkpoints.findings);
    for book in Which::ALL.map(Which::book) {
        if book != SECURITY {
            let mut expected = checkpoints.of.remove(book.name).unwrap_or_default();
            // What was removed when there was too much of it is not missed.
            let kept = archived(directory, book)?;
            let first = kept.first().map_or(0, |(first, _)| *first);
            expected = expected.split_off(&first);
            reports.push(read_expecting(directory, book, expected, |_, _| Ok(()))?);
        }
    }
    Ok(reports)
}

/// Reads all of one log; `hear` is given each entry with its exact line.
pub fn read(
    directory: &Path,
    book: Book,
    hear: impl FnMut(&Entry, &[u8]) -> std::io::Result<()>,
) -> Result<Report, DurableError> {
    read_expecting(directory, book, Expectations::new(), hear)
}

fn read_expecting(
    directory: &Path,
    book: Book,
    expected: Expectations,
    mut hear: impl FnMut(&Entry, &[u8]) -> std::io::Result<()>,
) -> Result<Report, DurableError> {
    let archived = archived(directory, book)?.into_iter();
    let mut files: Vec<PathBuf> = archived.map(|(_, path)| path).collect();
    let newest = directory.join(book.file);
    // Only the security log is there on every device.
    if book == SECURITY || newest.exists() {
        files.push(newest);
    }
    let mut reading = Reading {
        report: Report {
            log: book.name,
            segments: files.len(),
            ..Report::default()
        },
        book,
        position: None,
        begins_at: 1,
        expected,
    };
    for file in &files {
        let failed = failed("pass on what is in", file);
        reading.file(file, &mut hear).map_err(|error| match error {
            Stop::Read(error) => error,
            Stop::Hear(error) => failed(error),
        })?;
    }
    Ok(reading.end())
}

/// What the security log says of the others.
#[derive(Default)]
struct Checkpoints {
    of: BTreeMap<String, Expectations>,
    findings: Vec<Finding>,
}

impl Checkpoints {
    fn note(&mut self, entry: &Entry) {
        let fields = &entry.fields;
        if entry.event != CHECKPOINT_EVENT {
            return;
        }
        let digest = fields["head"].as_str().and_then(|text| text.parse().ok());
        let said = (fields["log"].as_str(), fields["entries"].as_u64(), digest);
        let (Some(log), Some(entries), Some(digest)) = said else {
            return;
        };
        let before = self.of.entry(log.to_owned()).or_default();
        let longest = before.last_key_value().map_or(0, |(number, _)| *number);
        let other = before
            .insert(entries, digest)
            .is_some_and(|other| other != digest);
        if entries < longest || other {
            self.findings.push(Finding {
                file: SECURITY.file.to_owned(),
                line: 0,
                problem: format!(
                    "entry {}: the log of {log} has {entries} entries, where it had {longest} before: it was cut \
                     short or changed in between",
                    entry.number
                ),
            });
            // What follows goes on from here.
            before.retain(|number, _| *number <= entries);
        }
    }
}

enum Stop {
    Read(DurableError),
    Hear(std::io::Error),
}

struct Reading {
    report: Report,
    book: Book,
    position: Option<Position>,
    /// The first entry that must be there, as the newest entry about it says.
    begins_at: u64,
    /// Those that were not met yet.
    expected: Expectations,
}

impl Reading {
    fn file(
        &mut self,
        path: &Path,
        hear: &mut impl FnMut(&Entry, &[u8]) -> std::io::Result<()>,
    ) -> Result<(), Stop> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut lines = Lines::open(path).map_err(Stop::Read)?;
        let mut number = 0;
        while let Some(line) = lines.next().map_err(Stop::Read)? {
            number += 1;
            match line {
                Line::Entry(entry, bytes) => {
                    self.entry(&name, number, &entry, &bytes);
                    hear(&entry, &bytes).map_err(Stop::Hear)?;
                }
                Line::Torn if name == self.book.file => self.report.torn = true,
                Line::Torn | Line::Foreign => self.find(&name, number, "it is no entry".to_owned()),
            }
        }
        Ok(())
    }

    fn entry(&mut self, file: &str, line: u64, entry: &Entry, bytes: &[u8]) {
        match self.position {
            None => self.report.first = entry.number,
            Some(before) if before.leads_to(entry) => {}
            Some(Position { length, .. }) => {
                let problem = match entry.number {
                    n if n == length + 1 => {
                        format!("entry {length} was changed: entry {n} names another digest of it")
                    }
                    n if n == length + 2 => format!("entry {} is missing", n - 1),
                    n if n > length => format!("entries {} to {} are missing", length + 1, n - 1),
                    n => format!("entry {n} stands after entry {length}: out of order or repeated"),
                };
                self.find(file, line, problem);
            }
        }
        let position = Position::after(entry, bytes);
        let expected = self.expected.remove(&entry.number);
        if expected.is_some_and(|digest| digest != position.head) {
            let problem = format!("entry {} is not the one that was expected", entry.number);
            self.find(file, line, problem);
        }
        if entry.event == SEGMENT_EVENT
            && let Some(begins_at) = entry.fields["log_begins_at"].as_u64()
        {
            self.begins_at = begins_at;
        }
        self.position = Some(position);
    }

    fn find(&mut self, file: &str, line: u64, problem: String) {
        if self.report.findings.len() >= MAX_FINDINGS {
            self.report.more += 1;
            return;
        }
        self.report.findings.push(Finding {
            file: file.to_owned(),
            line,
            problem,
        });
    }

    fn end(mut self) -> Report {
        if let Some(position) = self.position {
            self.report.last = position.length;
            self.report.head = Some(position.head);
        }
        let (first, begins_at) = (self.report.first, self.begins_at);
        if first > begins_at {
            let problem = format!(
                "entries {begins_at} to {} are missing, and no entry says that they were removed",
                first - 1
            );
            self.find(self.book.file, 0, problem);
        }
        if let Some((number, _)) = self.expected.last_key_value() {
            let problem = format!(
                "entry {number} was there once and is not any more: the log was cut short, it ends with entry {}",
                self.report.last
            );
            self.find(self.book.file, 0, problem);
        }
        self.report
    }
}
