//! What each device last said to this operator, kept between commands.
//!
//! A signature proves who said something, not when: the broker may play an old status again, and a device whose
//! audit log was cut short says so only to somebody who remembers how long it was. Statuses of one boot are
//! numbered; boots that are over are remembered by their ids; and the audit log only ever grows, over all boots.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::status::Status;
use edgeward_models::name::DeviceId;
use serde::{Deserialize, Serialize};

use crate::devices::Device;

const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Ids of boots that are over, per device. Older ones are told by their audit log, which is shorter.
const PAST_BOOTS: usize = 16;

/// The file of the operator's home, as it was opened, with what was heard since.
#[derive(Debug, Default)]
pub struct Memory {
    /// Absent in tests: kept nowhere.
    path: Option<PathBuf>,
    devices: BTreeMap<DeviceId, Last>,
    changed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    devices: BTreeMap<DeviceId, Last>,
}

/// What a device last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    /// SHA-256 of the device's public key: another key begins anew.
    key: Digest,
    boot: String,
    sequence: u64,
    audit_length: u64,
    audit_head: Digest,
    /// Boots that a later one has followed, the newest last.
    past: Vec<String>,
}

impl Memory {
    pub fn open(path: PathBuf) -> Result<Self> {
        let devices = match durable::read(&path, MAX_BYTES)? {
            None => BTreeMap::new(),
            Some(bytes) => read(&bytes).with_context(|| {
                format!(
                    "{} is damaged: it remembers what devices have said. Restore it from a copy, or remove it \
                     and begin anew",
                    path.display()
                )
            })?,
        };
        Ok(Self {
            path: Some(path),
            devices,
            changed: false,
        })
    }

    /// Whether a status that the device did sign is not older than what it has said before; remembers it then.
    /// The error says what is wrong with it.
    pub fn judge(&mut self, device: &Device, status: &Status) -> Result<(), String> {
        let key = Digest::of(&device.public_key);
        let before = self.devices.get(&device.id).filter(|last| last.key == key);
        let mut past = Vec::new();
        if let Some(last) = before {
            last.refuses(&device.id, status)?;
            past.clone_from(&last.past);
            if last.boot != status.boot_id {
                past.push(last.boot.clone());
                past.drain(..past.len().saturating_sub(PAST_BOOTS));
            }
        }
        let now = Last {
            key,
            boot: status.boot_id.clone(),
            sequence: status.sequence,
            audit_length: status.audit_length,
            audit_head: status.audit_head,
            past,
        };
        if before != Some(&now) {
            self.devices.insert(device.id.clone(), now);
            self.changed = true;
        }
        Ok(())
    }

    /// Whatever the device says next is its new beginning. False if it has not been heard.
    pub fn forget(&mut self, device: &DeviceId) -> bool {
        let known = self.devices.remove(device).is_some();
        self.changed |= known;
        known
    }

    pub fn save(&mut self) -> Result<()> {
        if let (Some(path), true) = (&self.path, self.changed) {
            let document = Document {
                format: FORMAT,
                devices: self.devices.clone(),
            };
            let bytes = serde_json::to_vec(&document).context("cannot write the memory")?;
            durable::write(path, &bytes, Access::Owner)?;
            self.changed = false;
        }
        Ok(())
    }
}

impl Last {
    fn refuses(&self, device: &DeviceId, status: &Status) -> Result<(), String> {
        if self.past.contains(&status.boot_id) {
            return Err("an old status was played again: it is of a boot that is over".to_owned());
        }
        if self.boot == status.boot_id && status.sequence < self.sequence {
            return Err(format!(
                "an old status was played again: it is number {} of this boot, and number {} was heard before",
                status.sequence, self.sequence
            ));
        }
        let problem = if status.audit_length < self.audit_length {
            format!(
                "its audit log has {} entries where {} were before",
                status.audit_length, self.audit_length
            )
        } else if status.audit_length == self.audit_length && status.audit_head != self.audit_head {
            "its audit log has other entries than before".to_owned()
        } else {
            return Ok(());
        };
        Err(format!(
            "{problem}: an old status was played again, or the log was cut short or changed. Look at the \
             device; `fleetctl device accept-history {device}` takes its log as it is now"
        ))
    }
}

fn read(bytes: &[u8]) -> Result<BTreeMap<DeviceId, Last>> {
    let document: Document = serde_json::from_slice(bytes)?;
    anyhow::ensure!(
        document.format == FORMAT,
        "it has format {}, this fleetctl reads {FORMAT}",
        document.format
    );
    Ok(document.devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statuses::tests::{Speaker, status};

    fn said(boot: &str, sequence: u64, audit: u64) -> Status {
        let mut said = status(&"ct-1".parse().expect("name"), boot, sequence);
        said.audit_length = audit;
        said.audit_head = Digest::of(&audit.to_le_bytes());
        said
    }

    #[test]
    fn what_is_older_than_something_heard_before_is_told_in_every_later_command() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("heard.json");
        let device = Speaker::new("ct-1").device;
        // Each line in a command of its own.
        let hear = |status: Status| {
            let mut memory = Memory::open(path.clone()).expect("open");
            let judged = memory.judge(&device, &status);
            memory.save().expect("save");
            judged
        };
        hear(said("a", 5, 10)).expect("first");
        hear(said("a", 5, 10)).expect("the same again");
        for (status, words) in [
            (said("a", 4, 10), "number 4 of this boot"),
            (said("b", 1, 9), "9 entries where 10 were"),
        ] {
            let why = hear(status).expect_err(words);
            assert!(why.contains(words), "{why}");
        }
        hear(said("b", 1, 12)).expect("a later boot");
        let why = hear(said("a", 99, 99)).expect_err("a boot that is over");
        assert!(why.contains("a boot that is over"), "{why}");
        let mut rewritten = said("b", 2, 12);
        rewritten.audit_head = Digest::of(b"rewritten");
        let why = hear(rewritten).expect_err("another head");
        assert!(why.contains("accept-history ct-1"), "{why}");
        hear(said("b", 2, 12)).expect("the device itself");
    }

    #[test]
    fn another_key_and_the_operators_word_begin_anew() {
        let mut memory = Memory::default();
        let (first, second) = (Speaker::new("ct-1").device, Speaker::new("ct-1").device);
        memory.judge(&first, &said("a", 5, 10)).expect("first");
        memory
            .judge(&second, &said("b", 1, 1))
            .expect("another key");
        assert!(memory.judge(&second, &said("c", 1, 0)).is_err());
        assert!(memory.forget(&second.id));
        memory.judge(&second, &said("c", 1, 0)).expect("accepted");
    }

    #[test]
    fn a_damaged_memory_is_said_and_not_begun_anew_by_itself() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("heard.json");
        std::fs::write(&path, "{\"format\":1").expect("write");
        let error = Memory::open(path).expect_err("damaged");
        assert!(format!("{error:#}").contains("damaged"), "{error:#}");
    }
}
