//! The audit log: what happened to this device's trust and models, in an order that cannot be changed unseen.
//!
//! One JSON object a line, each holding the SHA-256 of the line before it. A status carries length and head
//! of the chain to the operator, so that a shortened or rewritten log is seen from outside. Security events
//! are fsynced before they take effect. The log never stops the agent from serving: a line torn by a power
//! cut is cut off, a broken chain is set aside whole, and both are themselves recorded.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgeward_models::Digest;
use edgeward_models::durable::{self, DurableError};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

/// The file inside the state directory.
pub const FILE: &str = "audit.log";
/// A line longer than this was not written by an agent.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// The append-only, hash-chained log of security events. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    log: Arc<Mutex<Log>>,
}

struct Log {
    file: File,
    path: PathBuf,
    length: u64,
    head: Digest,
}

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Counts up from 1.
    number: u64,
    /// By the device's clock, for people; the order is given by the chain.
    at: String,
    event: String,
    fields: serde_json::Value,
    /// SHA-256 of the line before, without its line feed; of the first line: of nothing.
    previous: Digest,
}

/// What a walk through the file found.
struct Walk {
    length: u64,
    head: Digest,
    /// Bytes up to the end of the last good line.
    good_bytes: u64,
    end: End,
}

enum End {
    Clean,
    /// The last line has no line feed or is blank: a power cut during an append.
    Torn,
    /// A whole line is not the next of the chain.
    Broken,
}

impl Audit {
    /// Opens (and checks the chain of) `DIRECTORY/audit.log`. The log belongs to one process at a time.
    pub fn open(directory: &Path) -> Result<Self, DurableError> {
        durable::create_directory(directory)?;
        let path = directory.join(FILE);
        let mut file = open_locked(&path)?;
        let walk = walk(&path)?;
        let mut found = None;
        let (mut length, mut head) = (walk.length, walk.head);
        match walk.end {
            End::Clean => {}
            End::Torn => {
                durable::cut(&file, &path, walk.good_bytes)?;
                warn!(path = %path.display(), entries = length, "the audit log's torn last line was cut off");
                found = Some((
                    "audit-repaired",
                    serde_json::json!({"problem": "the last line was incomplete"}),
                ));
            }
            End::Broken => {
                let kept = set_aside(&path)?;
                error!(path = %path.display(), kept = %kept.display(), entry = length + 1, "the audit chain is broken; a new one begins");
                found = Some((
                    "audit-chain-broken",
                    serde_json::json!({
                        "good_entries": length, "head": head, "kept_as": kept.file_name().map(|n| n.to_string_lossy().into_owned()),
                    }),
                ));
                file = open_locked(&path)?;
                (length, head) = (0, Digest::of(b""));
            }
        }
        durable::sync_directory(directory)?;
        let audit = Self {
            log: Arc::new(Mutex::new(Log {
                file,
                path,
                length,
                head,
            })),
        };
        if let Some((event, fields)) = found {
            audit.record(event, fields)?;
        }
        Ok(audit)
    }

    /// Appends one security event and fsyncs it: call before the event takes effect. `event` is a short
    /// constant such as `version-activated`; `fields` hold names and digests, never tensors or secrets.
    pub fn record(
        &self,
        event: &'static str,
        fields: serde_json::Value,
    ) -> Result<(), DurableError> {
        let mut log = self.lock();
        let entry = Entry {
            number: log.length + 1,
            at: Timestamp::now().to_string(),
            event: event.to_owned(),
            fields,
            previous: log.head,
        };
        let path = log.path.clone();
        let mut line = serde_json::to_vec(&entry)
            .map_err(io::Error::from)
            .map_err(failed("encode an entry for", &path))?;
        if line.len() as u64 >= MAX_LINE_BYTES {
            let source = io::Error::other("the entry is longer than a line may be");
            return Err(failed("append to", &path)(source));
        }
        let digest = Digest::of(&line);
        line.push(b'\n');
        let before = log.file.metadata().map(|m| m.len()).ok();
        if let Err(error) = durable::append(&mut log.file, &path, &line) {
            // A half-written line (disk full) would tear the chain for every entry after it.
            if let Some(before) = before {
                let _ = durable::cut(&log.file, &path, before);
            }
            return Err(error);
        }
        log.length += 1;
        log.head = digest;
        Ok(())
    }

    /// Number of entries and the digest of the newest.
    pub fn head(&self) -> (u64, Digest) {
        let log = self.lock();
        (log.length, log.head)
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // A panic while the lock was held cannot leave a half-changed log: fields change after the append.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DurableError {
    move |source| DurableError {
        action,
        path: path.to_owned(),
        source,
    }
}

fn open_locked(path: &Path) -> Result<File, DurableError> {
    let file = durable::open_log(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
        let source = if e == rustix::io::Errno::WOULDBLOCK {
            io::Error::other("another edgeward process is using it; stop that one first")
        } else {
            e.into()
        };
        failed("lock", path)(source)
    })?;
    Ok(file)
}

