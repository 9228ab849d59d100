//! The signing keys of a fleet.
//!
//! One PKCS#8 PEM file (Ed25519, readable by its owner only) per role, so that each key can be kept where its
//! role is signed: root on a stick in a safe, snapshot and timestamp on the machine that refreshes daily.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::Sign;

use super::{SignError, refused};
use crate::durable::{self, Access};

const PEM_TAG: &str = "PRIVATE KEY";
const MAX_KEY_BYTES: u64 = 16 * 1024;

/// A role that signs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SigningRole {
    Root,
    Targets,
    Releases,
    Rollouts,
    Snapshot,
    Timestamp,
}

impl SigningRole {
    pub const ALL: [Self; 6] = [
        Self::Root,
        Self::Targets,
        Self::Releases,
        Self::Rollouts,
        Self::Snapshot,
        Self::Timestamp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Releases => "releases",
            Self::Rollouts => "rollouts",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }
}

impl fmt::Display for SigningRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The signing keys of a fleet: one PKCS#8 PEM file (Ed25519, 0600) per role in a directory.
pub struct KeyRing {
    directory: PathBuf,
    keys: BTreeMap<SigningRole, Ed25519KeyPair>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("directory", &self.directory)
            .field("roles", &self.keys.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl KeyRing {
    /// Makes keys for root, targets, releases, rollouts, snapshot and timestamp. Refuses to overwrite.
    pub fn generate(directory: &Path) -> Result<Self, SignError> {
        for role in SigningRole::ALL {
            let path = key_path(directory, role);
            if path.exists() {
                return Err(refused(format!(
                    "there is already a key in {}: devices that trust it would be lost; choose another \
                     directory",
                    path.display()
                )));
            }
        }
        durable::create_directory(directory)?;
        for role in SigningRole::ALL {
            make_key(role, &key_path(directory, role))?;
        }
        Self::open(directory)
    }

    /// Makes a new key for a role, in a file of its own, and signs with it from now on.
    pub(super) fn renew(&mut self, role: SigningRole, path: &Path) -> Result<(), SignError> {
        self.keys.insert(role, make_key(role, path)?);
        Ok(())
    }

    /// The id of a role's key, if that is at hand.
    pub fn id(&self, role: SigningRole) -> Result<Option<String>, SignError> {
        self.keys.get(&role).map(hex_id).transpose()
    }

    /// The id of the key in a file, if there is one.
    pub(super) fn id_in(path: &Path) -> Result<Option<String>, SignError> {
        read_key(path)?.as_ref().map(hex_id).transpose()
    }

    /// Reads the keys that are there; a missing one is an error only when its role is to be signed.
    pub fn open(directory: &Path) -> Result<Self, SignError> {
        let mut keys = BTreeMap::new();
        for role in SigningRole::ALL {
            if let Some(key) = read_key(&key_path(directory, role))? {
                keys.insert(role, key);
            }
        }
        if keys.is_empty() {
            return Err(refused(format!(
                "there are no signing keys in {}: a key file is called like its role, such as {}",
                directory.display(),
                key_path(directory, SigningRole::Timestamp).display()
            )));
        }
        Ok(Self {
            directory: directory.to_owned(),
            keys,
        })
    }

    /// Whether the key of a role is at hand.
    pub fn has(&self, role: SigningRole) -> bool {
        self.keys.contains_key(&role)
    }

    fn pair(&self, role: SigningRole) -> Result<&Ed25519KeyPair, SignError> {
        self.keys.get(&role).ok_or_else(|| {
            refused(format!(
                "the key of role {role} is needed and {} is not there: run this where that key is kept",
                key_path(&self.directory, role).display()
            ))
        })
    }

    /// The public key as TUF writes it.
    pub(super) fn public(&self, role: SigningRole) -> Result<Key, SignError> {
        Ok(self.pair(role)?.tuf_key())
    }

    pub(super) fn sign(&self, role: SigningRole, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.pair(role)?.sign(message).as_ref().to_vec())
    }
}

/// The key id that TUF derives from a key.
pub(super) fn key_id(key: &Key) -> Result<Decoded<Hex>, SignError> {
    key.key_id()
        .map_err(|e| refused(format!("a public key has no key id: {e}")))
}

fn hex_id(pair: &Ed25519KeyPair) -> Result<String, SignError> {
    Ok(hex::encode(&*key_id(&pair.tuf_key())?))
}

fn make_key(role: SigningRole, path: &Path) -> Result<Ed25519KeyPair, SignError> {
    let failed = |_| refused(format!("cannot make the {role} key"));
    let pair = Ed25519KeyPair::generate().map_err(failed)?;
    let document = pair.to_pkcs8v1().map_err(failed)?;
    let text = pem::encode_config(
        &pem::Pem::new(PEM_TAG, document.as_ref()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    );
    durable::write(path, text.as_bytes(), Access::Owner)?;
    Ok(pair)
}

pub(super) fn key_path(directory: &Path, role: SigningRole) -> PathBuf {
    directory.join(format!("{role}.pem"))
}

fn read_key(path: &Path) -> Result<Option<Ed25519KeyPair>, SignError> {
    let Some(text) = durable::read(path, MAX_KEY_BYTES)? else {
        return Ok(None);
    };
    let read = |source| SignError::Read {
        path: path.to_owned(),
        source,
    };
    let mode = std::fs::metadata(path).map_err(read)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(refused(format!(
            "the key {path} may be read by others (mode {mode:04o}): run `chmod 600 {path}`, and if others \
             may have read it, replace it",
            path = path.display(),
            mode = mode & 0o777
        )));
    }
    let wrong = || {
        refused(format!(
            "{} is not an Ed25519 key (PKCS#8, PEM)",
            path.display()
        ))
    };
    let document = pem::parse(&text).map_err(|_| wrong())?;
    if document.tag() != PEM_TAG {
        return Err(wrong());
    }
    let pair = Ed25519KeyPair::from_pkcs8(document.contents()).map_err(|_| wrong())?;
    debug_assert_eq!(pair.public_key().as_ref().len(), 32);
    Ok(Some(pair))
}
