//! The doors: listeners, authentication, protocols.
//!
//! `commands::serve` binds the doors early (a wrong key or a socket in use stops the start before anything
//! is loaded) and opens them when the models answer. A request passes [`accept`] (a place, a connection),
//! [`auth`] with [`peers`] or [`tls`] (who asks), [`connection`] (limits of time), [`route`], [`destination`] and [`oip`], or
//! [`grpc`] and [`oip_grpc`], or [`tfs`] (what is asked), and then `serving`. Errors become status codes in [`error`] only.
//!
//! Promises: nothing listens on the network unless the configuration says so, and then only with
//! authentication or the words that waive it; the number of connections, the size of headers and bodies and
//! the time of each step are bounded; no tensor, token or key reaches the log.

mod accept;
mod auth;
mod authority;
mod awake;
pub mod body;
pub mod coding;
mod connection;
mod decimal;
pub mod destination;
pub mod error;
pub mod grpc;
pub mod json;
mod metrics;
pub mod numbers;
pub mod oip;
pub mod oip_grpc;
mod outgoing;
pub mod peers;
pub mod protobuf;
mod pulse;
mod refusal;
pub mod route;
mod sparing;
pub mod tfs;
pub mod tls;
mod trace;
pub mod unix;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edgeward_models::verify::TrustStore;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::awake::Awake;
use self::connection::{Closing, Shared};
use self::peers::Peers;
use self::sparing::Sparing;
use self::tls::Tls;
use self::unix::SocketFile;
use crate::config::Config;
use crate::fleet::state::TRUST_DIRECTORY;
use crate::serving::Engine;
use crate::watch::inference::Recorder;
use crate::watch::metrics::Metrics;

/// Bound listeners that do not accept yet.
pub struct Doors {
    unix: tokio::net::UnixListener,
    file: Option<SocketFile>,
    peers: Arc<Peers>,
    tls: Option<(tokio::net::TcpListener, Tls)>,
}

/// The accepting tasks.
pub struct OpenDoors {
    closing: watch::Sender<Closing>,
    loops: JoinSet<()>,
    /// Of each door, with how many there are.
    places: Vec<(Arc<Semaphore>, u32)>,
    file: Option<SocketFile>,
    /// Those of the TLS door, for the connections that come next.
    keys: Option<watch::Sender<Tls>>,
    drain: Duration,
}

impl Doors {
    /// Binds the Unix socket (or takes the one systemd passed) and the TLS listener if configured; reads keys.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        allow_descriptors(config);
        let peers = Arc::new(Peers::new(&config.unix)?);
        // Keys first: if they are wrong, no socket file is made.
        let tls = match &config.tls {
            None => None,
            Some(door) => {
                let keys =
                    Tls::new(door, proven_time(config)).context("cannot open the TLS door")?;
                if door.without_authentication.is_some() {
                    tracing::warn!(
                        listen = %door.listen,
                        "the TLS door asks nobody who they are: anyone who can connect may infer"
                    );
                }
                Some((tls::bind(door.listen).await?, keys))
            }
        };
        let socket = unix::bind(&config.unix)?;
        Ok(Self {
            unix: tokio::net::UnixListener::from_std(socket.listener)?,
            file: socket.file,
            peers,
            tls,
        })
    }

    /// Where the TLS door listens.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls.as_ref()?.0.local_addr().ok()
    }

    /// Starts to accept.
    pub fn open(
        self,
        config: Arc<Config>,
        engine: Engine,
        recorder: Recorder,
        metrics: Metrics,
    ) -> OpenDoors {
        let (closing, watch) = watch::channel(Closing::Open);
        let mut loops = JoinSet::new();
        let mut places = Vec::new();
        let bodies = body::Room::new(config.limits.max_bodies_bytes);
        let awake = keep_awake(&config);
        let metrics = Arc::new(metrics);
        // Each door has its own places: strangers on the network cannot lock local callers out.
        let mut shared = || {
            let count = u32::try_from(config.limits.max_connections).unwrap_or(u32::MAX);
            let door = Arc::new(Semaphore::new(count as usize));
            places.push((Arc::clone(&door), count));
            Arc::new(Shared {
                config: Arc::clone(&config),
                engine: engine.clone(),
                recorder: recorder.clone(),
                metrics: metrics.clone(),
                bodies: bodies.clone(),
                awake: awake.clone(),
                places: door,
                refusals: Sparing::new(),
            })
        };
        match &self.file {
            Some(_) => tracing::info!(path = %config.unix.path.display(), "Unix socket open"),
            None => tracing::info!("Unix socket of systemd open"),
        }
        loops.spawn(accept::unix(self.unix, self.peers, shared(), watch.clone()));
        let mut keys = None;
        if let Some((listener, tls)) = self.tls {
            let (sender, tls) = watch::channel(tls);
            keys = Some(sender);
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "TLS door open");
            }
            loops.spawn(accept::tls(listener, tls, shared(), watch));
        }
        OpenDoors {
            closing,
            loops,
            places,
            file: self.file,
            keys,
            drain: config.limits.drain_timeout(),
        }
    }
}

