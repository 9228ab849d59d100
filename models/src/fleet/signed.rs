//! A message signed with a device's key, over the exact bytes that travel.
//!
//! fleetctl counts only messages that verify with the key it certified for that device, so neither a rogue
//! device nor the broker can speak for another. The device's name and the message's purpose are part of what
//! is signed. Algorithm: ECDSA P-256 with SHA-256, ASN.1 signatures (FIPS 186-5), the key of the device's
//! TLS certificate.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::name::DeviceId;

/// What a signed message is about; it keeps a signature from being moved to another topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Status,
    Telemetry,
}

impl Purpose {
    fn label(self) -> &'static str {
        match self {
            Self::Status => "edgeward status v1",
            Self::Telemetry => "edgeward telemetry v1",
        }
    }
}

/// The envelope as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    #[serde(with = "bytes_field")]
    pub payload: Vec<u8>,
    #[serde(with = "bytes_field")]
    pub signature: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum SignedError {
    #[error("the message of device {device} is not a signed envelope")]
    Envelope {
        device: DeviceId,
        #[source]
        source: CodecError,
    },
    #[error("the message of device {device} does not carry that device's signature")]
    Signature { device: DeviceId },
    #[error("the certified public key of device {device} cannot be read")]
    Key { device: DeviceId },
}

/// The bytes that are signed: purpose, device and payload, each ended by a NUL that neither of the first two
/// can hold.
pub fn signed_bytes(purpose: Purpose, device: &DeviceId, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 100);
    bytes.extend_from_slice(purpose.label().as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(device.as_str().as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(payload);
    bytes
}

/// Wraps `payload`; `sign` is handed the bytes of [`signed_bytes`] and returns an ASN.1 ECDSA signature.
pub fn seal<E>(
    purpose: Purpose,
    device: &DeviceId,
    payload: Vec<u8>,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Envelope, E> {
    let signature = sign(&signed_bytes(purpose, device, &payload))?;
    Ok(Envelope { payload, signature })
}

/// Opens an envelope. `public_key` is the device's SubjectPublicKeyInfo (DER), as certified.
/// Returns the payload exactly as it was signed.
pub fn open(
    purpose: Purpose,
    device: &DeviceId,
    public_key: &[u8],
    message: &[u8],
) -> Result<Vec<u8>, SignedError> {
    let envelope: Envelope =
        codec::decode("signed envelope", message).map_err(|source| SignedError::Envelope {
            device: device.clone(),
            source,
        })?;
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key).map_err(|_| {
        SignedError::Key {
            device: device.clone(),
        }
    })?;
    let bytes = signed_bytes(purpose, device, &envelope.payload);
    key.verify_sig(&bytes, &envelope.signature)
        .map_err(|_| SignedError::Signature {
            device: device.clone(),
        })?;
    Ok(envelope.payload)
}

/// Byte strings as CBOR byte strings (serde would write arrays of numbers).
mod bytes_field {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }

        deserializer.deserialize_byte_buf(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    #[test]
    fn only_the_device_itself_can_speak_for_itself_and_only_on_that_subject() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key");
        let public = key.public_key().as_der().expect("der").as_ref().to_vec();
        let device: DeviceId = "a".parse().expect("name");
        let envelope = seal(Purpose::Status, &device, b"payload".to_vec(), |bytes| {
            key.sign(&SystemRandom::new(), bytes)
                .map(|s| s.as_ref().to_vec())
        })
        .expect("sign");
        let message = codec::encode("envelope", &envelope).expect("encode");
        assert_eq!(
            open(Purpose::Status, &device, &public, &message).expect("open"),
            b"payload"
        );
        let other: DeviceId = "b".parse().expect("name");
        assert!(open(Purpose::Status, &other, &public, &message).is_err());
        assert!(open(Purpose::Telemetry, &device, &public, &message).is_err());
        let mut forged = envelope;
        forged.payload[0] ^= 1;
        let message = codec::encode("envelope", &forged).expect("encode");
        assert!(open(Purpose::Status, &device, &public, &message).is_err());
    }
}
