//! Load that comes whether or not the last request was answered: what a device can do, ten times that, and
//! back.
//!
//! Many connections ask at a steady pace of their own, so the number of requests does not fall when answers
//! take longer. A connection whose answer is not there when its next turn comes lets that turn pass.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::{Package, Site, python};

/// Of the agent's default 1,024 places.
const CONNECTIONS: usize = 800;
/// No answer takes this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A device that serves a model of about a millisecond, and a question to it in the binary form.
pub fn site() -> (Site, Vec<u8>) {
    let site = Site::new(|device| {
        // A log line per request would be what is measured.
        device.configure("info,edgeward_agent=debug", "info");
    });
    let file = python::public_model("embedding_model");
    let package = Package::of_tflite(&file, "millisecond", site.fleet.directory());
    site.install(package.path());
    let tensor = [0.5f32.to_le_bytes(); 76 * 32].concat();
    let json = json!({"inputs": [{"name": "input_1", "datatype": "FP32", "shape": [1, 76, 32, 1],
        "parameters": {"binary_data_size": tensor.len()}}], "parameters": {"binary_data_output": true}})
    .to_string();
    let head = format!(
        "POST /v2/models/millisecond/infer HTTP/1.1\r\nhost: device\r\ncontent-length: {}\r\n\
         inference-header-content-length: {}\r\n\r\n",
        json.len() + tensor.len(),
        json.len()
    );
    (site, [head.as_bytes(), json.as_bytes(), &tensor].concat())
}

/// One answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub status: u16,
    pub retry_after: bool,
    pub sent: Instant,
    pub took: Duration,
}

/// The answers of one phase.
#[derive(Debug, Default)]
pub struct Phase {
    pub answers: Vec<Answer>,
}

impl Phase {
    fn took(&self, status: u16) -> Vec<Duration> {
        let these = self.answers.iter().filter(|a| a.status == status);
        let mut took: Vec<_> = these.map(|a| a.took).collect();
        took.sort_unstable();
        took
    }

    pub fn count(&self, status: u16) -> usize {
        self.answers.iter().filter(|a| a.status == status).count()
    }

    /// The time that 99 of 100 answers with this status took at most.
    pub fn p99(&self, status: u16) -> Duration {
        let took = self.took(status);
        let index = (took.len() * 99 / 100).min(took.len().saturating_sub(1));
        took.get(index).copied().unwrap_or_default()
    }

    pub fn share(&self, status: u16) -> f64 {
        self.count(status) as f64 / self.answers.len().max(1) as f64
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} asked, {} answered (p99 {:?}), {} refused (p99 {:?})",
            self.answers.len(),
            self.count(200),
            self.p99(200),
            self.count(429),
            self.p99(429)
        )
    }
}

/// What a device did before, during and after too much.
#[derive(Debug)]
pub struct Overload {
    /// Requests a second that a few clients without a pause got answered.
    pub capacity: f64,
    pub before: Phase,
    pub peak: Phase,
    pub after: Phase,
    /// From the end of the peak to the last request that was not answered.
    pub recovery: Duration,
}

impl Overload {
    /// Drives `load` (of what the device can do), ten times that, and back, each for `time`.
    pub fn drive(socket: &Path, request: &[u8], load: f64, time: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut connections = Vec::with_capacity(CONNECTIONS);
            for _ in 0..CONNECTIONS {
                connections.push(Connection::open(socket, request).await);
            }
            let capacity = capacity(&mut connections[..4]).await;
            let rate = capacity * load;
            let before = phase(&mut connections, rate, time).await;
            let peak = phase(&mut connections, rate * 10.0, time).await;
            let ended = Instant::now();
            let after = phase(&mut connections, rate, time).await;
            let unanswered = after.answers.iter().filter(|a| a.status != 200);
            let last = unanswered.map(|a| a.sent + a.took).max();
            Self {
                capacity,
                before,
                peak,
                after,
                recovery: last.map_or(Duration::ZERO, |last| last - ended),
            }
        })
    }
}

impl std::fmt::Display for Overload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}/s alone; before: {}; peak: {}; after: {}; recovered in {:?}",
            self.capacity, self.before, self.peak, self.after, self.recovery
        )
    }
}

/// Answers a second when each connection asks as soon as it was answered.
async fn capacity(connections: &mut [Connection]) -> f64 {
    let begun = Instant::now();
    let end = begun + Duration::from_millis(700);
    let counts = connections.iter_mut().map(|connection| async move {
        let mut count = 0;
        while Instant::now() < end {
            let answer = connection.ask().await.expect("an answer");
            assert_eq!(answer.status, 200, "a few clients are too many");
            count += 1;
        }
        count
    });
    let counts = futures::future::join_all(counts).await;
    f64::from(counts.into_iter().sum::<u32>()) / begun.elapsed().as_secs_f64()
}

/// `rate` requests a second, spread over all connections.
async fn phase(connections: &mut [Connection], rate: f64, time: Duration) -> Phase {
    let pause = Duration::from_secs_f64(connections.len() as f64 / rate);
    let begun = Instant::now();
    let step = pause / connections.len() as u32;
    let turns = connections
        .iter_mut()
        .enumerate()
        .map(|(index, connection)| async move {
            let mut answers = Vec::new();
            let mut turn = begun + step * index as u32;
            while turn < begun + time {
                tokio::time::sleep_until(turn.into()).await;
                answers.push(connection.ask().await.expect("an answer"));
                turn += pause;
                while turn < Instant::now() {
                    turn += pause;
                }
            }
            answers
        });
    let answers = futures::future::join_all(turns).await;
    Phase {
        answers: answers.into_iter().flatten().collect(),
    }
}

struct Connection {
    stream: UnixStream,
    request: Arc<[u8]>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(socket: &Path, request: &[u8]) -> Self {
        Self {
            stream: UnixStream::connect(socket).await.expect("connect"),
            request: request.into(),
            buffer: Vec::new(),
        }
    }

    async fn ask(&mut self) -> io::Result<Answer> {
        let sent = Instant::now();
        let (status, retry_after) = tokio::time::timeout(TIMEOUT, self.exchange())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Answer {
            status,
            retry_after,
            sent,
            took: sent.elapsed(),
        })
    }

    async fn exchange(&mut self) -> io::Result<(u16, bool)> {
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break String::from_utf8_lossy(&self.buffer[..end + 4]).to_ascii_lowercase();
            }
            self.more().await?;
        };
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let status = head.split(' ').nth(1).and_then(number);
        let length = head
            .lines()
            .find_map(|line| number(line.strip_prefix("content-length:")?));
        let (Some(status), Some(length)) = (status, length) else {
            return Err(io::Error::other(head));
        };
        while self.buffer.len() < head.len() + length {
            self.more().await?;
        }
        Ok((status as u16, head.contains("\r\nretry-after:")))
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
