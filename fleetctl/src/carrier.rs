//! Carries a repository to the broker, which is a copy that may lose everything and that others write to.
//!
//! Chunks go first and the timestamp last, so that a device never sees metadata whose parts are not there
//! yet. Metadata on the broker that is newer than the repository is never written over. MQTT has no
//! compare-and-swap: two operators with separate copies of a repository are told apart by reading the
//! timestamp before and, after a quiet period, again; between those two moments the last one wins, and the
//! other is told.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use edgeward_models::chunk::{self, ChunkError, Source, SourceError};
use edgeward_models::digest::Digest;
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::{FileName, FleetName};
use edgeward_models::sign::{Publication, Repository};
use futures::stream::{self, TryStreamExt};
use indicatif::ProgressBar;
use tough::schema::{Root, Signed, Timestamp};

use crate::link::Link;
use crate::printer::Printer;

/// A topic that stays silent this long after its subscription was acknowledged is empty.
const QUIET: Duration = Duration::from_millis(500);
/// How long a rival's publication may take to show after ours.
const READ_BACK_AFTER: Duration = Duration::from_millis(300);
/// Messages sent or asked for at once: with chunks of 60 KiB at most two megabytes.
const WINDOW: usize = 32;
const TIMESTAMP: &str = "timestamp.json";
/// A timestamp larger than this is not one.
const MAX_TIMESTAMP_BYTES: u64 = 64 * 1024;

/// What the broker holds, compared with the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The very same timestamp.
    Same,
    /// An older one, ours.
    Behind,
    Empty,
    /// Something that the fleet's timestamp key did not sign.
    Forged,
}

pub struct Carrier<'a> {
    link: &'a Link,
    fleet: &'a FleetName,
    printer: &'a Printer,
}

impl<'a> Carrier<'a> {
    pub fn new(link: &'a Link, fleet: &'a FleetName, printer: &'a Printer) -> Self {
        Self {
            link,
            fleet,
            printer,
        }
    }

    /// Compares the broker's timestamp with the repository's. An error when publishing would overwrite
    /// another operator's newer or simultaneous work.
    pub async fn standing(&self, repository: &Repository) -> Result<Standing> {
        match self.timestamp().await? {
            None => Ok(Standing::Empty),
            Some(held) => compare(
                &held,
                &repository.timestamp()?,
                repository.timestamp_version(),
                &repository.root()?,
            ),
        }
    }

    /// Publishes what a change needs, onto a broker that holds what was before the change. Both this and
    /// [`Carrier::sync`] come after [`Carrier::standing`], which refuses what must not be overwritten.
    pub async fn send(&self, repository: &Repository, publication: &Publication) -> Result<()> {
        self.publish(repository, publication, false).await.map(drop)
    }

    /// Publishes everything that is not there yet with the same bytes. Returns how many messages were sent
    /// and how many were already there.
    pub async fn sync(&self, repository: &Repository, standing: Standing) -> Result<(u64, u64)> {
        // A broker without a timestamp has lost everything: asking for each part would only cost time.
        let ask = standing != Standing::Empty;
        let done = self
            .publish(repository, &repository.everything()?, ask)
            .await?;
        self.clear_next_root(repository).await?;
        Ok(done)
    }

    /// Takes away what stands where the next root will be: devices ask for it before anything else, and nothing of
    /// ours would ever overwrite it.
    async fn clear_next_root(&self, repository: &Repository) -> Result<()> {
        let file: FileName = format!("{}.root.json", repository.root_version() + 1).parse()?;
        let topic = Topic::Metadata(file.clone()).in_fleet(self.fleet);
        let source = self.source();
        match chunk::fetch_metadata(&source, &file, MAX_TIMESTAMP_BYTES).await {
            Ok(None) => return Ok(()),
            Err(ChunkError::Source(error)) => return Err(error.into()),
            Ok(Some(held)) if follows(&held, &repository.root()?)? => bail!(
                "the broker holds {file}, signed by this fleet's root key: another operator has changed keys; take \
                 that with `fleetctl pull`"
            ),
            Ok(Some(_)) | Err(_) => {}
        }
        self.link.publish(&topic, Bytes::new()).await?;
        self.printer.warn(&format!(
            "the broker held a {file} that this fleet's key did not sign; it was removed. Who may write to the broker?"
        ));
        Ok(())
    }

