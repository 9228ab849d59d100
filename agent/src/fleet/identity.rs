//! Who this device is: its key, the certificate that its fleet gave it, and where the broker listens.
//!
//! `edgeward enroll` makes the key and a certificate request here and later brings the fleet's answer; the
//! agent loads the result. The private key is written once, readable by its owner only, and leaves this
//! directory in no form: it signs what the device says of itself and proves it to the broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use edgeward_models::durable::{self, Access, DurableError};
use edgeward_models::fleet::enrolment::{BrokerAddress, EnrolmentBundle, FORMAT, MAX_BUNDLE_BYTES};
use edgeward_models::{DeviceId, FleetName};
use jiff::Timestamp;
use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::time_provider::TimeProvider;

use super::credentials::{self, Credentials};
use crate::either_time::EitherTime;

const KEY_FILE: &str = "key.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
const ENROLMENT_FILE: &str = "enrolment.json";
const MAX_KEY_BYTES: u64 = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the device key {0} is not a P-256 key in PKCS#8 PEM")]
    Key(PathBuf),
    #[error("cannot make a {0}")]
    Make(&'static str, #[source] rcgen::Error),
    #[error("the enrolment bundle is not the JSON document it should be")]
    Json(#[source] serde_json::Error),
    #[error("the enrolment bundle has format {found}; this agent reads format {FORMAT}: update it")]
    Format { found: u32 },
    #[error("the enrolment bundle is refused: {0}")]
    Refused(String),
    #[error("cannot prepare TLS for the broker: {0}")]
    Tls(String),
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// A device that is a member of a fleet.
pub struct Identity {
    pub device: DeviceId,
    pub fleet: FleetName,
    pub broker: BrokerAddress,
    key: EcdsaKeyPair,
    /// What is shown the broker. Before its certificate begins the clock cannot be right.
    pub credentials: Arc<Credentials>,
}

impl Identity {
    /// `None` until the device is enrolled.
    pub fn load(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(bundle) = stored_bundle(directory)? else {
            return Ok(None);
        };
        let (key_pem, key) = read_key(directory)?.ok_or_else(|| {
            IdentityError::Refused(
                "the device's key is gone; make a new request with `edgeward enroll --request`"
                    .to_owned(),
            )
        })?;
        let credentials = Credentials::new(
            directory,
            &bundle.device,
            &key,
            &key_pem,
            &bundle.certificate,
            &bundle.broker_ca,
        )?;
        Ok(Some(Self {
            device: bundle.device,
            fleet: bundle.fleet,
            broker: bundle.broker,
            key,
            credentials: Arc::new(credentials),
        }))
    }

    /// Signs with the device's key (ECDSA P-256, SHA-256, ASN.1).
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.key
            .sign(&SystemRandom::new(), bytes)
            .map(|s| s.as_ref().to_vec())
            .map_err(|_| IdentityError::Tls("the device's key cannot sign".to_owned()))
    }

    /// TLS towards the broker: only its own authority is believed, and certificates are checked by the trusted
    /// time or the clock, so that a device that boots in 1970 still connects.
    pub fn tls(&self, clock: Arc<TrustedClock>) -> Result<ClientConfig, IdentityError> {
        let tls = |e: &dyn std::fmt::Display| IdentityError::Tls(e.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(self.credentials.roots(), provider.clone())
                .build()
                .map_err(|e| tls(&e))?;
        let builder = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?;
        Ok(builder
            // Not weaker than the usual one: it asks that one, about two times.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(EitherTime(verifier)))
            .with_client_cert_resolver(self.credentials.clone()))
    }
}

/// The key, made if there is none, and a certificate request for it (PEM). The name in the request is only
/// a hint: the fleet's authority decides the subject.
pub fn request(directory: &Path, hint: &str) -> Result<String, IdentityError> {
    if read_key(directory)?.is_none() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|e| IdentityError::Make("key", e))?;
        durable::create_directory(directory)?;
        durable::write(
            &directory.join(KEY_FILE),
            key.serialize_pem().as_bytes(),
            Access::Owner,
        )?;
    }
    let path = directory.join(KEY_FILE);
    let Some((pem, _)) = read_key(directory)? else {
        return Err(IdentityError::Key(path));
    };
    let pem = std::str::from_utf8(&pem).map_err(|_| IdentityError::Key(path))?;
    let failed = |e| IdentityError::Make("certificate request", e);
    let key = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(failed)?;
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, hint);
    parameters
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(failed)
}

