//! One signing key in its file: Ed25519, PKCS#8, PEM, readable by its owner only, encrypted or not.
//!
//! An encrypted one has its public key beside it in the same file, so that which key it is can be told without its
//! passphrase; `keys` asks for that only when something is to be signed.

use std::cell::OnceCell;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::Sign;
use zeroize::Zeroizing;

use super::encrypted::{EncryptedKey, Passphrase, PrivatePem, Unlock, plain_pem, to_pem};
use super::keys::{SigningRole, key_path};
use super::{SignError, refused};
use crate::durable::{self, Access};

const PUBLIC_TAG: &str = "PUBLIC KEY";
const MAX_KEY_BYTES: u64 = 16 * 1024;
/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const PUBLIC_PREFIX: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// A signing key that is at hand, perhaps behind a passphrase.
pub(super) struct SigningKey {
    path: PathBuf,
    pub public: Key,
    pub id: Decoded<Hex>,
    secret: Secret,
}

enum Secret {
    Plain(Ed25519KeyPair),
    Encrypted {
        key: EncryptedKey,
        opened: OnceCell<(Ed25519KeyPair, Passphrase)>,
    },
}

impl SigningKey {
    /// Makes a key and its file, encrypted if a passphrase is given.
    pub fn make(path: &Path, passphrase: Option<&Passphrase>) -> Result<Self, SignError> {
        let failed = |_| refused(format!("cannot make the key {}", path.display()));
        let pair = Ed25519KeyPair::generate().map_err(failed)?;
        let document = Zeroizing::new(pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec());
        write(path, &document, &pair, passphrase)?;
        Self::read(path)?.ok_or_else(|| refused(format!("{} is gone", path.display())))
    }

    /// `None`: there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, SignError> {
        let Some(text) = durable::read(path, MAX_KEY_BYTES)? else {
            return Ok(None);
        };
        let text = Zeroizing::new(text);
        check_mode(path)?;
        let (public, secret) = match PrivatePem::parse(&text) {
            Some(PrivatePem::Plain(document)) => {
                let pair = pair(path, &document)?;
                (pair.tuf_key(), Secret::Plain(pair))
            }
            Some(PrivatePem::Encrypted(key)) => {
                let public = parse_public(&text).ok_or_else(|| {
                    refused(format!(
                        "{} holds an encrypted key without its public key: decrypt it with openssl, then run \
                         `fleetctl key encrypt`",
                        path.display()
                    ))
                })?;
                let opened = OnceCell::new();
                (public, Secret::Encrypted { key, opened })
            }
            None => return Err(not_a_key(path)),
        };
        Ok(Some(Self {
            path: path.to_owned(),
            id: key_id(&public)?,
            public,
            secret,
        }))
    }

    pub fn sign(&self, message: &[u8], unlock: &Unlock) -> Result<Vec<u8>, SignError> {
        let pair = match &self.secret {
            Secret::Plain(pair) => pair,
            Secret::Encrypted { .. } => match self.opened(unlock)? {
                Some((pair, _)) => pair,
                None => return Err(not_a_key(&self.path)),
            },
        };
        Ok(pair.sign(message).as_ref().to_vec())
    }

    /// The passphrase that this key is behind, asked for if need be.
    pub fn passphrase(&self, unlock: &Unlock) -> Result<Option<Passphrase>, SignError> {
        Ok(self
            .opened(unlock)?
            .map(|(_, passphrase)| passphrase.clone()))
    }

    fn opened(&self, unlock: &Unlock) -> Result<Option<&(Ed25519KeyPair, Passphrase)>, SignError> {
        let Secret::Encrypted { key, opened } = &self.secret else {
            return Ok(None);
        };
        if opened.get().is_none() {
            let answer = unlock(&self.path, key).map_err(|problem| SignError::Locked {
                path: self.path.clone(),
                problem,
            })?;
            let pair = pair(&self.path, &answer.document)?;
            if pair.tuf_key() != self.public {
                return Err(refused(format!(
                    "{} holds another key than the public one beside it: the file was changed",
                    self.path.display()
                )));
            }
            // Nobody else sets it: this is one thread.
            drop(opened.set((pair, answer.passphrase)));
        }
        Ok(opened.get())
    }

    /// Puts the key behind a passphrase. False if it is behind one.
    pub fn encrypt(path: &Path, passphrase: &Passphrase) -> Result<bool, SignError> {
        let text = durable::read(path, MAX_KEY_BYTES)?.map(Zeroizing::new);
        match text.as_deref().and_then(|text| PrivatePem::parse(text)) {
            Some(PrivatePem::Plain(document)) => {
                write(path, &document, &pair(path, &document)?, Some(passphrase))?;
                Ok(true)
            }
            Some(PrivatePem::Encrypted(_)) => Ok(false),
            None => Err(not_a_key(path)),
        }
    }

    /// Takes the passphrase away. False if there is none.
    pub fn decrypt(path: &Path, unlock: &Unlock) -> Result<bool, SignError> {
        let text = durable::read(path, MAX_KEY_BYTES)?.map(Zeroizing::new);
        match text.as_deref().and_then(|text| PrivatePem::parse(text)) {
            Some(PrivatePem::Encrypted(key)) => {
                let answer = unlock(path, &key).map_err(|problem| SignError::Locked {
                    path: path.to_owned(),
                    problem,
                })?;
                write(path, &answer.document, &pair(path, &answer.document)?, None)?;
                Ok(true)
            }
            Some(PrivatePem::Plain(_)) => Ok(false),
            None => Err(not_a_key(path)),
        }
    }
}

