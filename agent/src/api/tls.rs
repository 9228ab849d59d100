//! The TLS door: keys, client certificates, and the refusal to listen without any authentication.
//!
//! TLS 1.2 and 1.3. With `client_ca`, a client certificate must come from that authority: it is demanded in
//! the handshake unless tokens are configured too and either is enough. With tokens, a request without a
//! verified certificate needs one. With neither, the agent does not listen, unless the configuration says
//! [`WITHOUT_AUTHENTICATION`] word for word.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use tokio_rustls::TlsAcceptor;

use super::auth::{Gate, Tokens};
use crate::config::TlsDoor;
use crate::either_time::EitherTime;

/// What `tls.without_authentication` must say to mean it.
pub const WITHOUT_AUTHENTICATION: &str = "anyone-who-can-connect-may-infer";

/// Keys and rules of the TLS door.
#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    tokens: Arc<Tokens>,
    /// A token is needed even with a verified client certificate.
    both: bool,
}

impl Tls {
    /// Reads certificates and keys, and refuses a door that anybody could walk through. `proven`: a time that is
    /// certainly past.
    pub fn new(door: &TlsDoor, proven: Option<Timestamp>) -> anyhow::Result<Self> {
        if let Some(problem) = authentication_problem(door) {
            bail!("{problem}");
        }
        let tokens = Arc::new(Tokens::new(&door.tokens)?);
        let chain = certificates(&door.certificate).context("tls.certificate")?;
        let mut known = chain.clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = match &door.client_ca {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path).context("tls.client_ca")? {
                    known.push(certificate.clone());
                    roots
                        .add(certificate)
                        .with_context(|| format!("tls.client_ca: {}", path.display()))?;
                }
                let mut builder =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
                if !tokens.is_empty() && !door.require_both {
                    builder = builder.allow_unauthenticated();
                }
                builder.build().context("tls.client_ca")?
            }
        };
        let key = private_key(&door.private_key).context("tls.private_key")?;
        let clock = NotBehind::new(&known, proven);
        let mut server = ServerConfig::builder_with_details(provider, Arc::new(clock))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(EitherTime(verifier)))
            .with_single_cert(chain, key)
            .context("tls.certificate and tls.private_key do not belong together")?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            tokens,
            both: door.require_both,
        })
    }

    /// What a connection still has to show after its handshake.
    pub fn gate(&self, certificate: Option<&CertificateDer<'_>>) -> Gate {
        let by_certificate = certificate.is_some() && !self.both;
        if by_certificate || self.tokens.is_empty() {
            Gate::Open
        } else {
            Gate::Token(Arc::clone(&self.tokens))
        }
    }
}

/// The time against which client certificates are checked first ([`EitherTime`]): the clock, unless it is behind
/// what verified documents or the door's own certificates prove. A device without a battery boots in 1970; its callers' certificates would then all be
/// "not yet valid", and nobody could be served until the network has told the time.
#[derive(Debug)]
struct NotBehind {
    at_least: UnixTime,
}

impl NotBehind {
    /// A certificate that was put on this device was made before now.
    fn new(known: &[CertificateDer<'_>], proven: Option<Timestamp>) -> Self {
        let begins = |certificate| {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
            u64::try_from(parsed.validity().not_before.timestamp()).ok()
        };
        let proven = proven.and_then(|time| u64::try_from(time.as_second()).ok());
        let latest = known
            .iter()
            .filter_map(|der| begins(der))
            .chain(proven)
            .max();
        Self {
            at_least: UnixTime::since_unix_epoch(Duration::from_secs(latest.unwrap_or(0))),
        }
    }
}

impl TimeProvider for NotBehind {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::now().max(self.at_least))
    }
}

/// Binds the door's address.
pub async fn bind(address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on tls.listen {address}"))
}

