//! The claims that this fleet gave out: who may join with which token, until when, and who has.
//!
//! `claim` makes, lists and accepts them. Of a token only what checks it is kept. One that was used is used for good;
//! the same device may ask again with the same key and gets the same answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::claim::{ClaimKey, ClaimRequest};
use edgeward_models::name::{DeviceId, GroupName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The file of the operator's home, as it was opened.
pub struct Claims {
    path: PathBuf,
    document: Document,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    /// By the tokens' ids.
    claims: BTreeMap<String, Claim>,
}

/// One token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    key: ClaimKey,
    /// Serial numbers of the devices that may use it.
    pub serials: BTreeSet<String>,
    /// The id that the device gets; absent: its serial number.
    pub device: Option<DeviceId>,
    pub groups: BTreeSet<GroupName>,
    /// It may take an id from another key.
    pub replace: bool,
    pub expires: Timestamp,
    pub used: Option<Used>,
}

/// By whom it was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    pub serial: String,
    /// SHA-256 of the public key.
    key: Digest,
    pub at: Timestamp,
}

impl Claim {
    pub fn new(key: ClaimKey, serials: BTreeSet<String>, expires: Timestamp) -> Self {
        Self {
            key,
            serials,
            device: None,
            groups: BTreeSet::new(),
            replace: false,
            expires,
            used: None,
        }
    }
}

impl Claims {
    pub fn open(path: PathBuf) -> Result<Self> {
        let document = match durable::read(&path, MAX_BYTES)? {
            None => Document {
                format: FORMAT,
                claims: BTreeMap::new(),
            },
            Some(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged; restore it from a copy", path.display())
            })?,
        };
        ensure!(
            document.format == FORMAT,
            "{} has format {}, this fleetctl reads {FORMAT}",
            path.display(),
            document.format
        );
        Ok(Self { path, document })
    }

    pub fn all(&self) -> &BTreeMap<String, Claim> {
        &self.document.claims
    }

    pub fn add(&mut self, id: &str, claim: Claim) -> Result<()> {
        self.document.claims.insert(id.to_owned(), claim);
        self.save()
    }

    /// Judges a request for a key and uses its token up; an error says why it may not join.
    pub fn accept(&mut self, request: &ClaimRequest, key: Digest, now: Timestamp) -> Result<Claim> {
        let serial = &request.serial;
        let claim = self.document.claims.get_mut(&request.claim);
        let claim = claim.context("this fleet gave out no such token")?;
        // Before anything else is said to somebody who does not have it.
        ensure!(
            claim.key.made(request),
            "the request was not made with the token, or it was changed on its way"
        );
        ensure!(
            claim.serials.contains(serial),
            "its token is not for serial number {serial:?}"
        );
        let used = claim.used.as_ref();
        if let Some(used) = used.filter(|used| used.key != key || used.serial != *serial) {
            bail!(
                "its token was used at {} by the device with serial number {:?}; each works once",
                used.at,
                used.serial
            );
        }
        if claim.used.is_none() {
            ensure!(
                now < claim.expires,
                "its token ended at {}: make another with `fleetctl claim create`",
                claim.expires
            );
            claim.used = Some(Used {
                serial: serial.clone(),
                key,
                at: now,
            });
        }
        let claim = claim.clone();
        self.save()?;
        Ok(claim)
    }

    fn save(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.document).context("cannot write the claims")?;
        Ok(durable::write(&self.path, &bytes, Access::Owner)?)
    }
}
