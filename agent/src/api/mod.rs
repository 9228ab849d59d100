//! The doors: listeners, authentication, protocols. (Contract; bodies to be written.)
#![allow(dead_code, unused_variables)]
use std::sync::Arc;

use crate::config::Config;
use crate::serving::Engine;

/// Bound listeners that do not accept yet.
pub struct Doors {}

/// The accepting tasks.
pub struct OpenDoors {}

impl Doors {
    /// Binds the Unix socket (or takes the one systemd passed) and the TLS listener if configured; reads keys.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        todo!()
    }

    /// Starts to accept.
    pub fn open(self, config: Arc<Config>, engine: Engine) -> OpenDoors {
        todo!()
    }
}

impl OpenDoors {
    /// Stops accepting, lets requests in flight finish within the drain time, closes.
    pub async fn close(self) {
        todo!()
    }
}
