//! One chain of entries in files: opened and mended, appended to, cut into segments.
//!
//! [`super::Audit`] holds the security log's, the writer of inference records its own. The chain never stops the
//! agent from serving: a line torn by a power cut is cut off, a file whose chain is broken is set aside whole and
//! what is good of it goes on, and both are themselves recorded.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use edgeward_models::Digest;
use edgeward_models::durable::{self, Access, DurableError};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{error, warn};

use super::book::Book;
use super::segment::{
    Entry, Line, Lines, MAX_LINE_BYTES, Position, archive_path, archived, failed,
};

/// Recorded by the log itself, first in each new segment: what became of those before.
pub(crate) const SEGMENT_EVENT: &str = "audit-segment";
/// Files with a broken chain that are kept.
const BROKEN_KEPT: u64 = 8;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub segment_bytes: u64,
    pub archives: usize,
}

impl Limits {
    /// Segments of 1 MiB that have so many bytes together, and at least two of them.
    pub fn of_bytes(bytes: u64) -> Self {
        let segment_bytes = 1 << 20;
        let segments = (bytes / segment_bytes).max(2);
        Self {
            segment_bytes,
            archives: usize::try_from(segments - 1).unwrap_or(usize::MAX),
        }
    }
}

/// An entry that is to be written.
pub struct New {
    /// A short constant such as `version-activated`.
    pub event: &'static str,
    pub at: Timestamp,
    /// Names, numbers and digests; never tensors or secrets.
    pub fields: Value,
}

impl New {
    pub fn now(event: &'static str, fields: Value) -> Self {
        Self {
            event,
            at: Timestamp::now(),
            fields,
        }
    }
}

/// A chain that this process appends to.
pub struct Chain {
    book: Book,
    directory: PathBuf,
    file: File,
    path: PathBuf,
    limits: Limits,
    /// The number of this file's first entry, and the bytes of all of its entries.
    first: u64,
    bytes: u64,
    position: Position,
}

/// What a walk through a file found.
struct Walk {
    start: Position,
    position: Position,
    /// Bytes up to the end of the last good line.
    good_bytes: u64,
    end: End,
}

enum End {
    Clean,
    /// A power cut during an append.
    Torn,
    /// A whole line is not the next of the chain.
    Broken,
}

impl Chain {
    /// Opens the newest file and checks its chain. A chain belongs to one process at a time.
    pub fn open(directory: &Path, book: Book, limits: Limits) -> Result<Self, DurableError> {
        durable::create_directory(&directory.join(book.archive))?;
        let path = directory.join(book.file);
        let mut file = open_locked(&path)?;
        // Only the newest two files are read: their number must not make a start slower.
        let before = match archived(directory, book)?.last() {
            None => Some(Position::default()),
            Some((_, path)) => {
                let walk = walk(path, None)?;
                matches!(walk.end, End::Clean).then_some(walk.position)
            }
        };
        let walk = walk(&path, before)?;
        let good = walk.position;
        let mut found = None;
        match walk.end {
            End::Clean => {}
            End::Torn => {
                durable::cut(&file, &path, walk.good_bytes)?;
                warn!(path = %path.display(), entries = good.length, "the audit log's torn last line was cut off");
                let fields = json!({"problem": "the last line was incomplete"});
                found = Some(New::now("audit-repaired", fields));
            }
            End::Broken => {
                let kept = set_aside(&path, book, walk.good_bytes)?;
                error!(path = %path.display(), kept = %kept.display(), entry = good.length + 1, "the audit chain is broken; what is good of it goes on");
                let kept = kept.file_name().map(|n| n.to_string_lossy().into_owned());
                let fields =
                    json!({"good_entries": good.length, "head": good.head, "kept_as": kept});
                found = Some(New::now("audit-chain-broken", fields));
                file = open_locked(&path)?;
            }
        }
        durable::sync_directory(directory)?;
        let mut chain = Self {
            book,
            directory: directory.to_owned(),
            file,
            path,
            limits,
            first: walk.start.length + 1,
            bytes: walk.good_bytes,
            position: good,
        };
        if let Some(found) = found {
            chain.append([found])?;
        }
        Ok(chain)
    }

    /// Number of entries and the digest of the newest.
    pub fn head(&self) -> (u64, Digest) {
        (self.position.length, self.position.head)
    }

    /// Appends entries together and fsyncs once. On an error none of them is there.
    pub fn append(&mut self, entries: impl IntoIterator<Item = New>) -> Result<(), DurableError> {
        if self.bytes >= self.limits.segment_bytes
            && let Err(problem) = self.begin_segment()
        {
            // Then this one grows on; the event counts more than the bound.
            warn!(%problem, "the full audit log could not be archived");
        }
        self.write(entries)
    }

