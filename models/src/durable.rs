//! How bytes reach a disk that may lose power at any instruction.
//!
//! Every durable write of both programs goes through this module. A file is replaced by writing a temporary
//! file beside it, fsyncing that, renaming it over the old one and fsyncing the directory: afterwards the
//! new bytes are there, and at any moment before the old ones are. [`Generations`] adds a checksum and keeps
//! the file before, for state whose loss would be worse than a refusal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::digest::Digest;

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

/// A small file kept in two generations with a checksum: `NAME` and `NAME.before`.
///
/// The content is preceded by its SHA-256 in hex and a line feed. A damaged `NAME` is told from an absent
/// one; what to do with the generation before is the caller's decision.
#[derive(Debug, Clone)]
pub struct Generations {
    path: PathBuf,
}

/// What stands on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Never written.
    Absent,
    Good(Vec<u8>),
    /// The newest generation is unreadable; the one before, if that is whole.
    Damaged {
        before: Option<Vec<u8>>,
    },
}

/// The largest content of a [`Generations`] file.
pub const MAX_GENERATION_BYTES: u64 = 16 * 1024 * 1024;

impl Generations {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn before(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".before");
        name.into()
    }

    pub fn read(&self) -> Result<Stored, DurableError> {
        let newest = read(&self.path, MAX_GENERATION_BYTES + 65)?;
        let before = || -> Result<Option<Vec<u8>>, DurableError> {
            Ok(read(&self.before(), MAX_GENERATION_BYTES + 65)?.and_then(unseal))
        };
        match newest {
            // A crash between the two renames of `write` leaves only the generation before.
            None => Ok(before()?.map_or(Stored::Absent, Stored::Good)),
            Some(bytes) => match unseal(bytes) {
                Some(content) => Ok(Stored::Good(content)),
                None => Ok(Stored::Damaged { before: before()? }),
            },
        }
    }

    pub fn write(&self, content: &[u8], access: Access) -> Result<(), DurableError> {
        let mut bytes = Digest::of(content).to_hex().into_bytes();
        bytes.push(b'\n');
        bytes.extend_from_slice(content);
        let temporary = temporary_beside(&self.path);
        write_new(&temporary, &bytes, access)?;
        // Only a whole newest generation may become the one before.
        if let Some(newest) = read(&self.path, MAX_GENERATION_BYTES + 65)?
            && unseal(newest).is_some()
        {
            rename(&self.path, &self.before())?;
        }
        rename(&temporary, &self.path)
    }
}

fn unseal(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (head, content) = bytes.split_at_checked(65)?;
    let digest: Digest = std::str::from_utf8(&head[..64]).ok()?.parse().ok()?;
    (head[64] == b'\n' && Digest::of(content) == digest).then(|| content.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_generation_is_told_from_an_absent_one() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = Generations::new(directory.path().join("trust"));
        assert_eq!(file.read().expect("read"), Stored::Absent);
        file.write(b"one", Access::Owner).expect("write");
        file.write(b"two", Access::Owner).expect("write");
        assert_eq!(file.read().expect("read"), Stored::Good(b"two".to_vec()));
        for damage in [&b""[..], b"zz", &[0; 68]] {
            fs::write(file.path(), damage).expect("damage");
            let before = Some(b"one".to_vec());
            assert_eq!(file.read().expect("read"), Stored::Damaged { before });
        }
        // A damaged newest generation never pushes the whole one out.
        file.write(b"three", Access::Owner).expect("write");
        fs::write(file.path(), b"junk").expect("damage");
        let before = Some(b"one".to_vec());
        assert_eq!(file.read().expect("read"), Stored::Damaged { before });
    }

    #[test]
    fn a_power_cut_between_the_renames_leaves_the_generation_before() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = Generations::new(directory.path().join("trust"));
        file.write(b"one", Access::Owner).expect("write");
        fs::rename(file.path(), file.before()).expect("rename");
        assert_eq!(file.read().expect("read"), Stored::Good(b"one".to_vec()));
    }

    #[test]
    fn permissions_are_exact_and_large_files_are_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("a/b/key");
        create_directory(path.parent().expect("parent")).expect("mkdir");
        write(&path, b"0123456789", Access::Owner).expect("write");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(read(&path, 9).is_err());
        assert_eq!(
            read(&path, 10).expect("read").expect("there"),
            b"0123456789"
        );
        assert_eq!(read(&directory.path().join("none"), 1).expect("read"), None);
    }
}
