//! The signing keys of a fleet.
//!
//! One file per role (`key_file`), so that each key can be kept where its role is signed: root on a stick in a safe,
//! snapshot and timestamp on the machine that refreshes daily.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tough::schema::Signature;
use tough::schema::key::Key;

use super::encrypted::{Passphrase, Unlock};
use super::key_file::SigningKey;
use super::{SignError, refused};
use crate::durable;

/// A role that signs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// The signing keys of a fleet that are at hand: at most one per role, in a directory.
pub struct KeyRing {
    directory: PathBuf,
    keys: BTreeMap<SigningRole, SigningKey>,
    unlock: Unlock,
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
        Self::generate_with(directory, None)
    }

    /// [`Self::generate`], with every key behind a passphrase.
    pub fn generate_with(
        directory: &Path,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, SignError> {
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
            SigningKey::make(&key_path(directory, role), passphrase)?;
        }
        Self::open_with(directory, known(passphrase.cloned()))
    }

    /// Signs a role with the key in another file from now on, which is made if it does not exist; encrypted if the
    /// one before is, with the same passphrase.
    pub(super) fn renew(&mut self, role: SigningRole, path: &Path) -> Result<(), SignError> {
        let key = match SigningKey::read(path)? {
            Some(waiting) => waiting,
            None => {
                let before = self.keys.get(&role);
                let passphrase = before.map(|key| key.passphrase(&self.unlock)).transpose()?;
                SigningKey::make(path, passphrase.flatten().as_ref())?
            }
        };
        self.keys.insert(role, key);
        Ok(())
    }

    /// The id of a role's key, if that is at hand.
    pub fn id(&self, role: SigningRole) -> Option<String> {
        self.keys.get(&role).map(|key| hex::encode(&*key.id))
    }

    /// The id of the key in a file, if there is one.
    pub(super) fn id_in(path: &Path) -> Result<Option<String>, SignError> {
        Ok(SigningKey::read(path)?.map(|key| hex::encode(&*key.id)))
    }

    /// Reads the keys that are there; a missing one is an error only when its role is to be signed.
    pub fn open(directory: &Path) -> Result<Self, SignError> {
        Self::open_with(directory, known(None))
    }

    /// [`Self::open`] with somebody who knows the passphrases of encrypted keys. They are asked for only when a
    /// role is to be signed.
    pub fn open_with(directory: &Path, unlock: Unlock) -> Result<Self, SignError> {
        let mut keys = BTreeMap::new();
        for role in SigningRole::ALL {
            if let Some(key) = SigningKey::read(&key_path(directory, role))? {
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
            unlock,
        })
    }

    /// Whether the key of a role is at hand.
    pub fn has(&self, role: SigningRole) -> bool {
        self.keys.contains_key(&role)
    }

    /// Makes sure that a role can be signed, which may ask for a passphrase.
    pub fn ready(&self, role: SigningRole) -> Result<(), SignError> {
        self.key(role)?.passphrase(&self.unlock).map(drop)
    }

    fn key(&self, role: SigningRole) -> Result<&SigningKey, SignError> {
        self.keys.get(&role).ok_or_else(|| {
            refused(format!(
                "the key of role {role} is needed and {} is not there: run this where that key is kept",
                key_path(&self.directory, role).display()
            ))
        })
    }

    /// The public key as TUF writes it.
    pub(super) fn public(&self, role: SigningRole) -> Result<Key, SignError> {
        Ok(self.key(role)?.public.clone())
    }

    pub(super) fn signature(
        &self,
        role: SigningRole,
        message: &[u8],
    ) -> Result<Signature, SignError> {
        let key = self.key(role)?;
        Ok(Signature {
            keyid: key.id.clone(),
            sig: key.sign(message, &self.unlock)?.into(),
        })
    }
}

/// Somebody who knows this passphrase and cannot ask for others.
fn known(passphrase: Option<Passphrase>) -> Unlock {
    Box::new(move |_, key| {
        let passphrase = passphrase
            .clone()
            .ok_or("there is nobody here to ask for it")?;
        let document = key.open(&passphrase).ok_or("it is another one")?;
        Ok(super::Unlocked {
            document,
            passphrase,
        })
    })
}

pub fn key_path(directory: &Path, role: SigningRole) -> PathBuf {
    directory.join(format!("{role}.pem"))
}

/// Puts a role's key behind a passphrase. False if it is behind one.
pub fn encrypt(directory: &Path, role: SigningRole, with: &Passphrase) -> Result<bool, SignError> {
    SigningKey::encrypt(&key_path(directory, role), with)
}

/// Takes the passphrase of a role's key away. False if it has none.
pub fn decrypt(directory: &Path, role: SigningRole, unlock: &Unlock) -> Result<bool, SignError> {
    SigningKey::decrypt(&key_path(directory, role), unlock)
}