    fn write(&mut self, entries: impl IntoIterator<Item = New>) -> Result<(), DurableError> {
        let mut position = self.position;
        let mut lines = Vec::new();
        for New { event, at, fields } in entries {
            let entry = Entry {
                number: position.length + 1,
                at: at.to_string(),
                event: event.to_owned(),
                fields,
                previous: position.head,
            };
            let begin = lines.len();
            serde_json::to_writer(&mut lines, &entry)
                .map_err(io::Error::from)
                .map_err(failed("encode an entry for", &self.path))?;
            let line = &lines[begin..];
            if line.len() as u64 >= MAX_LINE_BYTES {
                let source = io::Error::other("the entry is longer than a line may be");
                return Err(failed("append to", &self.path)(source));
            }
            position = Position::after(&entry, line);
            lines.push(b'\n');
        }
        let before = self.file.metadata().map(|m| m.len()).ok();
        if let Err(error) = durable::append(&mut self.file, &self.path, &lines) {
            // A half-written line (disk full) would tear the chain for every entry after it.
            if let Some(before) = before {
                let _ = durable::cut(&self.file, &self.path, before);
            }
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        self.position = position;
        Ok(())
    }

    /// Archives the file and goes on in a new one. At any instant the chain is whole: the new file's first entry
    /// follows the archived file's last, and a file is removed only after an entry says so.
    fn begin_segment(&mut self) -> Result<(), DurableError> {
        let archive = archive_path(&self.directory, self.book, self.first);
        durable::rename(&self.path, &archive)?;
        self.file = open_locked(&self.path)?;
        durable::sync_directory(&self.directory)?;
        let (first, last) = (self.first, self.position.length);
        (self.first, self.bytes) = (last + 1, 0);
        let mut archives = archived(&self.directory, self.book)?;
        let surplus = archives.len().saturating_sub(self.limits.archives);
        let removed: Vec<_> = archives.drain(..surplus).collect();
        let begins_at = archives.first().map_or(self.first, |(first, _)| *first);
        let fields = json!({"archived": [first, last], "log_begins_at": begins_at});
        self.write([New::now(SEGMENT_EVENT, fields)])?;
        removed
            .iter()
            .try_for_each(|(_, path)| durable::remove_file(path))
    }
}

fn open_locked(path: &Path) -> Result<File, DurableError> {
    let file = durable::open_log(path)?;
    if !durable::lock(&file, path)? {
        let other = "another edgeward process is using it; stop that one first";
        return Err(failed("lock", path)(io::Error::other(other)));
    }
    Ok(file)
}

/// Keeps a broken file whole under another name, and its first `good_bytes` under its own.
fn set_aside(path: &Path, book: Book, good_bytes: u64) -> Result<PathBuf, DurableError> {
    let kept = |number: u64| path.with_file_name(format!("{}.broken-{number}", book.file));
    let number = (1..).find(|n| !kept(*n).exists()).unwrap_or(1);
    durable::rename(path, &kept(number))?;
    durable::write_new_with(path, Access::Owner, |file| {
        let whole = File::open(kept(number))?;
        io::copy(&mut io::Read::take(whole, good_bytes), file).map(drop)
    })?;
    if let Some(old) = number.checked_sub(BROKEN_KEPT).filter(|n| *n > 0) {
        // Its place is taken by nobody: numbers go on.
        durable::write(&kept(old), b"", Access::Owner)?;
    }
    Ok(kept(number))
}

/// Walks through a file from `before`; without it, from wherever the file begins.
fn walk(path: &Path, before: Option<Position>) -> Result<Walk, DurableError> {
    let mut lines = Lines::open(path)?;
    let mut start = before;
    let mut position = before;
    let mut good_bytes = 0;
    let end = loop {
        match lines.next()? {
            None => break End::Clean,
            Some(Line::Torn) => break End::Torn,
            Some(Line::Foreign) => break End::Broken,
            Some(Line::Entry(entry, line)) => {
                start.get_or_insert(Position::before(&entry));
                let here = position.unwrap_or(Position::before(&entry));
                if !here.leads_to(&entry) {
                    break End::Broken;
                }
                position = Some(Position::after(&entry, &line));
                good_bytes = lines.bytes;
            }
        }
    };
    Ok(Walk {
        start: start.unwrap_or_default(),
        position: position.unwrap_or_default(),
        good_bytes,
        end,
    })
}
