//! A device's claim to a place in the fleet: a token that works once, for one of a few serial numbers.
//!
//! `fleetctl claim create` makes the token; it travels with the device. The device's request (`edgeward enroll
//! --claim`) proves that it has the token and does not hold it: whoever sees the request on its way can neither use the
//! token nor change what was asked.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::{hmac, rand};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub const FORMAT: u32 = 1;
/// A request larger than this many bytes is refused unread.
pub const MAX_CLAIM_BYTES: u64 = 128 * 1024;
/// A longer one is not a serial number.
pub const MAX_SERIAL_BYTES: usize = 128;
const PREFIX: &str = "edgeward-claim";
const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 8;

/// A secret with a name. Its text is `edgeward-claim.{id}.{secret}`.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimToken {
    pub id: String,
    secret: [u8; SECRET_BYTES],
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimToken({}, …)", self.id)
    }
}

/// What checks requests made with a token. It cannot be turned back into the token, but whoever has it can make such
/// requests: it is kept as a secret too.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClaimKey(Digest);

impl fmt::Debug for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimKey(…)")
    }
}

/// What a device with a token asks with. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    pub format: u32,
    /// Of the token.
    pub claim: String,
    /// Of the device, as its maker numbered it.
    pub serial: String,
    /// PEM: the certificate request.
    pub request: String,
    /// HMAC-SHA-256 over serial and request, in hexadecimal.
    mac: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("it is not a claim token, which begins with {PREFIX}")]
    NotAToken,
    #[error("it is not a request with a claim as `edgeward enroll --claim` writes it")]
    Json(#[source] serde_json::Error),
    #[error("it has format {0}; this program reads format {FORMAT}: update it")]
    Format(u32),
    #[error("the system gives no random numbers")]
    Random,
}

impl ClaimToken {
    pub fn generate() -> Result<Self, ClaimError> {
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        rand::fill(&mut bytes).map_err(|_| ClaimError::Random)?;
        let (id, secret) = bytes.split_at(ID_BYTES);
        Ok(Self {
            id: hex::encode(id),
            secret: secret.try_into().map_err(|_| ClaimError::Random)?,
        })
    }

    /// The text that is given to a device. Whoever reads it can use it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}", self.id, hex::encode(self.secret))
    }

    pub fn key(&self) -> ClaimKey {
        ClaimKey(Digest::of(&[PREFIX.as_bytes(), &self.secret].concat()))
    }

    /// A request for the key of a certificate request (PEM).
    pub fn request(&self, serial: &str, request: &str) -> ClaimRequest {
        let mac = hmac::sign(&self.key().hmac(), &message(serial, request));
        ClaimRequest {
            format: FORMAT,
            claim: self.id.clone(),
            serial: serial.to_owned(),
            request: request.to_owned(),
            mac: hex::encode(mac),
        }
    }
}

impl FromStr for ClaimToken {
    type Err = ClaimError;

    fn from_str(text: &str) -> Result<Self, ClaimError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ClaimError::NotAToken);
        };
        let secret = hex::decode(secret).ok().and_then(|s| s.try_into().ok());
        let known = id.len() == 2 * ID_BYTES && id.bytes().all(|b| b.is_ascii_hexdigit());
        match (secret, known) {
            (Some(secret), true) => Ok(Self {
                id: id.to_owned(),
                secret,
            }),
            _ => Err(ClaimError::NotAToken),
        }
    }
}

impl ClaimKey {
    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_bytes())
    }

    /// Whether the token of this key made the request as it stands.
    pub fn made(&self, request: &ClaimRequest) -> bool {
        let Ok(mac) = hex::decode(&request.mac) else {
            return false;
        };
        let message = message(&request.serial, &request.request);
        hmac::verify(&self.hmac(), &message, &mac).is_ok()
    }
}

impl ClaimRequest {
    pub fn read(bytes: &[u8]) -> Result<Self, ClaimError> {
        let request: Self = serde_json::from_slice(bytes).map_err(ClaimError::Json)?;
        match request.format {
            FORMAT => Ok(request),
            other => Err(ClaimError::Format(other)),
        }
    }
}

/// Lengths first, so that no two pairs are the same bytes.
fn message(serial: &str, request: &str) -> Vec<u8> {
    let length = (serial.len() as u64).to_be_bytes();
    [
        PREFIX.as_bytes(),
        &length,
        serial.as_bytes(),
        request.as_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_proves_its_token_and_nothing_of_it_can_be_changed() {
        let token = ClaimToken::generate().expect("token");
        let read: ClaimToken = token.reveal().parse().expect("token");
        assert_eq!(read, token);
        let request = token.request("SN-1", "-----BEGIN");
        let text = serde_json::to_string(&request).expect("json");
        let secret = hex::encode(token.secret);
        assert!(!text.contains(&secret) && !format!("{token:?}").contains(&secret));
        let read = ClaimRequest::read(text.as_bytes()).expect("request");
        assert!(token.key().made(&read));
        for change in [
            |r: &mut ClaimRequest| r.serial = "SN-2".to_owned(),
            |r: &mut ClaimRequest| r.request.push('x'),
            |r: &mut ClaimRequest| r.mac.clear(),
        ] {
            let mut changed = request.clone();
            change(&mut changed);
            assert!(!token.key().made(&changed), "{changed:?}");
        }
        let other = ClaimToken::generate().expect("token");
        assert!(!other.key().made(&request));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(text in "\\PC{0,120}") {
            let _ = text.parse::<ClaimToken>();
            let _ = ClaimRequest::read(text.as_bytes());
        }
    }
}
