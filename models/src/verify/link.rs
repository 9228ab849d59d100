//! What one metadata file says of the next, and of a target: version, length and digest, always all of them.

use std::collections::HashMap;
use std::num::NonZeroU64;

use tough::schema::{Metafile, Target};

use super::VerifyError;
use super::verified::TargetInfo;
use crate::chunk::{ChunkRef, MAX_CHUNK_BYTES};
use crate::digest::Digest;

/// The field of a target's `custom` that names its list of chunks.
pub const LIST: &str = "list";

/// What one file says of the next.
pub struct Link {
    pub version: u64,
    length: u64,
    sha256: Digest,
}

/// The entry called `name` in the file called `from`.
pub fn link(from: &str, meta: &HashMap<String, Metafile>, name: &str) -> Result<Link, VerifyError> {
    let entry = meta
        .get(name)
        .ok_or_else(|| refused(from, format!("it does not list {name}")))?;
    let sha256 = entry.hashes.as_ref().and_then(|h| digest(&h.sha256));
    match (entry.length, sha256) {
        (Some(length), Some(sha256)) => Ok(Link {
            version: entry.version.get(),
            length,
            sha256,
        }),
        _ => Err(refused(
            from,
            format!("it gives no length and digest of {name}"),
        )),
    }
}

impl Link {
    pub fn file(&self, role: &str) -> String {
        format!("{}.{role}.json", self.version)
    }

    pub fn check(&self, file: &str, bytes: Vec<u8>) -> Result<Vec<u8>, VerifyError> {
        if bytes.len() as u64 != self.length || Digest::of(&bytes) != self.sha256 {
            return Err(refused(
                file,
                "its content is not the one that signed metadata names",
            ));
        }
        Ok(bytes)
    }

    pub fn check_version(&self, file: &str, found: NonZeroU64) -> Result<(), VerifyError> {
        if found.get() != self.version {
            return Err(refused(
                file,
                format!("it says of itself that it is version {found}"),
            ));
        }
        Ok(())
    }
}

/// What is believed of one target.
pub fn target_info(name: &str, target: &Target) -> Result<TargetInfo, VerifyError> {
    let refused = |problem| refused(format!("target {name}"), problem);
    let sha256 = digest(&target.hashes.sha256).ok_or_else(|| refused("it has no SHA-256"))?;
    let list = match target.custom.get(LIST) {
        None => None,
        Some(value) => Some(list_ref(value).ok_or_else(|| refused("its list is not one"))?),
    };
    if list.is_none() && target.length > MAX_CHUNK_BYTES as u64 {
        return Err(refused(
            "it is larger than a chunk and has no list of chunks",
        ));
    }
    Ok(TargetInfo {
        name: name.to_owned(),
        length: target.length,
        sha256,
        list,
    })
}

fn list_ref(value: &serde_json::Value) -> Option<ChunkRef> {
    Some(ChunkRef {
        sha256: value.get("sha256")?.as_str()?.parse().ok()?,
        length: value.get("length")?.as_u64()?.try_into().ok()?,
    })
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    Some(Digest::from_bytes(bytes.try_into().ok()?))
}

fn refused(file: impl Into<String>, problem: impl Into<String>) -> VerifyError {
    VerifyError::refused(file, problem)
}
