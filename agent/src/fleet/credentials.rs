//! The device's certificate as it stands, replaced while the agent serves.
//!
//! The fleet renews certificates for the key that the device has; the renewed one comes with the signed repository,
//! over whatever carrier. It is taken only if it is for this device's own key and name, if the fleet's authority
//! signed it and if it lasts longer than the present one. New connections show the new one; nothing is restarted, and
//! a certificate that cannot be taken changes nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair};
use edgeward_models::{DeviceId, Digest};
use jiff::Timestamp;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{self, IdentityError};

/// What is to be known of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub begins: Timestamp,
    pub ends: Timestamp,
}

pub struct Credentials {
    /// Where the identity is kept.
    directory: PathBuf,
    device: DeviceId,
    /// Of this device's key, DER.
    public_key: Vec<u8>,
    key_pem: Vec<u8>,
    roots: Arc<RootCertStore>,
    present: RwLock<Present>,
}

#[derive(Clone)]
struct Present {
    certified: Arc<CertifiedKey>,
    validity: Validity,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// What the enrolment brought, or the last renewal.
    pub fn new(
        directory: &Path,
        device: &DeviceId,
        key: &EcdsaKeyPair,
        key_pem: &[u8],
        certificate: &str,
        authority: &str,
    ) -> Result<Self, IdentityError> {
        let public_key = public_key(key)?;
        let validity = check(certificate, device, &public_key)?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            let root = root.map_err(|e| IdentityError::Tls(e.to_string()))?;
            roots
                .add(root)
                .map_err(|e| IdentityError::Tls(e.to_string()))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            device: device.clone(),
            public_key,
            key_pem: key_pem.to_owned(),
            roots: roots.into(),
            present: RwLock::new(Present {
                certified: certified(certificate, key_pem)?,
                validity,
            }),
        })
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    pub fn validity(&self) -> Validity {
        self.present().validity
    }

    /// SHA-256 of this device's public key.
    pub fn key_digest(&self) -> Digest {
        Digest::of(&self.public_key)
    }

    /// Whether a certificate is one to take: `Ok(None)` if it lasts no longer than the present one.
    pub fn judge(
        &self,
        certificate: &str,
        now: Timestamp,
    ) -> Result<Option<Validity>, IdentityError> {
        let validity = check(certificate, &self.device, &self.public_key)?;
        if validity.ends <= self.validity().ends {
            return Ok(None);
        }
        let refused = |problem: String| IdentityError::Refused(problem);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider)
            .build()
            .map_err(|e| refused(format!("the fleet's authority cannot be used: {e}")))?;
        let chain = chain(certificate)?;
        let (first, rest) = chain
            .split_first()
            .ok_or_else(|| refused("its certificate is none".to_owned()))?;
        // A clock that is behind must not keep it out: it is good if it is when it begins.
        let at = now.max(validity.begins);
        let seconds = u64::try_from(at.as_second()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        verifier.verify_client_cert(first, rest, at).map_err(|e| {
            refused(format!(
                "its certificate is not one of this fleet's authority: {e}"
            ))
        })?;
        Ok(Some(validity))
    }

    /// Keeps a certificate that was judged good, and shows it from the next connection on.
    pub fn adopt(&self, certificate: &str, validity: Validity) -> Result<(), IdentityError> {
        let certified = certified(certificate, &self.key_pem)?;
        identity::replace_certificate(&self.directory, certificate)?;
        let present = Present {
            certified,
            validity,
        };
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = present;
        Ok(())
    }

    fn present(&self) -> Present {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        present.clone()
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.present().certified)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn chain(certificate: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| IdentityError::Tls(e.to_string()))
}

fn certified(certificate: &str, key_pem: &[u8]) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key =
        PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| IdentityError::Tls(e.to_string()))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|e| IdentityError::Tls(e.to_string()))?;
    Ok(Arc::new(CertifiedKey::new(chain(certificate)?, key)))
}

pub(super) fn public_key(key: &EcdsaKeyPair) -> Result<Vec<u8>, IdentityError> {
    let der = key.public_key().as_der().map_err(|_| {
        IdentityError::Refused("the device's public key cannot be encoded".to_owned())
    })?;
    Ok(der.as_ref().to_vec())
}

