//! One role's next document: what `proposal` has signed, and what becomes its metadata file.

use std::num::NonZeroU64;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tough::schema::{Role, Signature, Signed};

use super::keys::SigningRole;
use super::{SignError, metadata, refused};

/// A role's next document: the exact bytes that signatures are over, and those signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Canonical JSON.
    pub signed: String,
    pub signatures: Vec<Signature>,
}

impl Document {
    pub fn new(role: SigningRole, signed: &impl Role) -> Result<Self, SignError> {
        let form = signed.canonical_form().ok();
        let signed = form.and_then(|form| String::from_utf8(form).ok());
        Ok(Self {
            signed: signed.ok_or_else(|| refused(format!("cannot write the {role} role")))?,
            signatures: Vec::new(),
        })
    }

    /// What was signed, if writing it again gives the very same bytes.
    pub fn parse<T: Role + DeserializeOwned>(&self, role: SigningRole) -> Result<T, SignError> {
        let wrong = || {
            refused(format!(
                "the {role} role in it is not TUF metadata as this program writes it"
            ))
        };
        let parsed: T = serde_json::from_str(&self.signed).map_err(|_| wrong())?;
        match parsed.canonical_form() {
            Ok(form) if form == self.signed.as_bytes() => Ok(parsed),
            _ => Err(wrong()),
        }
    }

    /// The metadata file.
    pub fn file<T: Role + DeserializeOwned>(
        &self,
        role: SigningRole,
    ) -> Result<(NonZeroU64, Vec<u8>), SignError> {
        let signed: T = self.parse(role)?;
        let version = signed.version();
        let signed = Signed {
            signed,
            signatures: self.signatures.clone(),
        };
        Ok((version, metadata::to_bytes(&signed)?))
    }
}