/// Removes the device's key, so that the next request makes another.
pub fn forget_key(directory: &Path) -> Result<(), IdentityError> {
    let path = directory.join(KEY_FILE);
    match path.exists() {
        true => Ok(durable::remove_file(&path)?),
        false => Ok(()),
    }
}

/// Checks a bundle: format, root readable, certificate for this device's own key and name.
pub fn check(directory: &Path, bytes: &[u8]) -> Result<EnrolmentBundle, IdentityError> {
    let bundle = parse(bytes)?;
    let Some((_, key)) = read_key(directory)? else {
        return Err(IdentityError::Refused(
            "this device has made no request yet; run `edgeward enroll --request FILE` first"
                .to_owned(),
        ));
    };
    credentials::check(
        &bundle.certificate,
        &bundle.device,
        &credentials::public_key(&key)?,
    )?;
    let authorities = CertificateDer::pem_slice_iter(bundle.broker_ca.as_bytes());
    if authorities.filter(Result::is_ok).count() == 0 {
        return Err(IdentityError::Refused(
            "it holds no certificate of the broker's authority".to_owned(),
        ));
    }
    Ok(bundle)
}

/// Keeps a checked bundle. The enrolment file comes last: with it the device is a member.
pub fn store(directory: &Path, bundle: &EnrolmentBundle) -> Result<(), IdentityError> {
    durable::create_directory(directory)?;
    durable::write(
        &directory.join(CERTIFICATE_FILE),
        bundle.certificate.as_bytes(),
        Access::Anyone,
    )?;
    let bytes = serde_json::to_vec_pretty(bundle).map_err(IdentityError::Json)?;
    Ok(durable::write(
        &directory.join(ENROLMENT_FILE),
        &bytes,
        Access::Owner,
    )?)
}

/// Replaces the certificate of a stored bundle.
pub(super) fn replace_certificate(
    directory: &Path,
    certificate: &str,
) -> Result<(), IdentityError> {
    let Some(mut bundle) = stored_bundle(directory)? else {
        return Err(IdentityError::Refused("the enrolment is gone".to_owned()));
    };
    bundle.certificate = certificate.to_owned();
    store(directory, &bundle)
}

/// The bundle of an earlier enrolment.
pub fn stored_bundle(directory: &Path) -> Result<Option<EnrolmentBundle>, IdentityError> {
    durable::read(&directory.join(ENROLMENT_FILE), MAX_BUNDLE_BYTES)?
        .map(|bytes| parse(&bytes))
        .transpose()
}

fn parse(bytes: &[u8]) -> Result<EnrolmentBundle, IdentityError> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    if bytes.len() as u64 > MAX_BUNDLE_BYTES {
        return Err(IdentityError::Refused(format!(
            "it is larger than {MAX_BUNDLE_BYTES} bytes"
        )));
    }
    let head: Head = serde_json::from_slice(bytes).map_err(IdentityError::Json)?;
    if head.format != FORMAT {
        return Err(IdentityError::Format { found: head.format });
    }
    serde_json::from_slice(bytes).map_err(IdentityError::Json)
}

fn read_key(directory: &Path) -> Result<Option<(Vec<u8>, EcdsaKeyPair)>, IdentityError> {
    let path = directory.join(KEY_FILE);
    let Some(pem) = durable::read(&path, MAX_KEY_BYTES)? else {
        return Ok(None);
    };
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| IdentityError::Key(path.clone()))?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der())
        .map_err(|_| IdentityError::Key(path))?;
    Ok(Some((pem, key)))
}

