//! The TLS door: versions, client certificates, tokens, and what it refuses.

use std::path::Path;
use std::sync::Arc;

use edgeward_agent::api::Doors;
use edgeward_agent::config::{Config, TlsDoor, Token};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::Client;
use crate::device::{Device, INFER, assert_close, floats, golden, read_floats};

pub const SECRET: &str = "correct horse battery staple";

/// An authority and what it signs, as PEM.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let names = vec!["localhost".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// Authorities of server and clients, with the server's files in a directory.
pub struct Site {
    server: Authority,
    clients: Authority,
    directory: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Self {
        let site = Self {
            server: Authority::new("server CA"),
            clients: Authority::new("client CA"),
            directory: tempfile::tempdir().expect("directory"),
        };
        let (certificate, key) = site
            .server
            .sign("device", ExtendedKeyUsagePurpose::ServerAuth);
        std::fs::write(site.path("server.pem"), certificate).expect("write");
        std::fs::write(site.path("server.key"), key).expect("write");
        std::fs::write(site.path("clients.pem"), &site.clients.pem).expect("write");
        site
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub fn door(&self) -> TlsDoor {
        TlsDoor {
            listen: ([127, 0, 0, 1], 0).into(),
            certificate: self.path("server.pem"),
            private_key: self.path("server.key"),
            client_ca: None,
            tokens: Vec::new(),
            require_both: false,
            without_authentication: None,
        }
    }

    pub fn client_certificate(&self) -> (String, String) {
        self.clients
            .sign("pacs", ExtendedKeyUsagePurpose::ClientAuth)
    }
}

pub fn token() -> Token {
    Token {
        name: "pacs".to_owned(),
        sha256: hex::encode(Sha256::digest(SECRET)),
    }
}

pub async fn device(door: TlsDoor) -> Device {
    let device = Device::start(|config| config.tls = Some(door)).await;
    device.serve("digits-1.0.0", |_| {}).await;
    device
}

/// Connects and sends one request, since TLS 1.3 tells of a refused certificate only after the handshake.
async fn ask(
    device: &Device,
    site: &Site,
    certificate: Option<&(String, String)>,
    token: Option<&str>,
) -> Result<u16, String> {
    let stream = connect(device, site, certificate, rustls::ALL_VERSIONS);
    let mut client = Client::over(stream.await.map_err(|e| e.to_string())?);
    let token = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = token
        .iter()
        .map(|t| ("Authorization", t.as_str()))
        .collect();
    client
        .send(crate::client::request(
            "GET",
            "/v2/models/digits",
            &headers,
            b"",
        ))
        .await;
    let reply = client.reply().await.ok_or("closed")?;
    if reply.status != 200 {
        assert!(!reply.error().contains(SECRET));
    }
    Ok(reply.status)
}

pub async fn connect(
    device: &Device,
    site: &Site,
    certificate: Option<&(String, String)>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_offering(device, site, certificate, versions, &[]).await
}

/// Connects, offering these protocols.
pub async fn connect_offering(
    device: &Device,
    site: &Site,
    certificate: Option<&(String, String)>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(site.server.pem.as_bytes()).expect("PEM");
    roots.add(root).expect("root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
            )
            .expect("certificate"),
    };
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(device.tls.expect("TLS door")).await?;
    let name = ServerName::try_from("localhost").expect("name");
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

#[tokio::test]
async fn both_versions_of_tls_answer_with_a_client_certificate() {
    let site = Site::new();
    let door = TlsDoor {
        client_ca: Some(site.path("clients.pem")),
        ..site.door()
    };
    let device = device(door).await;
    let certificate = site.client_certificate();
    let (input, expected) = golden("digits-1.0.0");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = connect(&device, &site, Some(&certificate), &[version])
            .await
            .expect("connect");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        let mut client = Client::over(stream);
        let headers = [("Inference-Header-Content-Length", "0")];
        let reply = client.ask("POST", INFER, &headers, &floats(&input)).await;
        assert_eq!(reply.status, 200);
        assert_close(&read_floats(reply.split().1), &expected);
    }
    device.close().await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let site = Site::new();
    let door = TlsDoor {
        client_ca: Some(site.path("clients.pem")),
        ..site.door()
    };
    let device = device(door).await;
    assert_eq!(
        ask(&device, &site, Some(&site.client_certificate()), None).await,
        Ok(200)
    );
    let foreign = Authority::new("client CA").sign("pacs", ExtendedKeyUsagePurpose::ClientAuth);
    let server_purpose = site
        .clients
        .sign("pacs", ExtendedKeyUsagePurpose::ServerAuth);
    for certificate in [None, Some(&foreign), Some(&server_purpose)] {
        ask(&device, &site, certificate, Some(SECRET))
            .await
            .expect_err("a stranger was let in");
    }
    // Plain HTTP gets no answer, and the door stays open.
    let plain = TcpStream::connect(device.tls.expect("door"))
        .await
        .expect("connect");
    let mut plain = Client::over(plain);
    plain.send("GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(plain.reply().await.is_none_or(|reply| reply.status != 200));
    assert_eq!(
        ask(&device, &site, Some(&site.client_certificate()), None).await,
        Ok(200)
    );
    device.close().await;
}

#[tokio::test]
async fn a_replaced_certificate_is_used_for_new_connections_and_a_wrong_one_is_not() {
    let mut site = Site::new();
    let door = TlsDoor {
        client_ca: Some(site.path("clients.pem")),
        ..site.door()
    };
    let device = device(door).await;
    let certificate = site.client_certificate();
    let open = connect(&device, &site, Some(&certificate), rustls::ALL_VERSIONS).await;
    let mut open = Client::over(open.expect("connect"));
    assert_eq!(open.get("/v2").await.status, 200);

    // A key that is not the certificate's: nothing changes.
    let right = std::fs::read(site.path("server.key")).expect("read");
    let (_, other) = site
        .server
        .sign("other", ExtendedKeyUsagePurpose::ServerAuth);
    std::fs::write(site.path("server.key"), other).expect("write");
    let error = device.read_keys_again().expect_err("a wrong key");
    assert!(
        format!("{error:#}").contains("do not belong together"),
        "{error:#}"
    );
    std::fs::write(site.path("server.key"), right).expect("write");
    assert_eq!(ask(&device, &site, Some(&certificate), None).await, Ok(200));

    // Everything new, the clients' authority too.
    let (server, clients) = (Authority::new("server CA 2"), Authority::new("client CA 2"));
    let (pem, key) = server.sign("device", ExtendedKeyUsagePurpose::ServerAuth);
    std::fs::write(site.path("server.pem"), pem).expect("write");
    std::fs::write(site.path("server.key"), key).expect("write");
    std::fs::write(site.path("clients.pem"), &clients.pem).expect("write");
    assert!(device.read_keys_again().expect("keys"));
    ask(&device, &site, Some(&certificate), None)
        .await
        .expect_err("the old authority is still believed");
    (site.server, site.clients) = (server, clients);
    ask(&device, &site, Some(&certificate), None)
        .await
        .expect_err("a certificate of the old authority was let in");
    let certificate = site.client_certificate();
    assert_eq!(ask(&device, &site, Some(&certificate), None).await, Ok(200));
    // Whoever is connected stays so.
    assert_eq!(open.get("/v2").await.status, 200);
    device.close().await;
}

#[tokio::test]
async fn tokens_open_the_door_and_nothing_else_does() {
    let site = Site::new();
    let door = TlsDoor {
        tokens: vec![token()],
        ..site.door()
    };
    let device = device(door).await;
    assert_eq!(ask(&device, &site, None, Some(SECRET)).await, Ok(200));
    for wrong in [None, Some("wrong"), Some(""), Some(&token().sha256)] {
        assert_eq!(ask(&device, &site, None, wrong).await, Ok(401), "{wrong:?}");
    }
    device.close().await;
}

#[tokio::test]
async fn with_certificates_and_tokens_either_is_enough_unless_both_are_required() {
    let site = Site::new();
    let certificate = site.client_certificate();
    for (require_both, only_certificate, only_token) in
        [(false, Ok(200), Ok(200)), (true, Ok(401), Err(()))]
    {
        let door = TlsDoor {
            client_ca: Some(site.path("clients.pem")),
            tokens: vec![token()],
            require_both,
            ..site.door()
        };
        let device = device(door).await;
        assert_eq!(
            ask(&device, &site, Some(&certificate), Some(SECRET)).await,
            Ok(200)
        );
        let status = ask(&device, &site, Some(&certificate), None).await;
        assert_eq!(status.map_err(|_| ()), only_certificate);
        let status = ask(&device, &site, None, Some(SECRET)).await;
        assert_eq!(status.map_err(|_| ()), only_token);
        let status = ask(&device, &site, None, None).await;
        assert_ne!(status, Ok(200));
        device.close().await;
    }
}

#[tokio::test]
async fn a_door_without_authentication_opens_only_with_the_exact_words() {
    let site = Site::new();
    let try_bind = async |words: Option<&str>, certificate: &Path| {
        let mut config = Config {
            tls: Some(TlsDoor {
                without_authentication: words.map(str::to_owned),
                certificate: certificate.to_owned(),
                ..site.door()
            }),
            ..Config::default()
        };
        config.unix.path = site.path("edgeward.sock");
        Doors::bind(&config)
            .await
            .map(|_| ())
            .map_err(|e| format!("{e:#}"))
    };
    let server = site.path("server.pem");
    let error = try_bind(None, &server).await.expect_err("open");
    assert!(error.contains("without_authentication"), "{error}");
    try_bind(Some("yes"), &server).await.expect_err("open");
    // Another certificate than the key's, and none at all.
    let error = try_bind(
        Some("anyone-who-can-connect-may-infer"),
        &site.path("clients.pem"),
    )
    .await;
    assert!(
        error
            .expect_err("mismatch")
            .contains("do not belong together")
    );
    let error = try_bind(Some("anyone-who-can-connect-may-infer"), &site.path("none")).await;
    assert!(error.expect_err("missing").contains("tls.certificate"));
    try_bind(Some("anyone-who-can-connect-may-infer"), &server)
        .await
        .expect("open");
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_not_waited_for_long() {
    let site = Site::new();
    let door = TlsDoor {
        tokens: vec![token()],
        ..site.door()
    };
    let device = Device::start(|config| {
        config.tls = Some(door);
        config.limits.header_timeout_ms = 200;
    })
    .await;
    let silent = TcpStream::connect(device.tls.expect("door"))
        .await
        .expect("connect");
    assert!(Client::over(silent).reply().await.is_none());
    device.close().await;
}
