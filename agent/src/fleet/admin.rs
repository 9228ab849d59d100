//! The admin socket: how `edgeward import`, `route` and `status` talk to the running agent.
//!
//! A Unix socket in the state directory that only its owner and root can open; the peer's uid is checked
//! again. Where the configuration names another place, the kernel lets the socket's group in as well (that of
//! the directory, if it has the setgid bit). One request line, then answer lines, all JSON. `import` brings a
//! descriptor of the directory with it, so the agent needs no rights on the path and reads exactly what the
//! person at the prompt may read.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edgeward_models::fleet::routing::Routing;
use edgeward_models::fleet::status::{Online, Phase, Status};
use edgeward_models::fleet::telemetry::TelemetryBatch;
use edgeward_models::repository::DirectorySource;
use edgeward_models::{ModelName, Version};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::board::{Board, chain};
use super::reconcile::{ImportEvent, ImportOutcome, ImportRequest, OverrideRequest};
use crate::api::unix::listening_socket;
use crate::config::Config;
use crate::serving::Difference;

const FILE: &str = "admin.sock";
/// In the state directory, and where the configuration puts it.
const MODE_PRIVATE: u32 = 0o600;
const MODE_SHARED: u32 = 0o660;
/// A routing with all that it may hold takes about half of it.
const MAX_REQUEST_BYTES: usize = 16 << 10;
const MAX_ANSWER_BYTES: u64 = 4 * 1024 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Import events that wait for a slow reader; the reconciler sends a handful per import.
const PENDING_EVENTS: usize = 64;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Status,
    Preview,
    Import,
    Route {
        model: ModelName,
        /// Absent: the override ends.
        routing: Option<Routing>,
    },
}

/// What `edgeward route` gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routed {
    /// In words.
    Done(String),
    /// Why nothing was changed.
    Refused(String),
}

/// What `edgeward status` gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub enrolled: bool,
    /// When the certificate that it shows the broker ends.
    pub certificate_ends: Option<jiff::Timestamp>,
    /// Broker and state of the link, in words.
    pub link: Option<String>,
    pub connected: bool,
    pub status: Status,
    /// What each served version takes here.
    pub workers: Vec<WorkerReport>,
    /// The latest answers of shadows that differed; they stay on the device.
    #[serde(default)]
    pub differences: Vec<Difference>,
}

/// One served version's worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerReport {
    pub model: ModelName,
    pub version: Version,
    /// Its share of the pages that processes share; 0 while there is none.
    pub memory_bytes: u64,
    pub interpreters: usize,
    /// Why it is not loaded, though the next request loads it.
    pub unloaded: Option<String>,
}

/// What `edgeward telemetry preview` gets: each message that the device sends, as it would be now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preview {
    /// On connecting; with `online: false` as last will and goodbye.
    pub online: Online,
    /// When something in it changes, and once a day.
    pub status: Status,
    /// Each interval.
    pub telemetry: Option<TelemetryBatch>,
}

/// What the socket answers with.
pub struct Admin {
    pub board: Arc<Board>,
    pub imports: mpsc::Sender<ImportRequest>,
    pub overrides: mpsc::Sender<OverrideRequest>,
    pub report: Box<dyn Fn() -> Report + Send + Sync>,
    pub preview: Box<dyn Fn() -> Preview + Send + Sync>,
    /// The socket's group may use it, not only root and the agent's own user.
    pub shared: bool,
}

pub fn path(config: &Config) -> PathBuf {
    let named = config.admin_socket.clone();
    named.unwrap_or_else(|| config.state_directory.join(FILE))
}

/// Binds the admin socket. Without one the agent serves all the same.
pub fn open(config: &Config) -> Option<std::os::unix::net::UnixListener> {
    let path = path(config);
    let mode = match config.admin_socket {
        Some(_) => MODE_SHARED,
        None => MODE_PRIVATE,
    };
    match bind(&path, mode) {
        Ok(listener) => Some(listener),
        Err(problem) => {
            warn!(path = %path.display(), problem = format!("{problem:#}"), "no admin socket; `edgeward import` and `status` will not reach this agent");
            None
        }
    }
}

/// Serves until the task is dropped.
pub async fn serve(listener: std::os::unix::net::UnixListener, admin: Admin) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(problem) => {
            warn!(%problem, "the admin socket cannot be served");
            return;
        }
    };
    let admin = Arc::new(admin);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = admin.clone();
                // Each answers one request and ends; few people hold this door at once.
                tokio::spawn(async move {
                    if let Err(problem) = attend(stream, &admin).await {
                        warn!(%problem, "admin request not answered");
                    }
                });
            }
            Err(problem) => {
                warn!(%problem, "admin socket does not accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn bind(path: &Path, mode: u32) -> anyhow::Result<std::os::unix::net::UnixListener> {
    // The state lock is ours, so a socket that is there belongs to nobody.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    Ok(listening_socket(path, mode, None)?.into())
}

async fn attend(stream: UnixStream, admin: &Admin) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if !admin.shared && peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "uid {peer} is not an administrator"
        )));
    }
    let stream = stream.into_std()?;
    let (stream, request, directory) = tokio::task::spawn_blocking(move || {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        let (request, directory) = receive(&stream)?;
        stream.set_nonblocking(true)?;
        Ok::<_, io::Error>((stream, request, directory))
    })
    .await
    .map_err(io::Error::other)??;
    let mut stream = UnixStream::from_std(stream)?;
    match request {
        Request::Status => send(&mut stream, &(admin.report)()).await,
        Request::Preview => send(&mut stream, &(admin.preview)()).await,
        Request::Import => {
            let directory =
                directory.ok_or_else(|| io::Error::other("import came without a directory"))?;
            info!(uid = peer, "import requested");
            import(&mut stream, admin, directory).await
        }
        Request::Route { model, routing } => {
            info!(uid = peer, %model, "override of the routing requested");
            let (answer, answered) = oneshot::channel();
            let request = OverrideRequest {
                model,
                routing,
                uid: peer,
                answer,
            };
            let stopping = || io::Error::other("the agent is stopping");
            let sent = admin.overrides.send(request).await;
            sent.map_err(|_| stopping())?;
            let routed = match answered.await.map_err(|_| stopping())? {
                Ok(text) => Routed::Done(text),
                Err(reason) => Routed::Refused(reason),
            };
            send(&mut stream, &routed).await
        }
    }
}

