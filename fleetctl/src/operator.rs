//! What every command that talks to the fleet needs: the home, the printer and the way to the broker.

use std::cell::Cell;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edgeward_models::sign::{self, KeyRing, Publication, Repository, SignError};
use jiff::Timestamp;
use rand::Rng;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::carrier::{Carrier, Standing};
use crate::devices::der_not_after;
use crate::home::Home;
use crate::link::{Link, LinkError, LinkSettings};
use crate::printer::Printer;

/// How often work over a connection that broke is tried before the command gives up.
const ATTEMPTS: u32 = 5;
/// How long the broker may take to show its certificate.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// How long another fleetctl may hold the repository before this one gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

pub struct Operator {
    pub home: Home,
    pub printer: Printer,
}

impl Operator {
    pub fn open(home: &Path, printer: &Printer) -> Result<Self> {
        Ok(Self {
            home: Home::open(home)?,
            printer: printer.clone(),
        })
    }

    /// Opens the repository and holds its lock as long as it lives. Waits a while for another fleetctl.
    pub fn repository(&self) -> Result<Repository> {
        let until = Instant::now() + LOCK_PATIENCE;
        let mut told = false;
        loop {
            match Repository::open(&self.home.repository_directory()) {
                Err(SignError::Busy { .. }) if Instant::now() < until => {
                    if !std::mem::replace(&mut told, true) {
                        self.printer.note("waiting for another fleetctl to end");
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                result => return Ok(result?),
            }
        }
    }

    /// The signing keys that are here. What a rotation that was cut short left is put right before.
    pub fn keys(&self, repository: &Repository) -> Result<KeyRing> {
        let directory = self.home.keys_directory();
        sign::settle(&directory, repository)?;
        Ok(KeyRing::open_with(&directory, self.home.unlock())?)
    }

    /// When the certificate that the broker shows ends.
    pub fn broker_certificate(&self) -> Result<Timestamp> {
        let LinkSettings { host, port, tls } = self.link_settings()?;
        let addresses = (host.as_str(), port)
            .to_socket_addrs()
            .context("it has no address")?;
        let mut problem = anyhow::anyhow!("it has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, LOOK_TIMEOUT) {
                Ok(stream) => return shown_certificate(stream, &host, tls),
                Err(e) => problem = e.into(),
            }
        }
        Err(problem)
    }

    fn link_settings(&self) -> Result<LinkSettings> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.home.ca_certificate()?.as_bytes()) {
            let certificate = certificate.context("cannot read the fleet's CA certificate")?;
            roots
                .add(certificate)
                .context("cannot use the fleet's CA certificate")?;
        }
        let (certificate, key) = self.home.operator_certificate()?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("cannot read the operator's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .context("cannot read the operator's private key")?;
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .context("cannot use the operator's certificate")?;
        let broker = self.home.broker();
        Ok(LinkSettings {
            host: broker.host.clone(),
            port: broker.port,
            tls: Arc::new(tls),
        })
    }

    pub async fn connect(&self) -> Result<Link> {
        Ok(Link::connect(&self.link_settings()?).await?)
    }

    pub fn carrier<'a>(&'a self, link: &'a Link) -> Carrier<'a> {
        Carrier::new(link, self.home.fleet(), &self.printer)
    }

    /// Does something over a connection. When it breaks in the middle, the work is done again over a new
    /// one: a broker that ties client ids to certificates ends this connection when the same operator makes
    /// another.
    pub async fn ask<T>(&self, work: impl AsyncFn(&Link) -> Result<T>) -> Result<T> {
        let mut attempt = 1;
        loop {
            let result = self.ask_once(&work).await;
            let Err(error) = &result else { return result };
            // A broker that was never there is not waited for.
            let again = is_lost(error) || (attempt > 1 && is_broken_link(error));
            if !again || attempt == ATTEMPTS {
                return result;
            }
            self.printer.note(&format!("{error:#}; trying again"));
            tokio::time::sleep(jittered(FIRST_PAUSE * 2u32.pow(attempt - 1))).await;
            attempt += 1;
        }
    }

    async fn ask_once<T>(&self, work: &impl AsyncFn(&Link) -> Result<T>) -> Result<T> {
        let link = self.connect().await?;
        let value = work(&link).await?;
        link.close().await;
        Ok(value)
    }

    /// How the broker's copy compares with the repository; an error when the repository must not be
    /// published over it.
    pub async fn standing(&self, repository: &Repository) -> Result<Standing> {
        let standing = self
            .ask(async |link| self.carrier(link).standing(repository).await)
            .await?;
        self.warn_of_forgery(standing);
        Ok(standing)
    }

    fn warn_of_forgery(&self, standing: Standing) {
        if standing == Standing::Forged {
            self.printer.warn(
                "the broker held a timestamp that this fleet's key did not sign; it will be replaced. \
                 Who may write to the broker?",
            );
        }
    }

    /// Publishes what a change needs; everything, if the broker did not hold what was before the change.
    pub async fn publish(
        &self,
        repository: &Repository,
        publication: &Publication,
        before: Standing,
    ) -> Result<()> {
        // What had arrived when a connection broke is found there and not sent again.
        let whole = Cell::new(before != Standing::Same);
        self.ask(async |link| {
            let carrier = self.carrier(link);
            let standing = carrier.standing(repository).await?;
            if whole.replace(true) {
                carrier.sync(repository, standing).await?;
            } else {
                carrier.send(repository, publication).await?;
            }
            carrier.read_back(repository).await
        })
        .await
        .context("the repository is changed and signed but not published; publish it with `fleetctl sync`")
    }

    /// Publishes everything that the broker does not hold. Returns how many messages were sent and how many
    /// were there.
    pub async fn sync(&self, repository: &Repository) -> Result<(u64, u64)> {
        self.ask(async |link| {
            let carrier = self.carrier(link);
            let standing = carrier.standing(repository).await?;
            self.warn_of_forgery(standing);
            let counts = carrier.sync(repository, standing).await?;
            carrier.read_back(repository).await?;
            Ok(counts)
        })
        .await
    }
}

/// The end of the certificate that a TLS server shows on a new connection.
fn shown_certificate(
    mut stream: TcpStream,
    host: &str,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Timestamp> {
    stream.set_read_timeout(Some(LOOK_TIMEOUT))?;
    stream.set_write_timeout(Some(LOOK_TIMEOUT))?;
    let name = ServerName::try_from(host.to_owned()).context("its name is none")?;
    let mut connection = rustls::ClientConnection::new(tls, name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    let certificate = chain.first().context("it shows no certificate")?;
    der_not_after(certificate)
}

/// A pause of about this length: two that got in each other's way do not meet again.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.7..1.5))
}

/// Whether an established connection broke.
fn is_lost(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(LinkError::Lost(_) | LinkError::Silent { .. })
        )
    })
}

/// Whether an error is the connection's, so that a new connection may help.
pub fn is_broken_link(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(LinkError::Lost(_) | LinkError::Silent { .. } | LinkError::Connect { .. })
        )
    })
}
