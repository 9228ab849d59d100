//! The private key of the fleet's authority, and the passphrases of this and the signing keys.

use std::sync::Arc;

use anyhow::{Context, Result};
use edgeward_models::durable::{self, Access};
use edgeward_models::sign::{EncryptedKey, Passphrase, PrivatePem, SignError, Unlock, plain_pem};
use zeroize::Zeroizing;

use super::Home;
use crate::authority::Authority;
use crate::passphrase::Passphrases;

impl Home {
    /// The authority; asks for its key's passphrase if that is encrypted.
    pub fn authority(&self) -> Result<Authority> {
        let document = match self.ca_key()? {
            PrivatePem::Plain(document) => document,
            PrivatePem::Encrypted(key) => self.unlocked(&key)?,
        };
        Authority::from_pem(
            &self.read(&self.ca_certificate_path())?,
            &plain_pem(&document),
        )
    }

    fn unlocked(&self, key: &EncryptedKey) -> Result<Zeroizing<Vec<u8>>> {
        let path = self.ca_key_path();
        match self.passphrases.unlock(&path, key) {
            Ok(unlocked) => Ok(unlocked.document),
            Err(problem) => Err(SignError::Locked { path, problem }.into()),
        }
    }

    fn ca_key(&self) -> Result<PrivatePem> {
        let text = Zeroizing::new(self.read(&self.ca_key_path())?);
        PrivatePem::parse(text.as_bytes())
            .with_context(|| format!("{} is not a private key", self.ca_key_path().display()))
    }

    /// Puts the authority's key behind a passphrase. False if it is behind one.
    pub fn encrypt_authority(&self, passphrase: &Passphrase) -> Result<bool> {
        let PrivatePem::Plain(document) = self.ca_key()? else {
            return Ok(false);
        };
        let text = EncryptedKey::seal(&document, passphrase)?.to_pem();
        durable::write(&self.ca_key_path(), text.as_bytes(), Access::Owner)?;
        Ok(true)
    }

    /// Takes the passphrase of the authority's key away. False if it has none.
    pub fn decrypt_authority(&self) -> Result<bool> {
        let PrivatePem::Encrypted(key) = self.ca_key()? else {
            return Ok(false);
        };
        let text = plain_pem(&self.unlocked(&key)?);
        durable::write(&self.ca_key_path(), text.as_bytes(), Access::Owner)?;
        Ok(true)
    }

    pub fn passphrases(&self) -> &Passphrases {
        &self.passphrases
    }

    /// Opens encrypted signing keys.
    pub fn unlock(&self) -> Unlock {
        let passphrases = Arc::clone(&self.passphrases);
        Box::new(move |path, key| passphrases.unlock(path, key))
    }
}