fn receive(stream: &StdStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let mut bytes = [0; MAX_REQUEST_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut directory = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            directory = descriptors.into_iter().next().or(directory);
        }
    }
    let line = bytes.get(..received.bytes).unwrap_or_default();
    Ok((serde_json::from_slice(line)?, directory))
}

async fn send(stream: &mut UnixStream, answer: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(REQUEST_TIMEOUT, stream.write_all(&line)).await?
}

async fn import(stream: &mut UnixStream, admin: &Admin, directory: OwnedFd) -> io::Result<()> {
    let (progress, mut events) = mpsc::channel(PENDING_EVENTS);
    let source = match DirectorySource::from_fd(directory) {
        Ok(source) => Arc::new(source),
        Err(e) => {
            let (outcome, lines) = (ImportOutcome::Failed, vec![chain(&e)]);
            return send(stream, &ImportEvent::Done { outcome, lines }).await;
        }
    };
    let request = ImportRequest { source, progress };
    if admin.imports.send(request).await.is_err() {
        return Err(io::Error::other("the agent is stopping"));
    }
    let mut changes = admin.board.changes();
    let mut shown = Vec::new();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    send(stream, &event).await?;
                    if matches!(event, ImportEvent::Done { .. }) {
                        return Ok(());
                    }
                }
                None => return Err(io::Error::other("the agent is stopping")),
            },
            Ok(()) = changes.changed() => {
                for line in progress_lines(&admin.board) {
                    if !shown.contains(&line) {
                        send(stream, &ImportEvent::Progress(line.clone())).await?;
                        shown.push(line);
                    }
                }
            }
        }
    }
}

/// One line per model that is being worked on, in steps of a tenth.
fn progress_lines(board: &Board) -> Vec<String> {
    let facts = board.facts();
    let lines = facts.models.iter().filter_map(|(model, line)| {
        let version = line.target.as_ref()?;
        match line.phase {
            Phase::Fetching { have, of } if of > 0 => {
                Some(format!("{model} {version}: {} % read", have * 10 / of * 10))
            }
            Phase::Proving => Some(format!("{model} {version}: being loaded and proven")),
            _ => None,
        }
    });
    lines.collect()
}

/// The other end: asks the agent that runs with this configuration. `None`: none is running.
pub struct Client {
    stream: StdStream,
}

impl Client {
    pub fn connect(config: &Config) -> io::Result<Option<Self>> {
        match StdStream::connect(path(config)) {
            Ok(stream) => Ok(Some(Self { stream })),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// The same where nothing can be done without an agent.
    pub fn running(config: &Config) -> anyhow::Result<Self> {
        Self::connect(config)
            .context("cannot talk to the running agent; be root, the agent's own user, or in the group of its admin_socket")?
            .with_context(|| {
                format!(
                    "no agent runs on {} (systemctl start edgeward)",
                    config.state_directory.display()
                )
            })
    }

    pub fn status(self) -> io::Result<Report> {
        self.ask(&Request::Status)
    }

    pub fn preview(self) -> io::Result<Preview> {
        self.ask(&Request::Preview)
    }

    /// Overrides the routing of a model, or ends the override.
    pub fn route(self, model: ModelName, routing: Option<Routing>) -> io::Result<Routed> {
        self.ask(&Request::Route { model, routing })
    }

    fn ask<T: DeserializeOwned>(mut self, request: &Request) -> io::Result<T> {
        self.stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        self.stream.write_all(&serde_json::to_vec(request)?)?;
        let mut line = Vec::new();
        BufReader::new(self.stream.take(MAX_ANSWER_BYTES)).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// Hands the directory over and returns the last event; `hear` gets those before it.
    pub fn import(
        self,
        directory: impl AsFd,
        mut hear: impl FnMut(String),
    ) -> io::Result<(ImportOutcome, Vec<String>)> {
        let request = serde_json::to_vec(&Request::Import)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [directory.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("the descriptor does not fit its message"));
        }
        let parts = [IoSlice::new(&request)];
        sendmsg(&self.stream, &parts, &mut control, SendFlags::empty())?;
        let mut reader = BufReader::new(self.stream.take(MAX_ANSWER_BYTES));
        loop {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Err(io::Error::other("the agent ended before the import did"));
            }
            match serde_json::from_slice(&line)? {
                ImportEvent::Progress(text) => hear(text),
                ImportEvent::Done { outcome, lines } => return Ok((outcome, lines)),
            }
        }
    }
}
