//! Telemetry samples that wait for the broker: bounded in bytes, the oldest dropped first and counted.
//!
//! A sample leaves the outbox when the broker has acknowledged it, so one may arrive twice and none is lost
//! silently; its number tells duplicates.

use std::path::Path;

use edgeward_models::codec::{self, CodecError};
use edgeward_models::fleet::telemetry::Sample;
use tracing::warn;

use super::store::{Opened, Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// The queue of one device.
pub struct Outbox {
    store: Store,
    limit: u64,
}

/// Samples that travel together.
pub struct Parcel {
    keys: Vec<u64>,
    pub samples: Vec<Sample>,
}

impl Outbox {
    /// Blocks while it reads everything. The text says why what was there had to be set aside.
    pub fn open(directory: &Path, limit: u64) -> Result<(Self, Option<String>), StoreError> {
        let Opened { store, damage } = Store::open(directory)?;
        Ok((Self { store, limit }, damage))
    }

    /// The number that the next sample must carry.
    pub fn next_sequence(&self) -> u64 {
        self.store.next_key()
    }

    /// Samples that wait, and their bytes.
    pub fn waiting(&self) -> (u64, u64) {
        (self.store.records(), self.store.bytes())
    }

    /// Samples that were discarded since the outbox was made.
    pub fn dropped(&self) -> u64 {
        self.store.dropped()
    }

    /// Counts samples that could not be kept at all.
    pub fn count_dropped(&mut self, samples: u64) -> Result<(), StoreError> {
        match samples {
            0 => Ok(()),
            _ => self.store.count_dropped(samples),
        }
    }

    /// Keeps a sample, durably.
    pub fn push(&mut self, sample: &Sample) -> Result<(), OutboxError> {
        let bytes = codec::encode("sample", sample)?;
        while self.store.bytes() + bytes.len() as u64 > self.limit && self.store.bytes() > 0 {
            let oldest = self.store.oldest(16, 64 * 1024)?;
            let keys: Vec<u64> = oldest.iter().map(|(key, _)| *key).collect();
            warn!(
                samples = keys.len(),
                "outbox full; its oldest samples are dropped"
            );
            self.store.remove(&keys, true)?;
        }
        self.store.append(&bytes)?;
        Ok(())
    }

    /// The oldest samples, as many as fit; `None` when nothing waits.
    pub fn parcel(&mut self, samples: usize, bytes: usize) -> Result<Option<Parcel>, OutboxError> {
        loop {
            let records = self.store.oldest(samples, bytes)?;
            let mut parcel = Parcel {
                keys: Vec::new(),
                samples: Vec::new(),
            };
            let mut foreign = Vec::new();
            for (key, bytes) in records {
                match codec::decode("sample", &bytes) {
                    Ok(sample) => {
                        parcel.keys.push(key);
                        parcel.samples.push(sample);
                    }
                    // Of another version of this agent: it would be in the way of all others for ever.
                    Err(_) => foreign.push(key),
                }
            }
            if !foreign.is_empty() {
                self.store.remove(&foreign, true)?;
            }
            if !parcel.keys.is_empty() || foreign.is_empty() {
                return Ok((!parcel.keys.is_empty()).then_some(parcel));
            }
        }
    }

    /// The broker has it.
    pub fn arrived(&mut self, parcel: &Parcel) -> Result<(), OutboxError> {
        Ok(self.store.remove(&parcel.keys, false)?)
    }

    /// It can never be sent.
    pub fn discard(&mut self, parcel: &Parcel) -> Result<(), OutboxError> {
        Ok(self.store.remove(&parcel.keys, true)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeward_models::fleet::telemetry::DeviceSample;

    fn sample(sequence: u64) -> Sample {
        Sample {
            sequence,
            at: 0,
            interval_seconds: 60,
            models: Vec::new(),
            device: DeviceSample {
                cpu_percent: 1.0,
                memory_used_bytes: 2,
                memory_total_bytes: 3,
                agent_resident_bytes: 4,
                disk_free_bytes: 5,
            },
        }
    }

    #[test]
    fn samples_wait_in_order_until_they_have_arrived() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (mut outbox, damage) = Outbox::open(directory.path(), 1 << 20).expect("open");
        assert_eq!(damage, None);
        for _ in 0..5 {
            let next = outbox.next_sequence();
            outbox.push(&sample(next)).expect("push");
        }
        let parcel = outbox.parcel(3, 1 << 20).expect("read").expect("some");
        let numbers: Vec<u64> = parcel.samples.iter().map(|s| s.sequence).collect();
        assert_eq!(numbers, [1, 2, 3]);
        // Not acknowledged: the same again after a restart.
        drop(outbox);
        let (mut outbox, _) = Outbox::open(directory.path(), 1 << 20).expect("open");
        let parcel = outbox.parcel(3, 1 << 20).expect("read").expect("some");
        assert_eq!(parcel.samples[0].sequence, 1);
        outbox.arrived(&parcel).expect("arrived");
        let parcel = outbox.parcel(9, 1 << 20).expect("read").expect("some");
        assert_eq!(parcel.samples.len(), 2);
        outbox.arrived(&parcel).expect("arrived");
        assert!(outbox.parcel(9, 1 << 20).expect("read").is_none());
        assert_eq!((outbox.next_sequence(), outbox.dropped()), (6, 0));
    }

    #[test]
    fn a_full_outbox_drops_the_oldest_and_counts_them() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (mut outbox, _) = Outbox::open(directory.path(), 4000).expect("open");
        for _ in 0..100 {
            let next = outbox.next_sequence();
            outbox.push(&sample(next)).expect("push");
        }
        let left = outbox.parcel(1000, 1 << 20).expect("read").expect("some");
        assert!(left.samples.len() < 40, "{}", left.samples.len());
        assert_eq!(left.samples.last().expect("last").sequence, 100);
        assert_eq!(left.samples.len() as u64 + outbox.dropped(), 100);
    }
}
