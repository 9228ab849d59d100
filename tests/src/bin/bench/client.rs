//! The load generator's HTTP client: blocking, one connection, nothing that costs more than it must.
//!
//! It shares the cores with the agent, so its own time is part of what is measured. A request is one
//! prepared block of bytes; of an answer only the status and the length are read.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Longer than anything that works.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the agent listens.
#[derive(Clone)]
pub enum Door {
    Unix(PathBuf),
    /// HTTP without TLS, as other servers have it.
    Plain(u16),
    Tls {
        port: u16,
        config: Arc<ClientConfig>,
    },
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A kept connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// The last answer, headers and body.
    buffer: Vec<u8>,
    filled: usize,
    body: usize,
}

impl Door {
    pub fn connect(&self) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
            Self::Plain(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Tls { port, config } => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                let session =
                    ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(session, stream))
            }
        };
        Ok(Connection {
            stream,
            buffer: vec![0; 128 << 10],
            filled: 0,
            body: 0,
        })
    }
}

impl Connection {
    /// Sends a request and reads its answer, which must be a 200 with a length.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request)?;
        self.stream.flush()?;
        self.filled = 0;
        let mut needed = None;
        loop {
            if needed.is_some_and(|needed| self.filled >= needed) {
                return Ok(());
            }
            if self.filled == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.filled += read;
            if needed.is_none() {
                needed = self.length()?;
            }
        }
    }

    /// Bytes of the whole answer, once its headers are there.
    fn length(&mut self) -> io::Result<Option<usize>> {
        let answer = &self.buffer[..self.filled];
        let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Ok(None);
        };
        if !answer.starts_with(b"HTTP/1.1 200") {
            let text = String::from_utf8_lossy(answer).into_owned();
            return Err(io::Error::other(format!("not answered: {text}")));
        }
        self.body = end + 4;
        let length = self.header("content-length");
        let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        Ok(Some(self.body + length))
    }

    /// A header of the last answer that is a number.
    pub fn header(&self, name: &str) -> Option<usize> {
        let head = std::str::from_utf8(&self.buffer[..self.body]).ok()?;
        head.split("\r\n").find_map(|line| {
            let (found, value) = line.split_once(':')?;
            let same = found.eq_ignore_ascii_case(name);
            same.then(|| value.trim().parse().ok())?
        })
    }

    /// The body of the last answer.
    pub fn body(&self) -> &[u8] {
        &self.buffer[self.body..self.filled]
    }
}
