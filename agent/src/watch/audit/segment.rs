//! One file of the audit log, and the files that there are.
//!
//! A segment holds JSON lines; the first one goes on from the last one of the segment before. The security log's
//! newest is `audit.log`; those before it lie in `audit/`, each named by the number of its first entry.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use edgeward_models::Digest;
use edgeward_models::durable::DurableError;
use serde::{Deserialize, Serialize};

use super::book::Book;

/// A line longer than this was not written by an agent.
pub(super) const MAX_LINE_BYTES: u64 = 64 * 1024;

/// One line of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counts up from 1.
    pub number: u64,
    /// By the device's clock, for people; the order is given by the chain.
    pub at: String,
    pub event: String,
    pub fields: serde_json::Value,
    /// SHA-256 of the line before, without its line feed; of the first line: of nothing.
    pub previous: Digest,
}

/// A place in the chain: so many entries, and the digest of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub length: u64,
    pub head: Digest,
}

impl Default for Position {
    fn default() -> Self {
        Self {
            length: 0,
            head: Digest::of(b""),
        }
    }
}

impl Position {
    /// Whether `entry` is the next one.
    pub fn leads_to(&self, entry: &Entry) -> bool {
        entry.number == self.length + 1 && entry.previous == self.head
    }

    pub fn after(entry: &Entry, line: &[u8]) -> Self {
        Self {
            length: entry.number,
            head: Digest::of(line),
        }
    }

    pub fn before(entry: &Entry) -> Self {
        Self {
            length: entry.number.saturating_sub(1),
            head: entry.previous,
        }
    }
}

/// A line of a segment.
pub(super) enum Line {
    /// An entry, and its bytes without the line feed.
    Entry(Entry, Vec<u8>),
    /// The last one has no line feed or is blank: a power cut during an append.
    Torn,
    /// No entry.
    Foreign,
}

/// Reads a segment line by line.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Bytes of the lines read so far.
    pub(super) bytes: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, DurableError> {
        let file = File::open(path).map_err(failed("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            bytes: 0,
        })
    }

    /// `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>, DurableError> {
        let mut line = Vec::new();
        // The limit also bounds what a foreign file without line feeds can make us allocate.
        let read = io::Read::take(&mut self.reader, MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(failed("read", &self.path))?;
        if read == 0 {
            return Ok(None);
        }
        self.bytes += read as u64;
        let rest = self.reader.fill_buf().map_err(failed("read", &self.path))?;
        let at_end = rest.is_empty();
        let blank = line.iter().all(|&b| b == 0);
        if line.pop_if(|b| *b == b'\n').is_none() {
            return Ok(Some(match at_end || blank {
                true => Line::Torn,
                false => Line::Foreign,
            }));
        }
        Ok(Some(match serde_json::from_slice(&line) {
            Ok(entry) => Line::Entry(entry, line),
            Err(_) => Line::Foreign,
        }))
    }
}

/// A log's archived segments below a state directory, oldest first, each with the number of its first entry.
pub(super) fn archived(directory: &Path, book: Book) -> Result<Vec<(u64, PathBuf)>, DurableError> {
    let archive = directory.join(book.archive);
    let entries = match std::fs::read_dir(&archive) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed("list", &archive)(e)),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", &archive))?.path();
        let stem = path.file_name().and_then(|name| name.to_str());
        if let Some(first) = stem.and_then(|name| name.strip_suffix(".log")?.parse().ok()) {
            segments.push((first, path));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Where a segment belongs when it is full.
pub(super) fn archive_path(directory: &Path, book: Book, first: u64) -> PathBuf {
    directory
        .join(book.archive)
        .join(format!("{first:012}.log"))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DurableError {
    move |source| DurableError {
        action,
        path: path.to_owned(),
        source,
    }
}