/// The certificate must be for this key and this name; returns when it holds.
pub(super) fn check(
    certificate: &str,
    device: &DeviceId,
    public_key: &[u8],
) -> Result<Validity, IdentityError> {
    let refused = |problem: &str| IdentityError::Refused(problem.to_owned());
    let der = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|_| refused("its certificate is not a PEM certificate"))?;
    let (_, certificate) = X509Certificate::from_der(&der)
        .map_err(|_| refused("its certificate is not an X.509 certificate"))?;
    if certificate.public_key().raw != public_key {
        return Err(refused(
            "its certificate is for another key: it was made from another device's request, or this \
             device's key was made anew since; send a new request",
        ));
    }
    let names: Vec<&str> = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .collect();
    if names != [device.as_str()] {
        return Err(refused(&format!(
            "its certificate names {names:?}, the bundle names {device}"
        )));
    }
    let time = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp())
            .map_err(|_| refused("its certificate begins or ends outside of time"))
    };
    Ok(Validity {
        begins: time(certificate.validity().not_before)?,
        ends: time(certificate.validity().not_after)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer};

    struct Authority {
        issuer: Issuer<'static, rcgen::KeyPair>,
        pem: String,
    }

    fn authority() -> Authority {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("authority").pem();
        let issuer = Issuer::new(params, key);
        Authority { issuer, pem }
    }

    impl Authority {
        fn certify(&self, key: &rcgen::KeyPair, name: &str, year: i32) -> String {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.signed_by(key, &self.issuer).expect("sign").pem()
        }
    }

    #[test]
    fn only_a_later_certificate_of_the_fleet_for_this_very_device_is_taken() {
        let directory = tempfile::tempdir().expect("tempdir");
        identity::request(directory.path(), "host").expect("request");
        let pem = std::fs::read_to_string(directory.path().join("key.pem")).expect("key");
        let key = rcgen::KeyPair::from_pem(&pem).expect("key");
        let fleet = authority();
        let bundle = edgeward_models::fleet::enrolment::EnrolmentBundle {
            format: edgeward_models::fleet::enrolment::FORMAT,
            fleet: "ward".parse().expect("name"),
            device: "ct-1".parse().expect("name"),
            broker: edgeward_models::fleet::enrolment::BrokerAddress {
                host: "localhost".to_owned(),
                port: 8883,
            },
            certificate: fleet.certify(&key, "ct-1", 2040),
            broker_ca: fleet.pem.clone(),
            root: "{}".to_owned(),
        };
        identity::store(directory.path(), &bundle).expect("store");
        let load = || {
            let identity = identity::Identity::load(directory.path()).expect("load");
            identity.expect("enrolled").credentials.clone()
        };
        let credentials = load();
        let now = Timestamp::now();
        for year in [2039, 2040] {
            let older = fleet.certify(&key, "ct-1", year);
            assert_eq!(credentials.judge(&older, now).expect("judged"), None);
        }
        let stranger = rcgen::KeyPair::generate().expect("key");
        for (certificate, words) in [
            (fleet.certify(&stranger, "ct-1", 2041), "another key"),
            (fleet.certify(&key, "ct-2", 2041), "names"),
            (
                authority().certify(&key, "ct-1", 2041),
                "this fleet's authority",
            ),
            ("junk".to_owned(), "not a PEM certificate"),
        ] {
            let error = credentials.judge(&certificate, now).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
        let shown = |credentials: &Credentials| {
            let certified = credentials.resolve(&[], &[]).expect("a certificate");
            certified.cert.first().expect("a certificate").clone()
        };
        let renewed = fleet.certify(&key, "ct-1", 2041);
        // The clock of a device without a battery.
        let validity = credentials
            .judge(&renewed, Timestamp::UNIX_EPOCH)
            .expect("good");
        let validity = validity.expect("later");
        let before = shown(&credentials);
        credentials.adopt(&renewed, validity).expect("adopted");
        assert_ne!(shown(&credentials), before);
        // After a restart, too.
        assert_eq!(load().validity(), validity);
        assert_eq!(shown(&load()), shown(&credentials));
    }
}
