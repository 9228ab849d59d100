//! Accepting connections: a place first, then a connection, then a task of its own.
//!
//! A door takes no more connections than it has places; further clients wait in the kernel's backlog.
//! Trouble with accepting (no descriptors left) is waited out: it cannot be told from here whether it
//! passes, and a door that closed for good would be worse.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tracing::Instrument;

use super::auth::Gate;
use super::connection::{self, Closing, ReadAhead, Shared};
use super::peers::Peers;
use super::tls::{Tls, certificate_name};
use crate::watch::inference::Who;

/// Runs the Unix socket until the doors close.
pub async fn unix(
    listener: UnixListener,
    peers: Arc<Peers>,
    shared: Arc<Shared>,
    closing: watch::Receiver<Closing>,
) {
    let mut turns = Turns::new(Arc::clone(&shared), closing.clone());
    while let Some(place) = turns.place().await {
        let Some((stream, _)) = turns.accepted(listener.accept()).await else {
            continue;
        };
        let (peers, shared, closing) = (Arc::clone(&peers), Arc::clone(&shared), closing.clone());
        tokio::spawn(async move {
            let _place = place;
            let (gate, uid) = match stream.peer_cred() {
                Ok(peer) => (peers.gate(peer).await, Some(peer.uid())),
                Err(error) => {
                    tracing::warn!(%error, "the kernel does not say who connected");
                    let why = "the kernel does not say who you are".to_owned();
                    (Gate::Closed(why), None)
                }
            };
            let who = uid.map_or_else(Who::anyone, Who::uid);
            let span = tracing::info_span!("connection", door = "unix", uid);
            connection::serve(stream, who, gate, ReadAhead::LOCAL, shared, closing)
                .instrument(span)
                .await;
        });
    }
}

/// Runs the TLS door until the doors close.
pub async fn tls(
    listener: TcpListener,
    tls: watch::Receiver<Tls>,
    shared: Arc<Shared>,
    closing: watch::Receiver<Closing>,
) {
    let mut turns = Turns::new(Arc::clone(&shared), closing.clone());
    while let Some(place) = turns.place().await {
        let Some((stream, peer)) = turns.accepted(listener.accept()).await else {
            continue;
        };
        let (shared, closing) = (Arc::clone(&shared), closing.clone());
        let tls = tls.borrow().clone();
        tokio::spawn(async move {
            let _place = place;
            // Small answers must not wait for the peer's acknowledgement of the last one.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            let limit = Duration::from_millis(shared.config.limits.header_timeout_ms);
            let shaken = tokio::time::timeout(limit, tls.acceptor.accept(stream)).await;
            let problem = match shaken {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => Err(format!("failed: {error}")),
                Err(_) => Err("took too long".to_owned()),
            };
            let stream = match problem {
                Ok(stream) => stream,
                Err(problem) => {
                    if let Some(left_out) = shared.refusals.line() {
                        tracing::info!(%peer, left_out, "TLS handshake {problem}");
                    }
                    return;
                }
            };
            let certificate = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| chain.first());
            let gate = tls.gate(certificate);
            let name = certificate.map(certificate_name);
            let span = tracing::info_span!("connection", door = "tls", %peer, certificate = name);
            let who = name.map_or_else(Who::anyone, Who::certificate);
            connection::serve(stream, who, gate, ReadAhead::NETWORK, shared, closing)
                .instrument(span)
                .await;
        });
    }
}

/// The accept loop's bookkeeping.
struct Turns {
    shared: Arc<Shared>,
    closing: watch::Receiver<Closing>,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Turns {
    fn new(shared: Arc<Shared>, closing: watch::Receiver<Closing>) -> Self {
        Self {
            shared,
            closing,
            pause: FIRST_PAUSE,
        }
    }

    /// A place for one more connection; `None` when the doors close.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.shared.places).acquire_owned();
        tokio::select! {
            biased;
            _ = self.closing.wait_for(|state| *state != Closing::Open) => None,
            place = place => place.ok(),
        }
    }

    /// A connection; `None` means that there is none this turn.
    async fn accepted<T>(&mut self, accept: impl Future<Output = io::Result<T>>) -> Option<T> {
        let result = tokio::select! {
            biased;
            _ = self.closing.wait_for(|state| *state != Closing::Open) => return None,
            result = accept => result,
        };
        match result {
            Ok(stream) => {
                self.pause = FIRST_PAUSE;
                Some(stream)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
            Err(error) => {
                tracing::warn!(%error, pause = ?self.pause, "cannot accept a connection");
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                None
            }
        }
    }
}
