//! The repository behind the broker's retained topics, as a [`Source`] of untrusted bytes.
//!
//! One topic at a time is subscribed, read and let go, never a wildcard: brokers drop retained messages for
//! clients that ask for many at once. Chunks are asked for inside a window of bytes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeward_models::chunk::{MAX_CHUNK_BYTES, Source, SourceError};
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::FileName;
use edgeward_models::{Digest, FleetName};
use tokio::sync::Semaphore;

use super::mqtt::{Link, LinkError};

/// The broker as a source. Cheap to clone.
#[derive(Clone)]
pub struct BrokerSource {
    link: Link,
    fleet: FleetName,
    quiet: Duration,
    /// Chunks under way; each counts as the largest, since its size is known only when it is here.
    window: Arc<Semaphore>,
}

impl BrokerSource {
    pub fn new(link: Link, fleet: FleetName, quiet: Duration, window_bytes: usize) -> Self {
        let chunks = (window_bytes / MAX_CHUNK_BYTES).max(1);
        Self {
            link,
            fleet,
            quiet,
            window: Arc::new(Semaphore::new(chunks)),
        }
    }

    async fn retained(&self, topic: Topic) -> Result<Option<Bytes>, SourceError> {
        let topic = topic.in_fleet(&self.fleet);
        self.link
            .retained(&topic, self.quiet)
            .await
            .map_err(|error: LinkError| SourceError {
                what: topic,
                source: Box::new(error),
            })
    }
}

#[async_trait]
impl Source for BrokerSource {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        self.retained(Topic::Metadata(file.clone())).await
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        let _room = self.window.acquire().await;
        self.retained(Topic::Chunk(*digest)).await
    }
}

impl std::fmt::Debug for BrokerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerSource")
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}
