//! Waiting for what another task or process brings about.

use std::time::{Duration, Instant};

/// Generous: these tests share their machine with builds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `check` is true; panics with `what` when patience ends.
pub async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
