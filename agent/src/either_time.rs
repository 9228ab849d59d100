//! Certificates are good if they are by either of two honest times: what signed documents prove, or the clock.
//!
//! The proven time overrules a clock that is behind, so that a device without a battery connects. It may be
//! wrong as well: signed on a computer whose clock ran ahead, it would make certificates end that are good for
//! months, on every device and for good. So a certificate that has ended, or not begun, by the proven time is
//! looked at again by the clock. Used by the broker link (`fleet`) and the TLS door (`api`).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Verifies as the verifier inside does, at either time.
#[derive(Debug)]
pub struct EitherTime<V: ?Sized>(pub Arc<V>);

fn verified<T>(
    proven: UnixTime,
    clock: UnixTime,
    verify: impl Fn(UnixTime) -> Result<T, Error>,
) -> Result<T, Error> {
    verify(proven).or_else(|error| {
        let about_time = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            )
        );
        // The first error stands if this one fails too: it is the time that counts elsewhere.
        about_time
            .then(|| verify(clock).ok())
            .flatten()
            .ok_or(error)
    })
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for EitherTime<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verified(now, UnixTime::now(), |time| {
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for EitherTime<V> {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verified(now, UnixTime::now(), |time| {
            self.0.verify_client_cert(end_entity, intermediates, time)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use std::time::Duration;

    /// A server certificate of 2026, by an authority of 2020 to 2090.
    fn server() -> (EitherTime<WebPkiServerVerifier>, CertificateDer<'static>) {
        let ca_key = rcgen::KeyPair::generate().expect("key");
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (ca.not_before, ca.not_after) = (
            rcgen::date_time_ymd(2020, 1, 1),
            rcgen::date_time_ymd(2090, 1, 1),
        );
        let mut roots = RootCertStore::empty();
        let root = ca.self_signed(&ca_key).expect("ca");
        roots.add(root.der().clone()).expect("root");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let mut own =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        (own.not_before, own.not_after) = (
            rcgen::date_time_ymd(2026, 1, 1),
            rcgen::date_time_ymd(2027, 1, 1),
        );
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = own.signed_by(&key, &issuer).expect("certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
        let verifier = EitherTime(verifier.build().expect("verifier"));
        (verifier, certificate.der().clone())
    }

    #[test]
    fn a_certificate_counts_by_either_time_and_ends_by_both() {
        let (verifier, certificate) = server();
        let name = ServerName::try_from("localhost").expect("name");
        let year = |year: u64| {
            UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_557_600 + 15_000_000))
        };
        let good = |proven, clock| {
            verified(year(proven), year(clock), |time| {
                verifier
                    .0
                    .verify_server_cert(&certificate, &[], &name, &[], time)
            })
            .is_ok()
        };
        assert!(good(2026, 1970), "the clock is behind");
        assert!(good(2028, 2026), "the proven time ran ahead");
        assert!(good(2026, 2026));
        assert!(!good(2028, 2028));
        assert!(!good(2028, 1970));
    }

    #[test]
    fn nothing_else_is_forgiven() {
        let (verifier, certificate) = server();
        let name = ServerName::try_from("elsewhere").expect("name");
        let now = UnixTime::now();
        let verified = verifier.verify_server_cert(&certificate, &[], &name, &[], now);
        assert!(verified.is_err());
    }
}
