//! A small HTTP/1.1 client for an agent's two doors. Blocking, one connection, kept alive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// No answer within this time is a failed request.
const TIMEOUT: Duration = Duration::from_secs(40);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in the answer {}: {}", self.status, self.text()))
    }

    /// Panics with the body unless the status is 200.
    pub fn expect_ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }
}

#[derive(Debug, Clone)]
enum Door {
    Unix(PathBuf),
    Tls(u16, Arc<ClientConfig>),
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A client of one door. It connects when it must and keeps its connection.
pub struct Client {
    door: Door,
    bearer: Option<String>,
    connection: Option<BufReader<Box<dyn Stream>>>,
}

impl Client {
    pub fn unix(path: &Path) -> Self {
        Self::new(Door::Unix(path.to_owned()))
    }

    /// TLS to a port of the loopback interface, believing the authorities in `ca` (PEM).
    pub fn tls(port: u16, ca: &Path) -> Self {
        Self::new(Door::Tls(port, Arc::new(tls_config(ca, None))))
    }

    /// The same with a client certificate and its key (PEM).
    pub fn tls_with_certificate(port: u16, ca: &Path, certificate: &Path, key: &Path) -> Self {
        let config = tls_config(ca, Some((certificate, key)));
        Self::new(Door::Tls(port, Arc::new(config)))
    }

    fn new(door: Door) -> Self {
        Self {
            door,
            bearer: None,
            connection: None,
        }
    }

    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.bearer = Some(token.to_owned());
        self
    }

    /// Another client of the same door.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            door: self.door.clone(),
            bearer: self.bearer.clone(),
            connection: None,
        }
    }

    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[], &[])
    }

    /// Asks for an inference with JSON tensors.
    pub fn infer(&mut self, model: &str, body: &Value) -> io::Result<Response> {
        let path = format!("/v2/models/{model}/infer");
        let headers = [("content-type", "application/json")];
        self.request("POST", &path, &headers, body.to_string().as_bytes())
    }

    /// One request and its answer. A connection that fails is not used again; a request is never repeated,
    /// except when a kept connection turns out to be closed before its first byte was answered.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let kept = self.connection.is_some();
        let result = self.request_once(method, path, headers, body);
        match result {
            Err(e) if kept && e.kind() == io::ErrorKind::ConnectionAborted => {
                self.request_once(method, path, headers, body)
            }
            other => other,
        }
    }

    fn request_once(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => BufReader::new(self.connect()?),
        };
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(token) = &self.bearer {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        let stream = connection.get_mut();
        stream
            .write_all(&bytes)
            .and_then(|()| stream.flush())
            .map_err(closed_before_answer)?;
        let response = read_response(&mut connection)?;
        if response.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(response)
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.door {
            Door::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
            Door::Tls(port, config) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                let session =
                    ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(session, stream))
            }
        })
    }
}

/// A peer that closed a kept connection between two requests shows as one of these.
fn closed_before_answer(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            io::ErrorKind::ConnectionAborted.into()
        }
        _ => e,
    }
}

fn read_response(reader: &mut impl BufRead) -> io::Result<Response> {
    let mut line = String::new();
    if reader.read_line(&mut line).map_err(closed_before_answer)? == 0 {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let bad = |what: &str| io::Error::other(format!("the answer has no {what}"));
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| bad("status"))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(bad("end of its headers"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response {
        status,
        headers,
        body: Vec::new(),
    };
    if response.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let start = response.body.len();
            response.body.resize(start + size, 0);
            reader.read_exact(&mut response.body[start..])?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else {
        let length = response.header("content-length").unwrap_or("0");
        let length = length.parse().map_err(io::Error::other)?;
        response.body.resize(length, 0);
        reader.read_exact(&mut response.body)?;
    }
    Ok(response)
}

/// PEM certificates of a file.
pub fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    rustls_pemfile::certs(&mut &text[..])
        .collect::<Result<_, _>>()
        .expect("PEM certificates")
}

/// The PEM private key of a file.
pub fn private_key(path: &Path) -> PrivateKeyDer<'static> {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    rustls_pemfile::private_key(&mut &text[..])
        .expect("a PEM file")
        .expect("a private key")
}

/// A TLS client that believes `ca` and shows `identity`.
pub fn tls_config(ca: &Path, identity: Option<(&Path, &Path)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca) {
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(certificate), private_key(key))
            .expect("a client certificate that fits its key"),
    }
}
