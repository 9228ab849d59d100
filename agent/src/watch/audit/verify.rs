//! The whole audit log looked at: every segment, every line, and where something is not as it was written.
//!
//! `edgeward audit` uses it, beside a running agent or without one. That the newest entries were cut off cannot be
//! seen from the log alone; somebody outside remembers how long it was (`fleetctl`, or `--expect`).

use std::path::{Path, PathBuf};

use edgeward_models::Digest;
use edgeward_models::durable::DurableError;
use serde::Serialize;

use super::segment::{FILE, Line, Lines, Position, archived};
use super::{Entry, SEGMENT_EVENT};

/// Further findings are only counted.
const MAX_FINDINGS: usize = 100;

/// What the log is like.
#[derive(Debug, Default, Serialize)]
pub struct Report {
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

/// Reads all of the log; `hear` is given each entry with its exact line.
pub fn verify(
    directory: &Path,
    expected: Option<Expected>,
    mut hear: impl FnMut(&Entry, &[u8]) -> std::io::Result<()>,
) -> Result<Report, DurableError> {
    let mut files: Vec<PathBuf> = archived(directory)?.into_iter().map(|(_, p)| p).collect();
    files.push(directory.join(FILE));
    let mut reading = Reading {
        report: Report {
            segments: files.len(),
            ..Report::default()
        },
        position: None,
        begins_at: 1,
        expected,
        met: false,
    };
    for file in &files {
        let failed = super::failed("pass on what is in", file);
        reading.file(file, &mut hear).map_err(|error| match error {
            Stop::Read(error) => error,
            Stop::Hear(error) => failed(error),
        })?;
    }
    Ok(reading.end())
}

enum Stop {
    Read(DurableError),
    Hear(std::io::Error),
}

struct Reading {
    report: Report,
    position: Option<Position>,
    /// The first entry that must be there, as the newest entry about it says.
    begins_at: u64,
    expected: Option<Expected>,
    met: bool,
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
                Line::Torn if name == FILE => self.report.torn = true,
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
        if self.expected.is_some_and(|e| e.number == entry.number) {
            self.met = true;
            let digest = self.expected.map(|e| e.digest);
            if digest != Some(position.head) {
                let problem = format!("entry {} is not the one that was expected", entry.number);
                self.find(file, line, problem);
            }
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
            self.find(FILE, 0, problem);
        }
        if let Some(expected) = self.expected.filter(|_| !self.met) {
            let problem = format!(
                "entry {} was there once and is not any more: the log was cut short, it ends with entry {}",
                expected.number, self.report.last
            );
            self.find(FILE, 0, problem);
        }
        self.report
    }
}