fn set_aside(path: &Path) -> Result<PathBuf, DurableError> {
    for number in 1..10_000 {
        let kept = path.with_file_name(format!("{FILE}.broken-{number}"));
        if !kept.exists() {
            durable::rename(path, &kept)?;
            return Ok(kept);
        }
    }
    let source = io::Error::other("there are 10,000 broken logs beside it; look into them");
    Err(failed("set aside the broken", path)(source))
}

fn walk(path: &Path) -> Result<Walk, DurableError> {
    let mut reader = BufReader::new(File::open(path).map_err(failed("read", path))?);
    let mut walk = Walk {
        length: 0,
        head: Digest::of(b""),
        good_bytes: 0,
        end: End::Clean,
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        // The limit also bounds what a foreign file without line feeds can make us allocate.
        let read = io::Read::take(&mut reader, MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(failed("read", path))?;
        if read == 0 {
            return Ok(walk);
        }
        let at_end = reader.fill_buf().map_err(failed("read", path))?.is_empty();
        let blank = line.iter().all(|&b| b == 0);
        if line.pop_if(|b| *b == b'\n').is_none() {
            walk.end = if at_end || blank {
                End::Torn
            } else {
                End::Broken
            };
            return Ok(walk);
        }
        let next = serde_json::from_slice::<Entry>(&line)
            .is_ok_and(|entry| entry.number == walk.length + 1 && entry.previous == walk.head);
        if !next {
            walk.end = End::Broken;
            return Ok(walk);
        }
        walk.length += 1;
        walk.head = Digest::of(&line);
        walk.good_bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use serde_json::json;

    fn filled(directory: &Path) -> (u64, Digest) {
        let audit = Audit::open(directory).expect("open");
        for number in 0..5 {
            audit
                .record("version-activated", json!({"model": "digits", "n": number}))
                .expect("record");
        }
        audit.head()
    }

    #[test]
    fn the_chain_goes_on_after_a_restart() {
        let directory = tempfile::tempdir().expect("tempdir");
        let head = filled(directory.path());
        let audit = Audit::open(directory.path()).expect("open");
        assert_eq!(audit.head(), head);
        audit.record("import", json!({})).expect("record");
        assert_eq!(audit.head().0, 6);
    }

    #[test]
    fn a_line_torn_by_a_power_cut_is_cut_off_and_that_is_recorded() {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path());
        let path = directory.path().join(FILE);
        let bytes = fs::read(&path).expect("read");
        fs::write(&path, &bytes[..bytes.len() - 7]).expect("tear");
        let audit = Audit::open(directory.path()).expect("open");
        assert_eq!(audit.head().0, 5, "four whole entries and the repair");
        drop(audit);
        let text = fs::read_to_string(&path).expect("read");
        assert!(
            text.lines()
                .last()
                .expect("line")
                .contains("audit-repaired")
        );
        // The repaired log is whole.
        assert_eq!(Audit::open(directory.path()).expect("open").head().0, 5);
    }

    #[test]
    fn a_tail_of_zeros_counts_as_torn() {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path());
        let path = directory.path().join(FILE);
        let mut bytes = fs::read(&path).expect("read");
        bytes.extend([0; 300]);
        fs::write(&path, &bytes).expect("zeros");
        assert_eq!(Audit::open(directory.path()).expect("open").head().0, 6);
    }

    #[test]
    fn a_changed_or_removed_entry_breaks_the_chain_and_the_log_is_kept_for_inspection() {
        for damage in ["change", "remove"] {
            let directory = tempfile::tempdir().expect("tempdir");
            filled(directory.path());
            let path = directory.path().join(FILE);
            let text = fs::read_to_string(&path).expect("read");
            let text = match damage {
                "change" => text.replace("\"n\":2", "\"n\":7"),
                _ => text
                    .lines()
                    .enumerate()
                    .filter(|(i, _)| *i != 1)
                    .fold(String::new(), |all, (_, line)| all + line + "\n"),
            };
            fs::write(&path, text).expect("damage");
            let audit = Audit::open(directory.path()).expect("open");
            assert_eq!(audit.head().0, 1, "a new chain that says so");
            assert!(directory.path().join("audit.log.broken-1").exists());
            let text = fs::read_to_string(&path).expect("read");
            assert!(text.contains("audit-chain-broken"), "{text}");
        }
    }

    #[test]
    fn one_process_owns_the_log() {
        let directory = tempfile::tempdir().expect("tempdir");
        let _audit = Audit::open(directory.path()).expect("open");
        let error = Audit::open(directory.path()).err().expect("refused");
        assert!(
            std::error::Error::source(&error)
                .expect("source")
                .to_string()
                .contains("another edgeward process")
        );
    }
}
