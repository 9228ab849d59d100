//! A source that answers until a moment and fails from then on, so that a carrier which is slow on purpose ends.
//!
//! The limit is in the source and not around its reader: a reader that is stopped half-way would also drop the
//! newer roots that it has seen (`models::verify::TrustStore::update`).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use edgeward_models::Digest;
use edgeward_models::chunk::{Source, SourceError};
use edgeward_models::name::FileName;
use tokio::time::{Duration, Instant, timeout_at};

#[derive(Debug)]
pub struct Deadline {
    source: Arc<dyn Source>,
    time: Duration,
    end: Instant,
}

#[derive(Debug, thiserror::Error)]
#[error("the look at the repository took longer than {} s and was given up", .0.as_secs())]
struct TooLong(Duration);

impl Deadline {
    /// `source` for as long as `time` from now.
    pub fn new(source: Arc<dyn Source>, time: Duration) -> Self {
        let end = Instant::now() + time;
        Self { source, time, end }
    }

    async fn within<T>(
        &self,
        what: impl ToString,
        fetch: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        timeout_at(self.end, fetch).await.unwrap_or_else(|_| {
            Err(SourceError {
                what: what.to_string(),
                source: Box::new(TooLong(self.time)),
            })
        })
    }
}

#[async_trait]
impl Source for Deadline {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        self.within(file, self.source.metadata(file)).await
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        self.within(digest, self.source.chunk(digest)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each answer takes a while.
    #[derive(Debug)]
    struct Slow;

    #[async_trait]
    impl Source for Slow {
        async fn metadata(&self, _: &FileName) -> Result<Option<Bytes>, SourceError> {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(None)
        }

        async fn chunk(&self, _: &Digest) -> Result<Option<Bytes>, SourceError> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn a_source_that_answers_each_time_just_in_time_ends_all_the_same() {
        let source = Deadline::new(Arc::new(Slow), Duration::from_millis(250));
        let file = "2.root.json".parse().expect("name");
        for _ in 0..2 {
            let _ = source.metadata(&file).await;
        }
        let error = source.metadata(&file).await.expect_err("too long");
        assert!(
            error.source.to_string().contains("given up"),
            "{}",
            error.source
        );
    }
}
