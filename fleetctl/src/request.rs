//! A device's certificate request, as a stranger may have written it.
//!
//! `authority` takes the key out of it and nothing else.

use anyhow::{Context, Result, bail};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// A certificate request larger than this many bytes is refused unread.
pub const MAX_REQUEST_BYTES: u64 = 64 * 1024;

/// The public key of a certificate request, once its self-signature proved that the requester holds the
/// private one. Only P-256 keys: devices sign their statuses with it.
pub fn requested_key(pem: &str) -> Result<SubjectPublicKeyInfo> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .map_err(|_| anyhow::anyhow!("the file holds no PEM certificate request"))?;
    if !matches!(
        block.label.as_str(),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"
    ) {
        bail!(
            "the file holds a {:?}, not a certificate request",
            block.label
        );
    }
    let (rest, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|_| anyhow::anyhow!("the certificate request cannot be read"))?;
    if !rest.is_empty() {
        bail!("the certificate request has trailing bytes");
    }
    let info = &request.certification_request_info;
    let public_key = info.subject_pki.raw;
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key).map_err(|_| {
        anyhow::anyhow!(
            "the request's key is not an ECDSA P-256 key, as `edgeward enroll` makes them"
        )
    })?;
    key.verify_sig(info.raw, &request.signature_value.data).map_err(|_| {
        anyhow::anyhow!(
            "the request is not signed with its own key: it was changed on its way, or its sender does \
             not hold that key"
        )
    })?;
    SubjectPublicKeyInfo::from_der(public_key).context("the request's key cannot be read")
}