/// Why this door must not open: it would let anybody in, or says two things at once.
pub fn authentication_problem(door: &TlsDoor) -> Option<String> {
    let authenticated = door.client_ca.is_some() || !door.tokens.is_empty();
    match (&door.without_authentication, authenticated) {
        (None, true) => (door.require_both && (door.client_ca.is_none() || door.tokens.is_empty()))
            .then(|| "require_both needs client_ca and tokens".to_owned()),
        (None, false) => Some(format!(
            "the TLS door has neither client_ca nor tokens, so whoever reaches {} could use every model: \
             configure one of them, or say without_authentication = \"{WITHOUT_AUTHENTICATION}\"",
            door.listen
        )),
        (Some(_), true) => Some(
            "without_authentication stands beside client_ca or tokens: remove one or the other"
                .to_owned(),
        ),
        (Some(text), false) => (text != WITHOUT_AUTHENTICATION).then(|| {
            format!("without_authentication must say \"{WITHOUT_AUTHENTICATION}\", not {text:?}")
        }),
    }
}

/// The certificates of a PEM file, at least one.
pub fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found: Vec<_> = rustls_pemfile::certs(&mut text.as_slice())
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not PEM", path.display()))?;
    if found.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(found)
}

/// The private key of a PEM file.
pub fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    rustls_pemfile::private_key(&mut text.as_slice())
        .with_context(|| format!("{} is not PEM", path.display()))?
        .with_context(|| format!("{} holds no private key", path.display()))
}

/// A name in the log is cut here.
const MAX_NAME_CHARS: usize = 200;

/// How a client certificate is called in the log: its common name, or its whole subject.
pub fn certificate_name(certificate: &CertificateDer<'_>) -> String {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return "(unreadable certificate)".to_owned();
    };
    let common = parsed
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    let name = match common {
        Some(name) => name.to_owned(),
        None => parsed.subject().to_string(),
    };
    let printable = |c: char| if c.is_control() { '?' } else { c };
    name.chars().take(MAX_NAME_CHARS).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Token;

    fn door() -> TlsDoor {
        TlsDoor {
            listen: ([127, 0, 0, 1], 0).into(),
            certificate: "certificate.pem".into(),
            private_key: "key.pem".into(),
            client_ca: None,
            tokens: Vec::new(),
            require_both: false,
            without_authentication: None,
        }
    }

    #[test]
    fn an_open_door_needs_the_exact_words() {
        assert!(authentication_problem(&door()).is_some());
        for (words, opens) in [
            (WITHOUT_AUTHENTICATION, true),
            ("yes", false),
            ("Anyone-who-can-connect-may-infer", false),
            ("", false),
        ] {
            let door = TlsDoor {
                without_authentication: Some(words.to_owned()),
                ..door()
            };
            assert_eq!(authentication_problem(&door).is_none(), opens, "{words:?}");
        }
        assert!(Tls::new(&door(), None).is_err());
    }

    #[test]
    fn a_clock_that_is_behind_the_doors_certificates_does_not_count() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        let certificate = params.self_signed(&key).expect("certificate");
        let clock = NotBehind::new(&[certificate.der().clone()], None);
        assert_eq!(
            clock.current_time().expect("time").as_secs(),
            3_786_912_000,
            "1 January 2090"
        );
        let clock = NotBehind::new(&[], Some(Timestamp::UNIX_EPOCH));
        let ahead = clock.current_time().expect("time").as_secs();
        assert!(ahead.abs_diff(UnixTime::now().as_secs()) < 60);
    }

    #[test]
    fn contradictions_are_refused() {
        let token = Token {
            name: "pacs".to_owned(),
            sha256: "0".repeat(64),
        };
        let only_tokens = TlsDoor {
            tokens: vec![token],
            ..door()
        };
        assert_eq!(authentication_problem(&only_tokens), None);
        let both = TlsDoor {
            require_both: true,
            ..only_tokens.clone()
        };
        assert!(authentication_problem(&both).is_some());
        let contradiction = TlsDoor {
            without_authentication: Some(WITHOUT_AUTHENTICATION.to_owned()),
            ..only_tokens
        };
        assert!(authentication_problem(&contradiction).is_some());
    }
}
