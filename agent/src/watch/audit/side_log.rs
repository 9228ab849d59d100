//! A log beside the security log: opened when it can be, and under the security log's signature.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edgeward_models::durable::DurableError;
use tracing::error;

use super::{Audit, Book, Chain, Limits, New};

/// Its head is recorded in the security log at most this often while it grows, and at the end.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);

pub struct SideLog {
    book: Book,
    directory: PathBuf,
    limits: Limits,
    /// Absent while it cannot be opened; tried again with each append.
    chain: Option<Chain>,
    audit: Audit,
    /// When the newest checkpoint was, and of how many entries.
    checkpoint: (Instant, u64),
}

impl SideLog {
    /// Opens it at once, so that damage is found at the start; if it cannot be, an append says so.
    pub fn new(directory: &Path, book: Book, bytes: u64, audit: Audit) -> Self {
        let mut log = Self {
            book,
            directory: directory.to_owned(),
            limits: Limits::of_bytes(bytes),
            chain: None,
            audit,
            checkpoint: (Instant::now(), 0),
        };
        if let Ok(chain) = log.chain() {
            log.checkpoint.1 = chain.head().0;
        }
        log
    }

    /// Appends entries together and fsyncs once. On an error none of them is there.
    pub fn append(&mut self, entries: impl IntoIterator<Item = New>) -> Result<(), DurableError> {
        self.chain()?.append(entries)
    }

    fn chain(&mut self) -> Result<&mut Chain, DurableError> {
        match &mut self.chain {
            Some(chain) => Ok(chain),
            none => {
                let chain = Chain::open(&self.directory, self.book, self.limits)?;
                Ok(none.insert(chain))
            }
        }
    }

    /// Puts what was appended under the security log's head, if it is time, or the `last` one.
    pub fn check_point(&mut self, last: bool) {
        let Some(head) = self.chain.as_ref().map(Chain::head) else {
            return;
        };
        let (at, entries) = self.checkpoint;
        if head.0 == entries || !(last || at.elapsed() >= CHECKPOINT_EVERY) {
            return;
        }
        match self.audit.checkpoint(self.book, head) {
            Ok(()) => self.checkpoint = (Instant::now(), head.0),
            Err(problem) => error!(%problem, log = self.book.name, "no checkpoint of a log"),
        }
    }
}
