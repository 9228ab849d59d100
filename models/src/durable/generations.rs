//! State that tells damage from absence.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Access, DurableError, failed, read, rename, temporary_beside, write_new};
use crate::digest::Digest;

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

    pub(super) fn before(&self) -> PathBuf {
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

    /// Writes a document as JSON. One that cannot be encoded leaves what is there.
    pub fn write_json(
        &self,
        document: &impl Serialize,
        access: Access,
    ) -> Result<(), DurableError> {
        let bytes = serde_json::to_vec(document)
            .map_err(|error| failed("encode what belongs into", &self.path)(error.into()))?;
        self.write(&bytes, access)
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
