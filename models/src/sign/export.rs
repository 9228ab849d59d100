//! A complete copy for a USB stick, a site cache or a backup.

use std::path::Path;

use tough::schema::{Signed, Timestamp};

use super::repository::{Repository, TIMESTAMP_FILE, metadata_path};
use super::{SignError, refused};
use crate::durable::{self, Access};
use crate::repository::{MAX_METADATA_BYTES, METADATA_DIRECTORY, chunk_path};

impl Repository {
    /// Writes a complete repository to another directory (USB), timestamp last. One of the same fleet that is
    /// already there is brought up to date; a newer one, or another fleet's, is refused.
    pub fn export(&self, to: &Path) -> Result<(), SignError> {
        self.check_destination(to)?;
        let publication = self.everything()?;
        durable::create_directory(&to.join(METADATA_DIRECTORY))?;
        let mut missing = Vec::new();
        for digest in &publication.chunks {
            let path = to.join(chunk_path(digest));
            let bytes = self.chunk(digest)?;
            if durable::read(&path, bytes.len() as u64)
                .ok()
                .flatten()
                .as_ref()
                == Some(&bytes)
            {
                continue;
            }
            if let Some(parent) = path.parent() {
                durable::create_directory(parent)?;
            }
            missing.push((path, bytes));
        }
        let batch: Vec<_> = missing
            .iter()
            .map(|(p, b)| (p.clone(), b.as_slice()))
            .collect();
        durable::write_batch(&batch, Access::Anyone)?;
        // The timestamp is the last of the publication.
        for file in &publication.metadata {
            let bytes = self.read_metadata(file.as_str())?;
            durable::write(&metadata_path(to, file.as_str()), &bytes, Access::Anyone)?;
        }
        Ok(())
    }

    fn check_destination(&self, to: &Path) -> Result<(), SignError> {
        let first = "1.root.json";
        let there = durable::read(&metadata_path(to, first), MAX_METADATA_BYTES)?;
        if there.is_some_and(|bytes| self.read_metadata(first).ok() != Some(bytes)) {
            return Err(refused(format!(
                "{} holds the repository of another fleet: choose an empty directory",
                to.display()
            )));
        }
        let there = durable::read(&metadata_path(to, TIMESTAMP_FILE), MAX_METADATA_BYTES)?;
        let there = there.and_then(|b| serde_json::from_slice::<Signed<Timestamp>>(&b).ok());
        let version = there.map_or(0, |timestamp| timestamp.signed.version.get());
        if version > self.timestamp_version() {
            return Err(refused(format!(
                "{} holds timestamp {version}, which is newer than this repository's {}: this copy of the \
                 repository is out of date",
                to.display(),
                self.timestamp_version()
            )));
        }
        Ok(())
    }
}
