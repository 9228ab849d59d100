//! Private keys under a passphrase: PKCS#8's EncryptedPrivateKeyInfo (RFC 5958) with PBES2 (RFC 8018).
//!
//! The form that OpenSSL writes and reads: PBKDF2 with HMAC-SHA-256 makes an AES-256-CBC key of the passphrase. `keys`
//! keeps the keys of roles so, `fleetctl` the key of the fleet's authority. Neither passphrase nor key is ever part of
//! an error or of debugging output, and both are wiped from memory when they are dropped.

use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;

use aws_lc_rs::cipher::{
    AES_256, AES_256_KEY_LEN, DecryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{pbkdf2, rand};
use yasna::models::ObjectIdentifier;
use yasna::{ASN1Error, ASN1ErrorKind, BERReader, DERWriterSeq};
use zeroize::Zeroizing;

use super::{SignError, refused};

/// PEM tags of the two forms.
pub const ENCRYPTED_TAG: &str = "ENCRYPTED PRIVATE KEY";
pub const PLAIN_TAG: &str = "PRIVATE KEY";

/// What OWASP asks of PBKDF2 with HMAC-SHA-256; a fifth of a second on a small machine.
const ITERATIONS: u32 = 600_000;
/// A file that asks for more would only keep this computer busy.
const MAX_ITERATIONS: u32 = 10_000_000;
const SALT_BYTES: usize = 16;
const IV_BYTES: usize = 16;

const PBES2: &[u64] = &[1, 2, 840, 113_549, 1, 5, 13];
const PBKDF2: &[u64] = &[1, 2, 840, 113_549, 1, 5, 12];
const HMAC_SHA256: &[u64] = &[1, 2, 840, 113_549, 2, 9];
const AES_256_CBC: &[u64] = &[2, 16, 840, 1, 101, 3, 4, 1, 42];

/// What opens an encrypted key.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Knows or asks for the passphrase of the encrypted key in a file; an error says why it could not be had.
pub type Unlock = Box<dyn Fn(&Path, &EncryptedKey) -> Result<Unlocked, String> + Send>;

/// An encrypted key that was opened.
pub struct Unlocked {
    /// PKCS#8, DER.
    pub document: Zeroizing<Vec<u8>>,
    pub passphrase: Passphrase,
}

/// A private key as it stands in its file.
#[derive(Debug, Clone)]
pub struct EncryptedKey {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    iv: [u8; IV_BYTES],
    content: Vec<u8>,
}

impl EncryptedKey {
    /// Encrypts a PKCS#8 document.
    pub fn seal(document: &[u8], passphrase: &Passphrase) -> Result<Self, SignError> {
        let failed = |_: Unspecified| refused("a private key could not be encrypted");
        let mut salt = vec![0; SALT_BYTES];
        rand::fill(&mut salt).map_err(failed)?;
        let iterations = NonZeroU32::new(ITERATIONS).ok_or_else(|| failed(Unspecified))?;
        let key = derive(passphrase, &salt, iterations).map_err(failed)?;
        let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).map_err(failed)?;
        let mut content = document.to_vec();
        let context = key.encrypt(&mut content).map_err(failed)?;
        let iv: &[u8] = (&context).try_into().map_err(failed)?;
        Ok(Self {
            salt,
            iterations,
            iv: iv.try_into().map_err(|_| failed(Unspecified))?,
            content,
        })
    }

    /// The PKCS#8 document, or `None`: it is another passphrase.
    pub fn open(&self, passphrase: &Passphrase) -> Option<Zeroizing<Vec<u8>>> {
        let key = derive(passphrase, &self.salt, self.iterations).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
        let context = DecryptionContext::Iv128(FixedLength::from(self.iv));
        let mut content = Zeroizing::new(self.content.clone());
        let document = Zeroizing::new(key.decrypt(&mut content, context).ok()?.to_vec());
        // One wrong passphrase in 256 leaves what looks like good padding.
        yasna::parse_der(&document, |reader| reader.read_der()).ok()?;
        Some(document)
    }

    /// As PEM.
    pub fn to_pem(&self) -> String {
        let der = yasna::construct_der(|writer| {
            writer.write_sequence(|info| {
                let algorithm = info.next();
                algorithm.write_sequence(|algorithm| self.write_algorithm(algorithm));
                info.next().write_bytes(&self.content);
            });
        });
        to_pem(ENCRYPTED_TAG, &der)
    }

    fn write_algorithm(&self, algorithm: &mut DERWriterSeq<'_>) {
        algorithm.next().write_oid(&oid(PBES2));
        algorithm.next().write_sequence(|parameters| {
            parameters.next().write_sequence(|derivation| {
                derivation.next().write_oid(&oid(PBKDF2));
                derivation.next().write_sequence(|pbkdf2| {
                    pbkdf2.next().write_bytes(&self.salt);
                    pbkdf2.next().write_u32(self.iterations.get());
                    pbkdf2.next().write_sequence(|prf| {
                        prf.next().write_oid(&oid(HMAC_SHA256));
                        prf.next().write_null();
                    });
                });
            });
            parameters.next().write_sequence(|cipher| {
                cipher.next().write_oid(&oid(AES_256_CBC));
                cipher.next().write_bytes(&self.iv);
            });
        });
    }

    /// Reads the DER inside the PEM. `None`: it is no encrypted key, or encrypted in another way than this.
    pub fn parse(der: &[u8]) -> Option<Self> {
        yasna::parse_der(der, |reader| {
            reader.read_sequence(|info| {
                let (salt, iterations, iv) = info.next().read_sequence(|algorithm| {
                    expect(algorithm.next(), PBES2)?;
                    algorithm.next().read_sequence(|parameters| {
                        let (salt, iterations) = parameters.next().read_sequence(|derivation| {
                            expect(derivation.next(), PBKDF2)?;
                            derivation.next().read_sequence(|pbkdf2| {
                                let salt = pbkdf2.next().read_bytes()?;
                                let iterations = pbkdf2.next().read_u32()?;
                                // The key's length is said by the cipher too.
                                pbkdf2.read_optional(|length| length.read_u32())?;
                                pbkdf2.next().read_sequence(|prf| {
                                    expect(prf.next(), HMAC_SHA256)?;
                                    prf.next().read_null()
                                })?;
                                Ok((salt, iterations))
                            })
                        })?;
                        let iv = parameters.next().read_sequence(|cipher| {
                            expect(cipher.next(), AES_256_CBC)?;
                            cipher.next().read_bytes()
                        })?;
                        Ok((salt, iterations, iv))
                    })
                })?;
                let content = info.next().read_bytes()?;
                let iterations = NonZeroU32::new(iterations)
                    .filter(|iterations| iterations.get() <= MAX_ITERATIONS)
                    .ok_or_else(unexpected)?;
                Ok(Self {
                    salt,
                    iterations,
                    iv: iv.try_into().map_err(|_| unexpected())?,
                    content,
                })
            })
        })
        .ok()
    }
}