impl OpenDoors {
    /// Whether a door has no place left, so that new connections wait in the kernel.
    pub fn full(&self) -> bool {
        self.places
            .iter()
            .any(|(places, _)| places.available_permits() == 0)
    }

    /// Reads the TLS door's certificates and key again, for connections from now on; `false` if there is no such
    /// door. If something is wrong with them, those in use stay.
    pub fn read_keys_again(&self, config: &Config) -> anyhow::Result<bool> {
        let (Some(keys), Some(door)) = (&self.keys, &config.tls) else {
            return Ok(false);
        };
        let fresh = Tls::new(door, proven_time(config))
            .context("cannot use the TLS door's certificates and key as they are now")?;
        keys.send_replace(fresh);
        Ok(true)
    }

    /// Stops accepting, lets requests in flight finish within the drain time, closes.
    pub async fn close(mut self) {
        if let Some(file) = self.file.take() {
            file.remove();
        }
        let _ = self.closing.send(Closing::Draining);
        while self.loops.join_next().await.is_some() {}
        // A connection gives its place back when it ends.
        let all_ended = async {
            for (places, count) in &self.places {
                let _ = places.acquire_many(*count).await;
            }
        };
        if tokio::time::timeout(self.drain, all_ended).await.is_err() {
            tracing::warn!(after = ?self.drain, "closing connections whose requests have not finished");
        }
        let _ = self.closing.send(Closing::Now);
    }
}

/// What keeps cores awake under load, if it is wanted and may be had.
fn keep_awake(config: &Config) -> Option<Arc<Awake>> {
    if !config.power.awake_under_load {
        return None;
    }
    let opened = Awake::open(Path::new(awake::DEVICE));
    opened
        .inspect_err(|error| {
            tracing::info!(
                %error,
                "{} cannot be opened: cores may sleep between requests, which then take longer",
                awake::DEVICE
            );
        })
        .ok()
}

/// The latest time that the fleet's verified documents proved, if this device is a member of one.
fn proven_time(config: &Config) -> Option<jiff::Timestamp> {
    let directory = config.state_directory.join(TRUST_DIRECTORY);
    // An unreadable store is the fleet side's to report.
    TrustStore::open(&directory)
        .ok()
        .map(|store| store.trusted_time())
}

/// Makes room for the configured connections where the system's soft limit would not (systemd's default is
/// 1024 soft, far more hard).
fn allow_descriptors(config: &Config) {
    /// Workers, model files, logs, the broker.
    const OTHERS: u64 = 512;
    let needed = 2 * config.limits.max_connections as u64 + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
    let wanted = Rlimit {
        current,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, wanted).is_err() || current != Some(needed) {
        tracing::warn!(
            needed,
            limit = current,
            "fewer file descriptors than limits.max_connections needs: raise LimitNOFILE"
        );
    }
}
