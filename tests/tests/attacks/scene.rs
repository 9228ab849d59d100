//! One row on one carrier: what is offered, and what the device makes of it.

use std::path::{Path, PathBuf};

use edgeward_models::FleetName;
use edgeward_models::chunk::pack_metadata;
use edgeward_models::fleet::topic::Topic;
use edgeward_tests::fleet::path;
use edgeward_tests::publisher::publish_retained;
use edgeward_tests::{Device, Fleet, wait};

use crate::Verdict::{self, Believed, Older, Refused};
use crate::past::{Past, chunks};

/// How repositories come to a device.
#[derive(Clone, Copy, PartialEq)]
pub enum Carrier {
    Broker,
    Directory,
}

/// One row on one carrier.
pub struct Scene<'a> {
    pub past: &'a Past,
    pub device: Device,
    pub carrier: Carrier,
}

impl Scene<'_> {
    /// Brings a repository to the device. What the device said of it, where that is known at once.
    pub fn offer(&self, directory: &Path) -> Option<(Option<i32>, String)> {
        match self.carrier {
            Carrier::Directory => {
                let finished = self.device.edgeward(&["import", path(directory)]);
                Some((finished.code, format!("{finished}")))
            }
            Carrier::Broker => {
                publish_retained(&self.past.fleet, messages(&self.past.fleet, directory));
                None
            }
        }
    }

    pub fn judged(&self, offered: Option<(Option<i32>, String)>, verdict: &Verdict) {
        let words: &[&str] = match verdict {
            Refused(words) => words,
            Older => &["older"],
            Believed => return self.believed(),
        };
        if let Some((code, said)) = offered {
            let friendly = matches!(verdict, Older);
            assert!(
                words.iter().all(|word| said.contains(word)),
                "{words:?} are not in {said}"
            );
            assert_eq!(code == Some(0), friendly, "{said}");
        } else {
            self.device.wait_refusal("digits", words);
        }
    }

    pub fn believed(&self) {
        wait::until("the run up timestamp to be taken", wait::PATIENCE, || {
            let status = self.device.status()?;
            let version = status["timestamp_version"].as_u64();
            (version == Some(u64::MAX - 1))
                .then_some(())
                .ok_or_else(|| status.to_string())
        });
    }

    pub fn serves(&self, sample: &str, version: &str) {
        self.device
            .answers_as("digits", sample)
            .expect("the known answer");
        let active = self.device.active("digits").expect("a status");
        assert_eq!(active.as_deref(), Some(version));
    }
}

/// A repository directory as retained messages, timestamp last.
fn messages(fleet: &Fleet, directory: &Path) -> Vec<(String, Vec<u8>)> {
    let name: FleetName = fleet.name().parse().expect("name");
    let mut messages = Vec::new();
    for chunk in chunks(directory) {
        let digest = chunk.file_name().and_then(|n| n.to_str()).expect("a name");
        let topic = Topic::Chunk(digest.parse().expect("a digest")).in_fleet(&name);
        messages.push((topic, std::fs::read(&chunk).expect("read")));
    }
    let files = std::fs::read_dir(directory.join("metadata"))
        .expect("metadata")
        .flatten();
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    files.sort_by_key(|file| file.ends_with("timestamp.json"));
    for file in files {
        let packed = pack_metadata(&std::fs::read(&file).expect("read")).expect("pack");
        for (digest, bytes) in packed.chunks {
            messages.push((Topic::Chunk(digest).in_fleet(&name), bytes));
        }
        let file = file.file_name().and_then(|n| n.to_str()).expect("a name");
        let topic = Topic::Metadata(file.parse().expect("a name")).in_fleet(&name);
        messages.push((topic, packed.head));
    }
    messages
}