fn derive(
    passphrase: &Passphrase,
    salt: &[u8],
    iterations: NonZeroU32,
) -> Result<UnboundCipherKey, Unspecified> {
    let mut key = Zeroizing::new([0; AES_256_KEY_LEN]);
    let secret = passphrase.as_str().as_bytes();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        secret,
        &mut *key,
    );
    UnboundCipherKey::new(&AES_256, &*key)
}

fn oid(components: &[u64]) -> ObjectIdentifier {
    ObjectIdentifier::from_slice(components)
}

fn expect(reader: BERReader<'_, '_>, components: &[u64]) -> Result<(), ASN1Error> {
    match reader.read_oid()? == oid(components) {
        true => Ok(()),
        false => Err(unexpected()),
    }
}

fn unexpected() -> ASN1Error {
    ASN1Error::new(ASN1ErrorKind::Invalid)
}

pub(super) fn to_pem(tag: &str, der: &[u8]) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), lines)
}

/// A private key's PEM file of any kind, encrypted or not.
pub enum PrivatePem {
    Plain(Zeroizing<Vec<u8>>),
    Encrypted(EncryptedKey),
}

impl PrivatePem {
    /// `None`: no private key stands in it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let blocks = pem::parse_many(text).ok()?;
        let block = blocks
            .iter()
            .find(|block| [PLAIN_TAG, ENCRYPTED_TAG].contains(&block.tag()))?;
        match block.tag() {
            PLAIN_TAG => Some(Self::Plain(Zeroizing::new(block.contents().to_vec()))),
            _ => EncryptedKey::parse(block.contents()).map(Self::Encrypted),
        }
    }
}

/// The PEM of a key that is not encrypted.
pub fn plain_pem(document: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(to_pem(PLAIN_TAG, document))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl genpkey -algorithm ed25519 | openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -iter 2048`
    const OPENSSL: &str = include_str!("../../tests/openssl-encrypted-key.pem");

    #[test]
    fn what_openssl_encrypted_is_opened_with_its_passphrase_and_no_other() {
        let Some(PrivatePem::Encrypted(key)) = PrivatePem::parse(OPENSSL.as_bytes()) else {
            panic!("not an encrypted key");
        };
        let open = |text: &str| key.open(&Passphrase::new(text.to_owned()));
        let document = open("correct horse battery").expect("opened");
        aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document).expect("a key");
        assert!(open("correct horse batterz").is_none());
        assert!(open("").is_none());
    }

    #[test]
    fn a_key_comes_back_from_its_file_and_looks_like_nothing_in_it() {
        let secret = b"0\x0dplantedsecret";
        let passphrase = Passphrase::new("correct horse battery".to_owned());
        let key = EncryptedKey::seal(secret, &passphrase).expect("sealed");
        let text = key.to_pem();
        let Some(PrivatePem::Encrypted(read)) = PrivatePem::parse(text.as_bytes()) else {
            panic!("not an encrypted key: {text}");
        };
        assert_eq!(
            read.open(&passphrase).map(|d| d.to_vec()),
            Some(secret.to_vec())
        );
        let again = EncryptedKey::seal(secret, &passphrase).expect("sealed");
        assert_ne!((&again.salt, again.iv), (&key.salt, key.iv));
        let shown = format!("{passphrase:?}");
        assert!(!shown.contains("horse"), "{shown}");
    }
}
