//! A small HTTP client that does just what a test says, wrong things included.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// No answer takes longer unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
pub struct Client<S> {
    pub stream: S,
    read: Vec<u8>,
    head_only: bool,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The text of an error; checks its shape.
    pub fn error(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let json = self.json();
        json["error"].as_str().expect("an error").to_owned()
    }

    /// JSON part and binary part.
    pub fn split(&self) -> (Value, &[u8]) {
        let length = self.header("inference-header-content-length");
        let length: usize = length.expect("header").parse().expect("number");
        let json = serde_json::from_slice(&self.body[..length]).expect("JSON");
        (json, &self.body[length..])
    }
}

impl Client<UnixStream> {
    pub async fn unix(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).await.expect("connect"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            read: Vec::new(),
            head_only: false,
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("write");
        self.stream.flush().await.expect("flush");
    }

    /// Sends a request and reads its answer.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.send(request(method, path, headers, body)).await;
        self.head_only = method == "HEAD";
        self.reply().await.expect("an answer")
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.ask("GET", path, &[], b"").await
    }

    pub async fn post(&mut self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.ask("POST", path, &[], body.as_ref()).await
    }

    /// Reads one answer; `None`: the connection ended without one.
    pub async fn reply(&mut self) -> Option<Reply> {
        tokio::time::timeout(PATIENCE, self.read_reply())
            .await
            .expect("an answer in time")
    }

    async fn read_reply(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.read[..end].to_vec()).expect("text");
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("status");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        self.read.drain(..end);
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
        };
        if status == 100 || self.head_only {
            return Some(reply);
        }
        let length = reply
            .header("content-length")
            .map_or(0, |l| l.parse().expect("length"));
        while self.read.len() < length {
            self.more().await.expect("the whole body");
        }
        reply.body = self.read.drain(..length).collect();
        Some(reply)
    }

    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("{method} {path} HTTP/1.1\r\nHost: device\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        out += &format!("Content-Length: {}\r\n", body.len());
    }
    out += "\r\n";
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}