/// The public half of a signing key.
#[derive(Debug, Clone)]
pub struct PublicKey(pub(super) Key);

impl PublicKey {
    /// In hexadecimal.
    pub fn id(&self) -> Result<String, SignError> {
        Ok(hex::encode(&*key_id(&self.0)?))
    }
}

/// Reads a public key's PEM file, such as [`public_key`] writes.
pub fn read_public(path: &Path) -> Result<PublicKey, SignError> {
    let text = durable::read(path, MAX_KEY_BYTES)?
        .ok_or_else(|| refused(format!("there is no file {}", path.display())))?;
    parse_public(&text).map(PublicKey).ok_or_else(|| {
        refused(format!(
            "{} is not an Ed25519 public key (PEM), as `fleetctl key generate` writes it",
            path.display()
        ))
    })
}

/// Makes a role's key, if the directory has none.
pub fn make_key(
    directory: &Path,
    role: SigningRole,
    passphrase: Option<&Passphrase>,
) -> Result<(), SignError> {
    let path = key_path(directory, role);
    if path.exists() {
        return Err(refused(format!(
            "there is a key of role {role} in {}; `fleetctl key rotate {role}` replaces it",
            path.display()
        )));
    }
    durable::create_directory(directory)?;
    SigningKey::make(&path, passphrase).map(drop)
}

/// The public half of a role's key as PEM.
pub fn public_key(directory: &Path, role: SigningRole) -> Result<String, SignError> {
    let path = key_path(directory, role);
    let key = SigningKey::read(&path)?
        .ok_or_else(|| refused(format!("there is no key in {}", path.display())))?;
    match &key.public {
        Key::Ed25519 { keyval, .. } => {
            let der = [&PUBLIC_PREFIX[..], &keyval.public].concat();
            Ok(to_pem(PUBLIC_TAG, &der))
        }
        _ => Err(not_a_key(&path)),
    }
}

/// The key id that TUF derives from a key.
pub(super) fn key_id(key: &Key) -> Result<Decoded<Hex>, SignError> {
    key.key_id()
        .map_err(|e| refused(format!("a public key has no key id: {e}")))
}

/// Whether a key made this signature. This fleet's keys are all of one kind.
pub(super) fn verifies(key: &Key, message: &[u8], signature: &[u8]) -> bool {
    match key {
        Key::Ed25519 { keyval, .. } => UnparsedPublicKey::new(&ED25519, &keyval.public[..])
            .verify(message, signature)
            .is_ok(),
        _ => false,
    }
}

fn write(
    path: &Path,
    document: &[u8],
    pair: &Ed25519KeyPair,
    passphrase: Option<&Passphrase>,
) -> Result<(), SignError> {
    let text = match passphrase {
        None => plain_pem(document),
        Some(passphrase) => {
            let key = EncryptedKey::seal(document, passphrase)?;
            let public = [&PUBLIC_PREFIX[..], pair.public_key().as_ref()].concat();
            Zeroizing::new(key.to_pem() + &to_pem(PUBLIC_TAG, &public))
        }
    };
    Ok(durable::write(path, text.as_bytes(), Access::Owner)?)
}

/// The public key in a PEM file.
fn parse_public(text: &[u8]) -> Option<Key> {
    let blocks = pem::parse_many(text).ok()?;
    let block = blocks.iter().find(|block| block.tag() == PUBLIC_TAG)?;
    let raw = block.contents().strip_prefix(&PUBLIC_PREFIX)?;
    hex::encode(raw).parse().ok()
}

fn pair(path: &Path, document: &[u8]) -> Result<Ed25519KeyPair, SignError> {
    // OpenSSL writes the private half alone, ours has both: either way the public one is computed.
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(document).map_err(|_| not_a_key(path))
}

fn not_a_key(path: &Path) -> SignError {
    refused(format!(
        "{} is not an Ed25519 key (PKCS#8, PEM; if it is encrypted, with PBES2 of PBKDF2, HMAC-SHA-256 and AES-256-CBC)",
        path.display()
    ))
}

fn check_mode(path: &Path) -> Result<(), SignError> {
    let metadata = std::fs::metadata(path).map_err(|source| SignError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(refused(format!(
            "the key {path} may be read by others (mode {mode:04o}): run `chmod 600 {path}`, and if others \
             may have read it, replace it",
            path = path.display(),
            mode = mode & 0o777
        )));
    }
    Ok(())
}
