//! Files that a power cut may take: caches, scratch, and what nothing names any more. Nothing is fsynced.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DurableError, failed};

/// Writes a file that is whole or absent for whoever looks for it while this process runs; after a power cut
/// it may be anything, so readers check what they read.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    // Several tasks may write the same file at the same time.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("part{count}"));
    let written = fs::write(&temporary, bytes).map_err(failed("write", &temporary));
    let renamed = written.and_then(|()| {
        fs::rename(&temporary, path).map_err(failed("rename a finished file to", path))
    });
    if renamed.is_err() {
        // On a full disk the half of a file is in the way of everything else.
        remove(&temporary);
    }
    renamed
}

/// Removes a file, if that can be done.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Removes every file of a directory, if that can be done.
pub fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        remove(&entry.path());
    }
}

/// Makes an empty directory; what was there is removed.
pub fn fresh_directory(path: &Path) -> Result<(), DurableError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(failed("empty the directory", path)(e));
        }
        _ => {}
    }
    fs::create_dir(path).map_err(failed("make the directory", path))
}

/// Removes a directory with all in it, if that can be done.
pub fn remove_directory(path: &Path) {
    let _ = fs::remove_dir_all(path);
}