    /// What the broker holds, to be verified by whoever reads it.
    pub fn source(&self) -> BrokerSource<'_> {
        BrokerSource {
            link: self.link,
            fleet: self.fleet,
        }
    }

    /// Checks that the broker still holds our timestamp once a rival has had time to show.
    pub async fn read_back(&self, repository: &Repository) -> Result<()> {
        tokio::time::sleep(READ_BACK_AFTER).await;
        match self.standing(repository).await? {
            Standing::Same => Ok(()),
            Standing::Empty => bail!(
                "the broker acknowledged the publication and does not hold it; does it keep retained messages?"
            ),
            Standing::Behind | Standing::Forged => bail!(
                "the broker holds other metadata than was just published: somebody else writes to it; look \
                 at its access list, then run `fleetctl sync`"
            ),
        }
    }

    async fn timestamp(&self) -> Result<Option<Vec<u8>>> {
        let source = self.source();
        let file = TIMESTAMP.parse()?;
        match chunk::fetch_metadata(&source, &file, MAX_TIMESTAMP_BYTES).await {
            Ok(bytes) => Ok(bytes),
            Err(ChunkError::Source(error)) => Err(error.into()),
            // Something stands there, and it is not a packed document: certainly not ours.
            Err(_) => Ok(Some(Vec::new())),
        }
    }

    async fn publish(
        &self,
        repository: &Repository,
        publication: &Publication,
        skip_present: bool,
    ) -> Result<(u64, u64)> {
        // A large metadata file brings chunks of its own.
        let mut packed = Vec::new();
        let mut own_chunks = HashMap::new();
        for file in &publication.metadata {
            let document = repository.packed_metadata(file)?;
            own_chunks.extend(
                document
                    .chunks
                    .into_iter()
                    .map(|(digest, bytes)| (digest, Bytes::from(bytes))),
            );
            packed.push((Topic::Metadata(file.clone()), Bytes::from(document.head)));
        }
        // Stable: the order that the repository gave is kept, and the timestamp is what readers wait for.
        packed.sort_by_key(
            |(topic, _)| matches!(topic, Topic::Metadata(f) if f.as_str() == TIMESTAMP),
        );
        let listed = publication
            .chunks
            .iter()
            .filter(|digest| !own_chunks.contains_key(digest));
        let chunks: Vec<Digest> = listed.chain(own_chunks.keys()).copied().collect();
        let bar = self
            .printer
            .bar("publishing", (chunks.len() + packed.len()) as u64);
        let load = |digest: &Digest| -> Result<Bytes> {
            Ok(match own_chunks.get(digest) {
                Some(bytes) => bytes.clone(),
                None => repository.chunk(digest)?.into(),
            })
        };
        let mut sent = 0;
        for part in chunks.chunks(WINDOW) {
            let messages = part
                .iter()
                .map(|digest| Ok((Topic::Chunk(*digest), load(digest)?)))
                .collect::<Result<Vec<_>>>()?;
            sent += self.publish_part(messages, skip_present, &bar).await?;
        }
        // Metadata one by one: the order is what keeps a reader's view whole.
        for message in packed {
            sent += self.publish_part(vec![message], skip_present, &bar).await?;
        }
        bar.finish_and_clear();
        Ok((sent, bar.length().unwrap_or(0).saturating_sub(sent)))
    }

    async fn publish_part(
        &self,
        messages: Vec<(Topic, Bytes)>,
        skip_present: bool,
        bar: &ProgressBar,
    ) -> Result<u64> {
        let mut messages: Vec<_> = messages
            .into_iter()
            .map(|(topic, bytes)| (topic.in_fleet(self.fleet), bytes))
            .collect();
        if skip_present {
            let topics: Vec<_> = messages.iter().map(|(topic, _)| topic.clone()).collect();
            let present = self.link.fetch(&topics, QUIET).await?;
            messages.retain(|(topic, bytes)| {
                let there = present.get(topic) == Some(bytes);
                if there {
                    bar.inc(1);
                }
                !there
            });
        }
        let count = messages.len() as u64;
        stream::iter(messages.into_iter().map(Ok))
            .try_for_each_concurrent(WINDOW, |(topic, bytes)| async move {
                self.link.publish(&topic, bytes).await?;
                bar.inc(1);
                Ok::<_, crate::link::LinkError>(())
            })
            .await?;
        Ok(count)
    }
}

/// Whether the keys of our root signed this one.
fn follows(held: &[u8], root: &[u8]) -> Result<bool> {
    let root: Signed<Root> =
        serde_json::from_slice(root).context("cannot read the repository's root")?;
    let next = serde_json::from_slice::<Signed<Root>>(held);
    Ok(next.is_ok_and(|next| root.signed.verify_role(&next).is_ok()))
}

/// Compares a broker's timestamp with ours. `root` says who may sign one.
fn compare(held: &[u8], ours: &[u8], our_version: u64, root: &[u8]) -> Result<Standing> {
    if held == ours {
        return Ok(Standing::Same);
    }
    let root: Signed<Root> =
        serde_json::from_slice(root).context("cannot read the repository's root")?;
    let Ok(timestamp) = serde_json::from_slice::<Signed<Timestamp>>(held) else {
        return Ok(Standing::Forged);
    };
    if root.signed.verify_role(&timestamp).is_err() {
        return Ok(Standing::Forged);
    }
    let version = timestamp.signed.version.get();
    if version > our_version {
        bail!(
            "the broker holds newer metadata (timestamp {version}; this repository has {our_version}): \
             another operator has published; take it with `fleetctl pull` and repeat the command"
        );
    }
    if version == our_version {
        bail!(
            "the broker holds another timestamp {version} than this repository: two operators published at \
             once and the other one won; take theirs with `fleetctl pull --discard-own` and repeat the command"
        );
    }
    Ok(Standing::Behind)
}

/// The broker's retained topics as a source of documents.
#[derive(Debug)]
pub struct BrokerSource<'a> {
    link: &'a Link,
    fleet: &'a FleetName,
}

impl BrokerSource<'_> {
    async fn retained(&self, topic: Topic) -> Result<Option<Bytes>, SourceError> {
        let topic = topic.in_fleet(self.fleet);
        let mut found = self
            .link
            .fetch(std::slice::from_ref(&topic), QUIET)
            .await
            .map_err(|e| SourceError {
                what: topic.clone(),
                source: Box::new(e),
            })?;
        Ok(found.remove(&topic))
    }
}

#[async_trait]
impl Source for BrokerSource<'_> {
    async fn metadata(&self, file: &FileName) -> Result<Option<Bytes>, SourceError> {
        self.retained(Topic::Metadata(file.clone())).await
    }

    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        self.retained(Topic::Chunk(*digest)).await
    }
}
