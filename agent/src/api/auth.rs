//! Who is asking, and whether they may.
//!
//! A connection gets a [`Gate`] when it is accepted: open (local user let in, or a client certificate that
//! verified), closed (a local user that is not let in: 403 to everything), or to be opened by a bearer
//! token with each request (401 otherwise). Only names reach the log: users, certificate subjects, token
//! names; never a token.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::config;

/// The bearer tokens of the configuration: names, and digests of tokens.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    entries: Vec<(String, [u8; 32])>,
}

impl Tokens {
    pub fn new(tokens: &[config::Token]) -> anyhow::Result<Self> {
        let mut entries = Vec::new();
        for token in tokens {
            let mut digest = [0; 32];
            hex::decode_to_slice(&token.sha256, &mut digest).map_err(|_| {
                anyhow::anyhow!(
                    "tls.tokens: sha256 of token {:?} must be the 64 hexadecimal digits that \
                     `edgeward token` printed",
                    token.name
                )
            })?;
            entries.push((token.name.clone(), digest));
        }
        Ok(Self { entries })
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The name of a token. Takes the same time for every token, right or wrong: digests are compared, all
    /// of them, and in constant time.
    fn find(&self, token: &[u8]) -> Option<&str> {
        let presented: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for (name, digest) in &self.entries {
            if bool::from(digest.ct_eq(&presented)) {
                found = Some(name.as_str());
            }
        }
        found
    }
}

/// What stands between a connection and the models.
#[derive(Debug, Clone)]
pub enum Gate {
    /// Every request is answered.
    Open,
    /// None is; the text says why.
    Closed(String),
    /// Those with a token of the configuration are.
    Token(Arc<Tokens>),
}

impl Gate {
    /// Lets a request through. The name of its token, if that is what opened the gate.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
        let tokens = match self {
            Self::Open => return Ok(None),
            Self::Closed(why) => {
                return Err(ApiError::new(hyper::StatusCode::FORBIDDEN, why.clone()).closing());
            }
            Self::Token(tokens) => tokens,
        };
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Err(ApiError::unauthenticated(
                "this door needs a token: send the header 'Authorization: Bearer TOKEN'",
            ));
        };
        bearer(value.as_bytes())
            .and_then(|token| tokens.find(token))
            .map(Some)
            .ok_or_else(|| {
                ApiError::unauthenticated(
                    "the Authorization header holds no bearer token that this device knows",
                )
            })
    }
}

/// The token of `Bearer TOKEN` (RFC 6750; the scheme's case does not matter).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ")).then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        let token = |name: &str, text: &str| config::Token {
            name: name.to_owned(),
            sha256: hex::encode(Sha256::digest(text)),
        };
        let tokens = Tokens::new(&[token("pacs", "one"), token("lis", "two")]);
        Gate::Token(Arc::new(tokens.expect("tokens")))
    }

    fn with(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().expect("value"));
        headers
    }

    #[test]
    fn the_right_token_opens_the_gate_and_names_its_owner() {
        let gate = gate();
        assert_eq!(gate.admit(&with("Bearer two")).expect("known"), Some("lis"));
        assert_eq!(
            gate.admit(&with("bearer  one ")).expect("known"),
            Some("pacs")
        );
    }

    #[test]
    fn everything_else_is_401_with_a_challenge() {
        let gate = gate();
        for wrong in ["Bearer three", "Basic one", "one", "Bearer", "Bearer ", ""] {
            let error = gate.admit(&with(wrong)).expect_err(wrong);
            let response = error.into_response();
            assert_eq!(response.status(), 401);
            assert!(response.headers().contains_key("www-authenticate"));
        }
        assert!(gate.admit(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_digest_that_is_not_one_is_refused_at_the_start() {
        for sha256 in ["", "ab", &"g".repeat(64), &"a".repeat(63)] {
            let token = config::Token {
                name: "x".to_owned(),
                sha256: sha256.to_owned(),
            };
            assert!(Tokens::new(&[token]).is_err());
        }
    }
}