/// The time for TLS: the clock, unless verified documents prove that it is behind.
#[derive(Debug)]
pub struct TrustedClock {
    /// Seconds since 1970 that are certainly past.
    at_least: AtomicI64,
}

impl TrustedClock {
    pub fn new(at_least: Timestamp) -> Self {
        Self {
            at_least: AtomicI64::new(at_least.as_second()),
        }
    }

    /// Raises the bound; it never falls.
    pub fn prove(&self, time: Timestamp) {
        self.at_least.fetch_max(time.as_second(), Ordering::Relaxed);
    }

    pub fn now(&self) -> Timestamp {
        let proven = Timestamp::from_second(self.at_least.load(Ordering::Relaxed));
        Timestamp::now().max(proven.unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl TimeProvider for TrustedClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Signs a request as a fleet's authority would.
    fn answer(request: &str, device: &str) -> EnrolmentBundle {
        let ca_key = rcgen::KeyPair::generate().expect("key");
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).expect("ca");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let mut request =
            rcgen::CertificateSigningRequestParams::from_pem(request).expect("request");
        request.params.distinguished_name = rcgen::DistinguishedName::new();
        request
            .params
            .distinguished_name
            .push(rcgen::DnType::CommonName, device);
        EnrolmentBundle {
            format: FORMAT,
            fleet: "ward".parse().expect("name"),
            device: "scanner-1".parse().expect("name"),
            broker: BrokerAddress {
                host: "localhost".to_owned(),
                port: 8883,
            },
            certificate: request.signed_by(&issuer).expect("sign").pem(),
            broker_ca: ca_certificate.pem(),
            root: "{}".to_owned(),
        }
    }

    #[test]
    fn the_key_is_made_once_is_secret_and_gets_a_certificate() {
        let directory = tempfile::tempdir().expect("tempdir");
        let text = request(directory.path(), "host").expect("request");
        let path = directory.path().join(KEY_FILE);
        let mode = std::fs::metadata(&path).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = std::fs::read(&path).expect("key");
        request(directory.path(), "host").expect("again");
        assert_eq!(std::fs::read(&path).expect("key"), key, "the key is kept");

        let bundle = answer(&text, "scanner-1");
        let bytes = serde_json::to_vec(&bundle).expect("encode");
        let checked = check(directory.path(), &bytes).expect("accepted");
        assert!(Identity::load(directory.path()).expect("load").is_none());
        store(directory.path(), &checked).expect("store");
        let identity = Identity::load(directory.path())
            .expect("load")
            .expect("some");
        assert_eq!(identity.device.as_str(), "scanner-1");
        let clock = Arc::new(TrustedClock::new(identity.credentials.validity().begins));
        identity.tls(clock).expect("tls");
    }

    #[test]
    fn a_certificate_for_another_key_or_another_name_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let other = tempfile::tempdir().expect("tempdir");
        let text = request(directory.path(), "host").expect("request");
        let foreign = request(other.path(), "host").expect("request");
        for (bundle, problem) in [
            (answer(&foreign, "scanner-1"), "another key"),
            (answer(&text, "scanner-2"), "names"),
        ] {
            let bytes = serde_json::to_vec(&bundle).expect("encode");
            let error = check(directory.path(), &bytes).expect_err("refused");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn a_clock_that_is_behind_is_overruled_and_one_that_is_ahead_leaves_no_trace() {
        let future = Timestamp::from_second(4_102_444_800).expect("2100");
        let clock = TrustedClock::new(Timestamp::UNIX_EPOCH);
        assert!(clock.now() < future);
        clock.prove(future);
        assert_eq!(clock.now(), future);
        clock.prove(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.now(), future);
    }
}
