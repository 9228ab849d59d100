//! A fleet's history, from which rows make what they offer.

use std::path::{Path, PathBuf};
use std::process::Command;

use edgeward_models::sign::{KeyRing, Repository};
use edgeward_tests::fleet::path;
use edgeward_tests::{BrokerKind, Device, Fleet, forge, forge::Forgery, process};
use jiff::Timestamp;

pub const GROUP: &str = "radiology";

/// A fleet's history as directories, and a device that stands in the middle of it.
pub struct Past {
    pub fleet: Fleet,
    /// Never started: rows work with clones of it. It runs `digits` 2.0.0.
    pub device: Device,
    /// `digits` 1.0.0.
    pub old: PathBuf,
    /// `digits` 2.0.0.
    pub current: PathBuf,
    /// `digits` 3.0.0.
    pub next: PathBuf,
    /// The same after all keys were changed, and the keys before that.
    pub rotated: PathBuf,
    pub keys: PathBuf,
}

impl Past {
    pub fn new(kind: BrokerKind) -> Self {
        let mut fleet = Fleet::without_broker();
        let device = fleet.device("ward-1", GROUP);
        fleet.push_sample("digits-1.0.0", GROUP);
        let old = fleet.export("old");
        fleet.push_sample("digits-2.0.0", GROUP);
        let current = fleet.export("current");
        for stick in [&old, &current] {
            device.edgeward(&["import", path(stick)]).expect_success();
        }
        let third = fleet.package("digits-1.0.0").version("3.0.0");
        fleet.push(third.path(), GROUP).expect_success();
        let next = fleet.export("next");
        let keys = fleet.home().join("keys");
        rotate(&fleet);
        let rotated = fleet.export("rotated");
        fleet.start_broker(kind);
        Self {
            fleet,
            device,
            old,
            current,
            next,
            rotated,
            keys,
        }
    }

    /// A directory like `from`, to be made hostile.
    pub fn copy(&self, from: &Path) -> PathBuf {
        let to = (0..).map(|n| self.fleet.directory().join(format!("hostile-{n}")));
        let to = to.into_iter().find(|path| !path.exists()).expect("a name");
        let mut copy = Command::new("cp");
        process::run(copy.arg("--archive").arg(from).arg(&to)).expect_success();
        to
    }

    pub fn forge(&self, from: &Path) -> (PathBuf, Forgery) {
        let directory = self.copy(from);
        let forgery = Forgery::of(&directory, &self.keys);
        (directory, forgery)
    }
}

/// Changes every key; the old ones stay where they were.
pub fn rotate(fleet: &Fleet) {
    let old = KeyRing::open(&fleet.home().join("keys")).expect("keys");
    let new = KeyRing::generate(&fleet.directory().join("new-keys")).expect("keys");
    let mut repository = Repository::open(&fleet.home().join("repository")).expect("open");
    repository
        .rotate(&old, &new, Timestamp::now())
        .expect("rotate");
}

pub fn next(past: &Past) -> PathBuf {
    past.next.clone()
}

pub fn rotated(past: &Past) -> PathBuf {
    past.rotated.clone()
}

/// A target signed with the role's own stolen key, and the online ones.
pub fn signed_target(past: &Past, role: &'static str, name: &str, bytes: &[u8]) -> PathBuf {
    let (directory, forgery) = past.forge(&past.next);
    forgery.newer(role).target(role, name, bytes).write();
    directory
}

/// The honest repository, counted beyond what a thief of the releases key has signed.
pub fn past_releases(past: &Past) -> PathBuf {
    let (directory, forgery) = past.forge(&past.next);
    forgery
        .newer("timestamp")
        .newer("snapshot")
        .newer("releases")
        .newer("releases")
        .write();
    directory
}

pub fn past_rollouts(past: &Past) -> PathBuf {
    let (directory, forgery) = past.forge(&past.next);
    forgery
        .newer("timestamp")
        .newer("snapshot")
        .newer("rollouts")
        .newer("rollouts")
        .write();
    directory
}

/// The file name of the newest metadata of a role.
pub fn newest(directory: &Path, role: &str) -> String {
    let timestamp = forge::read(directory, "timestamp.json");
    let snapshot = &timestamp["signed"]["meta"]["snapshot.json"]["version"];
    if role == "snapshot" {
        return format!("{snapshot}.snapshot.json");
    }
    let snapshot = forge::read(directory, &format!("{snapshot}.snapshot.json"));
    let version = &snapshot["signed"]["meta"][format!("{role}.json")]["version"];
    format!("{version}.{role}.json")
}

pub fn change_text(directory: &Path, role: &str, from: &str, to: &str) {
    let file = newest(directory, role);
    let text = forge::read(directory, &file).to_string();
    assert!(text.contains(from), "{file} has no {from}");
    forge::write(directory, &file, text.replacen(from, to, 1).as_bytes());
}

pub fn chunks(directory: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(directory.join("chunks"))
        .expect("chunks")
        .flatten();
    let files = folders.flat_map(|f| std::fs::read_dir(f.path()).expect("chunks").flatten());
    files.map(|file| file.path()).collect()
}

pub fn any_chunk(directory: &Path) -> PathBuf {
    chunks(directory).into_iter().next().expect("a chunk")
}

/// Chunks of `directory` that `before` does not have.
pub fn new_chunks(before: &Path, directory: &Path) -> Vec<PathBuf> {
    let known: Vec<_> = chunks(before)
        .iter()
        .filter_map(|c| c.file_name().map(ToOwned::to_owned))
        .collect();
    let new = chunks(directory).into_iter();
    let new: Vec<_> = new
        .filter(|c| !known.iter().any(|k| Some(k.as_os_str()) == c.file_name()))
        .collect();
    assert!(!new.is_empty(), "nothing new in {}", directory.display());
    new
}
