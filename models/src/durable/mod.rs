//! How bytes reach a disk that may lose power at any instruction.
//!
//! Every write of both programs to files of their own goes through this module. A file is replaced by writing a temporary
//! file beside it, fsyncing that, renaming it over the old one and fsyncing the directory: afterwards the
//! new bytes are there, and at any moment before the old ones are. [`Generations`] adds a checksum and keeps
//! the file before, for state whose loss would be worse than a refusal. [`lossy`] is for caches.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use generations::{Generations, MAX_GENERATION_BYTES, Stored};

mod generations;
pub mod lossy;
#[cfg(test)]
mod tests;

/// For a lock that is about to be given back, and between two looks at it.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What was being done to which path, and what the system said.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct DurableError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DurableError {
    move |source| DurableError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The owner only (0600): keys, state.
    Owner,
    /// The group may read (0640).
    Group,
    /// Anyone may read (0644): certificates, public metadata.
    Anyone,
    /// Nobody writes again (0440): files of an installed version.
    ReadOnly,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
            Self::Anyone => 0o644,
            Self::ReadOnly => 0o440,
        }
    }
}

/// Makes a directory and its parents, each entry fsynced into its parent.
pub fn create_directory(path: &Path) -> Result<(), DurableError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_directory(parent)?;
    match fs::create_dir(path) {
        Ok(()) => sync_directory(parent),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed("make the directory", path)(e)),
    }
}

/// fsyncs a directory, so that names made, renamed or removed in it last.
pub fn sync_directory(path: &Path) -> Result<(), DurableError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("fsync the directory", path))
}

/// Replaces a file's content in one step that a power cut cannot split.
pub fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), DurableError> {
    let temporary = temporary_beside(path);
    write_new(&temporary, bytes, access)?;
    rename(&temporary, path)
}

/// Writes and fsyncs a file that is not yet known by its final name. An old file of that name is replaced.
pub fn write_new(path: &Path, bytes: &[u8], access: Access) -> Result<(), DurableError> {
    write_new_with(path, access, |file| file.write_all(bytes))
}

/// Like [`write_new`], for content that is too large to be held at once.
pub fn write_new_with(
    path: &Path,
    access: Access,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), DurableError> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(path)
        .map_err(failed("create", path))?;
    // The umask may have taken bits that `access` grants.
    file.set_permissions(fs::Permissions::from_mode(access.mode()))
        .map_err(failed("set the permissions of", path))?;
    fill(&mut file).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("fsync", path))
}

/// [`write()`] for many files: every file is fsynced, every directory once. They appear in any order, so nothing
/// may name them before this returns.
pub fn write_batch(files: &[(PathBuf, &[u8])], access: Access) -> Result<(), DurableError> {
    let mut directories = std::collections::BTreeSet::new();
    for (path, bytes) in files {
        let temporary = temporary_beside(path);
        write_new(&temporary, bytes, access)?;
        fs::rename(&temporary, path).map_err(failed("rename a finished file to", path))?;
        directories.insert(parent_of(path));
    }
    directories.into_iter().try_for_each(sync_directory)
}

/// Renames (replacing a file of the new name) and fsyncs the directories concerned.
pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    fs::rename(from, to).map_err(failed("rename a finished file to", to))?;
    sync_directory(parent_of(to))?;
    if parent_of(from) != parent_of(to) {
        sync_directory(parent_of(from))?;
    }
    Ok(())
}

/// Removes a file if it is there, durably.
pub fn remove_file(path: &Path) -> Result<(), DurableError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(parent_of(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

/// Removes a directory with all in it, if it is there, durably.
pub fn remove_directory(path: &Path) -> Result<(), DurableError> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_directory(parent_of(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove the directory", path)(e)),
    }
}

/// Opens a file that only [`append`] writes to, and makes it (0600) if it is missing.
pub fn open_log(path: &Path) -> Result<File, DurableError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(Access::Owner.mode())
        .open(path)
        .map_err(failed("open", path))
}

/// Cuts a file that was opened by [`open_log`] off after `length` bytes.
pub fn cut(file: &File, path: &Path, length: u64) -> Result<(), DurableError> {
    file.set_len(length)
        .and_then(|()| file.sync_all())
        .map_err(failed("cut off the end of", path))
}

/// Opens a file that only its lock is for, and makes it if it is missing.
pub fn open_lock(path: &Path) -> Result<File, DurableError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("open", path))
}

/// Takes a file for this process alone, until the file is closed. `false`: another process has it. It is waited for
/// a moment: a process that this one is just starting holds copies of locks that were given back meanwhile, until
/// it has become another program.
pub fn lock(file: &File, path: &Path) -> Result<bool, DurableError> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(failed("lock", path)(e.into())),
        }
    }
}

/// Makes a directory its owner's alone (0700).
pub fn make_private(path: &Path) -> Result<(), DurableError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(failed("set the permissions of", path))
}

/// Appends to a file and fsyncs it: the audit log's write.
pub fn append(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    file.write_all(bytes).map_err(failed("append to", path))?;
    file.sync_data().map_err(failed("fsync", path))
}

/// Reads a whole file of at most `limit` bytes; `None` when there is none.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DurableError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    if bytes.len() as u64 > limit {
        let source = io::Error::other(format!("it is larger than the {limit} bytes allowed"));
        return Err(failed("read", path)(source));
    }
    Ok(Some(bytes))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    parent_of(path).join(name)
}
