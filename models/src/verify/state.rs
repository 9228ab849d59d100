//! What a device remembers, and the rule that it only ever goes forward.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;
use serde::{Deserialize, Serialize};
use tough::schema::{RoleType, Root, Signed};

use super::VerifyError;
use super::chain::{self, Chain};
use crate::digest::Digest;

/// The format of the stored document.
pub const FORMAT: u32 = 1;

/// The stored document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustState {
    pub format: u32,
    /// The root that the enrolment brought.
    pub enrolled_root: Digest,
    /// The highest root ever verified, exact text.
    pub root: String,
    pub trusted_time: Time,
    /// By role name.
    pub roles: BTreeMap<String, KnownRole>,
}

/// The newest metadata of one role that this device has trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownRole {
    pub version: u64,
    pub sha256: Digest,
    /// The key ids that could sign it then. A memory made under other keys does not bind.
    pub keys: Vec<String>,
    /// The version of the root that it was verified under.
    pub root: u64,
}

/// What the memory says of a verified chain.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// The very timestamp that is known.
    Same,
    Newer,
    Older {
        offered: u64,
        known: u64,
    },
}

impl TrustState {
    pub fn new(root_bytes: &[u8]) -> Result<Self, VerifyError> {
        let root = chain::parse_root(root_bytes)?;
        let text = std::str::from_utf8(root_bytes)
            .map_err(|_| VerifyError::refused("root.json", "it is not text"))?;
        Ok(Self {
            format: FORMAT,
            enrolled_root: Digest::of(root_bytes),
            root: text.to_owned(),
            trusted_time: root_time(&root),
            roles: BTreeMap::new(),
        })
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if state.format != FORMAT {
            return Err(format!(
                "it has format {}; this program reads format {FORMAT}: update it",
                state.format
            ));
        }
        chain::parse_root(state.root.as_bytes()).map_err(|e| e.to_string())?;
        Ok(state)
    }

    /// The version of the timestamp that is known, under whatever keys; 0 before the first.
    pub fn timestamp_version(&self) -> u64 {
        self.roles.get("timestamp").map_or(0, |role| role.version)
    }

    /// Takes a newer root, which is proven by itself.
    pub fn follow_root(&mut self, next: &Signed<Root>, text: String) {
        self.trusted_time = self.trusted_time.max(root_time(next));
        self.root = text;
    }

    /// What of the memory binds under `root`: after a change of the timestamp's or snapshot's keys both are
    /// forgotten (TUF 5.3.11), so that versions run up by a stolen key do not shut out its successor.
    pub fn binding(&self, root: &Root, role: &str, keys: &[String]) -> Option<&KnownRole> {
        let online = [
            ("timestamp", RoleType::Timestamp),
            ("snapshot", RoleType::Snapshot),
        ];
        let known = self.roles.get(role)?;
        let unchanged = if online.iter().any(|(name, _)| *name == role) {
            online.iter().all(|(name, kind)| {
                self.roles
                    .get(*name)
                    .is_some_and(|known| known.keys == chain::key_ids(root, *kind))
            })
        } else {
            known.keys == keys
        };
        unchanged.then_some(known)
    }

    /// Compares a verified chain with everything this device has ever trusted.
    pub fn compare(&self, chain: &Chain) -> Result<Standing, VerifyError> {
        let mut standing = Standing::Newer;
        // The timestamp first: an old repository is old as a whole, and no offence.
        let first = chain.files.get_key_value("timestamp");
        for (role, file) in first.into_iter().chain(&chain.files) {
            let Some(known) = self.binding(&chain.root.signed, role, &file.keys) else {
                continue;
            };
            let (offered, known_version) = (file.version, known.version);
            if offered < known_version && role == "timestamp" {
                return Ok(Standing::Older {
                    offered,
                    known: known_version,
                });
            }
            if offered < known_version {
                return Err(VerifyError::refused(
                    format!("{offered}.{role}.json"),
                    format!(
                        "this device already trusts version {known_version} of it: someone takes the \
                         fleet back (if it was a restored backup, publish from the newest copy)"
                    ),
                ));
            }
            let same = Digest::of(&file.bytes) == known.sha256;
            if offered == known_version && !same {
                return Err(VerifyError::refused(
                    format!("version {offered} of {role}.json"),
                    "this device already trusts another content under the same version: two operators \
                     signed at once; publish once more from the copy that is right",
                ));
            }
            if same && role == "timestamp" {
                standing = Standing::Same;
            }
        }
        Ok(standing)
    }

    /// Remembers a chain that [`Self::compare`] found no fault with.
    pub fn remember(&mut self, chain: &Chain) {
        let rotated = chain.files.get("timestamp").is_some_and(|file| {
            self.roles.contains_key("timestamp")
                && self
                    .binding(&chain.root.signed, "timestamp", &file.keys)
                    .is_none()
        });
        for (role, file) in &chain.files {
            let known = KnownRole {
                version: file.version,
                sha256: Digest::of(&file.bytes),
                keys: file.keys.clone(),
                root: chain.root.signed.version.get(),
            };
            self.roles.insert(role.clone(), known);
        }
        // The timestamp's key lies on a networked machine. Whoever steals it may claim any time, but cannot
        // make the offline roles expire by it, and the next key starts again from the root's own time.
        let offline = chain.offline_expiries().into_iter().map(|(_, at)| at);
        let proven = offline.fold(chain.signed_at, Time::min);
        let before = if rotated {
            root_time(&chain.root)
        } else {
            self.trusted_time
        };
        self.trusted_time = before.max(proven);
    }
}

/// When a root says that it was signed, if it says so.
fn root_time(root: &Signed<Root>) -> Time {
    let signed_at = chain::signed_at(&root.signed._extra).unwrap_or(Time::UNIX_EPOCH);
    signed_at.min(root.signed.expires)
}
