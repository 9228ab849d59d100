//! Tells systemd that the request path is alive, and only while it is.
//!
//! Where `WatchdogSec=` is set, every third of that time a request for liveness goes through the local door
//! like anybody's. An answer of any kind, real requests answered in the meantime, or a full house count as
//! life: no caller can get the agent killed, and neither can a broker or a disk that fails, which are not asked.

use std::io;
use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::error;

use crate::api::OpenDoors;
use crate::serving::Engine;

const PROBE: &[u8] =
    b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Feeds the watchdog until dropped. Does nothing where systemd did not ask for it.
pub async fn feed(engine: &Engine, doors: &OpenDoors, path: &Path) {
    let Some(allowed) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let pause = allowed / 3;
    let mut answered = engine.answered();
    loop {
        tokio::time::sleep(pause).await;
        let alive = probe(path, pause).await;
        let now = engine.answered();
        if alive || now != answered || doors.full() {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        } else {
            error!("the request path does not answer: the watchdog is not fed");
        }
        answered = now;
    }
}

/// Whether the door still takes connections and does something with them.
async fn probe(door: &Path, patience: Duration) -> bool {
    let asking = async {
        let mut stream = UnixStream::connect(door).await?;
        stream.write_all(PROBE).await?;
        // An end without an answer is a door that is full, which is alive.
        stream.read(&mut [0; 64]).await
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(Ok(_)) => true,
        // A socket that systemd passed may have another name, or be closed to our own user: then nothing was
        // learnt, and that this task runs has to do.
        Ok(Err(e)) => e.kind() != io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_door_that_answers_or_closes_is_alive_and_one_that_hangs_is_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("door");
        let patience = Duration::from_millis(50);
        let listener = UnixListener::bind(&path).expect("bind");
        assert!(!probe(&path, patience).await, "nobody accepts");
        let answering = async {
            // The connection that the first probe gave up comes first.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            }
        };
        let (alive, ()) = tokio::join!(probe(&path, Duration::from_secs(5)), answering);
        assert!(alive);
        drop(listener);
        assert!(!probe(&path, patience).await, "the listener is gone");
        assert!(probe(&directory.path().join("other"), patience).await);
    }
}
