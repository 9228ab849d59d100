//! The power fails at every moment of an installation, and the disk keeps no more than was fsynced.
//!
//! The calls of a real installation are recorded, every state is made in which the disk can be found after a
//! power cut, and a real agent starts on it: the version before or the new one serves, trust never goes back,
//! and the installation is completed when the same stick is brought again. A few of the states by chance in
//! the ordinary run, all of them with `EDGEWARD_SOAK=1` (`make soak`).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgeward_models::sign::{KeyRing, Repository};
use edgeward_tests::disk::{self, Loss, Recording, Tree};
use edgeward_tests::fleet::path;
use edgeward_tests::{Device, Fleet, binaries, forge, strace};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// States that an ordinary run looks at.
const SAMPLED: usize = 40;

/// A device with `digits` 1.0.0 and what it takes to bring it to 2.0.0 under new keys.
struct Scene {
    fleet: Fleet,
    device: Device,
    old: PathBuf,
    new: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let fleet = Fleet::without_broker();
        let mut device = fleet.device("ward-1", "radiology");
        device.without_fleet();
        fleet.push_sample("digits-1.0.0", "radiology");
        let old = fleet.export("old");
        device.edgeward(&["import", path(&old)]).expect_success();
        fleet.push_sample("digits-2.0.0", "radiology");
        let home = fleet.home();
        let keys = KeyRing::open(&home.join("keys")).expect("keys");
        let next = KeyRing::generate(&fleet.directory().join("next-keys")).expect("keys");
        let mut repository = Repository::open(&home.join("repository")).expect("open");
        repository
            .rotate(&keys, &next, Timestamp::now())
            .expect("rotate");
        drop(repository);
        let new = fleet.export("new");
        Self {
            fleet,
            device,
            old,
            new,
        }
    }

    /// Installs the new version and returns what that did to the disk.
    fn record(&self) -> Recording {
        let root = self.device.state_directory();
        let before = disk::read_tree(&root);
        let mut import = Command::new(binaries::program("edgeward"));
        import.arg("--config").arg(self.device.config_path());
        import.arg("import").arg(&self.new);
        let (finished, calls) = strace::record(&import, &root, self.fleet.directory());
        finished.expect_success();
        let recording = Recording::new(&root, &before, &calls);
        // The model of the disk is right: with nothing lost it holds what the real one holds.
        let modelled = recording.after(recording.moments() - 1, Loss::Nothing);
        let real = disk::read_tree(&root);
        let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&modelled), names(&real));
        for (path, content) in &real {
            assert!(
                modelled[path] == *content,
                "{} is not what was recorded",
                path.display()
            );
        }
        recording
    }
}

/// What a disk can hold after a power cut.
struct State {
    name: String,
    tree: Tree,
    /// The installation had said that it was done.
    done: bool,
}

/// Every different one.
fn states(recording: &Recording, seed: u64) -> Vec<State> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut seen, mut states) = (HashSet::new(), Vec::new());
    for moment in 0..recording.moments() {
        let losses = [
            Loss::Nothing,
            Loss::Everything,
            Loss::Content,
            Loss::HalfOfContent,
            Loss::ContentZeroed,
            Loss::Names,
            Loss::Random(random.random()),
            Loss::Random(random.random()),
        ];
        let count = recording.pending(moment).len();
        let single = (0..count).flat_map(|n| [Loss::Just(n), Loss::AllBut(n)]);
        for loss in losses.into_iter().chain(single) {
            let tree = recording.after(moment, loss);
            let done = moment + 1 == recording.moments();
            if seen.insert((disk::digest(&tree), done)) {
                let name = format!("after {moment} calls, lost: {loss:?}");
                states.push(State { name, tree, done });
            }
        }
    }
    states
}

fn timestamp_version(device: &Device) -> u64 {
    let status = device.status().expect("a status");
    status["timestamp_version"].as_u64().expect("a number")
}

/// Starts an agent on one state and brings the new version again.
fn starts(scene: &Scene, number: usize, state: &State, trusted: (u64, u64)) {
    let State { name, tree, done } = state;
    let mut device = Device::new(&format!("cut-{number}"), scene.fleet.directory());
    device.without_fleet();
    disk::write_tree(&device.state_directory(), tree);
    device.start();
    let active = device.active("digits").expect("a status");
    let sample = match active.as_deref() {
        Some("1.0.0") => "digits-1.0.0",
        Some("2.0.0") => "digits-2.0.0",
        other => panic!("{name}: {other:?} is active\n{}", device.log()),
    };
    assert!(
        !done || sample == "digits-2.0.0",
        "{name}: it was done and is undone"
    );
    device
        .answers_as("digits", sample)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let trust = timestamp_version(&device);
    let least = if sample == "digits-2.0.0" {
        trusted.1
    } else {
        trusted.0
    };
    // 0: a newer root is trusted and has revoked what was verified before it.
    assert!(
        trust >= least || trust == 0 && sample == "digits-1.0.0",
        "{name}: trusts {trust}"
    );
    device
        .edgeward(&["import", path(&scene.new)])
        .expect_success();
    device.wait_active("digits", "2.0.0");
    assert_eq!(timestamp_version(&device), trusted.1, "{name}");
    let said = device.edgeward(&["import", path(&scene.old)]);
    assert!(
        said.code == Some(1) && format!("{said}").contains("not signed by the keys"),
        "{name}: {said}"
    );
    device.kill();
    std::fs::remove_dir_all(device.state_directory()).expect("remove");
}

#[test]
#[allow(clippy::print_stderr)]
fn a_power_cut_at_any_moment_leaves_the_version_before_or_the_new_one_and_trust_never_goes_back() {
    let seed = std::env::var("EDGEWARD_SEED")
        .ok()
        .map_or_else(rand::random, |text| text.parse().expect("a number"));
    eprintln!("EDGEWARD_SEED={seed}");
    let scene = Scene::new();
    let signed =
        |directory: &Path| forge::read(directory, "timestamp.json")["signed"]["version"].as_u64();
    let before = signed(&scene.old).expect("a version");
    let after = signed(&scene.new).expect("a version");
    assert!(after > before);
    let recording = scene.record();
    let mut states = states(&recording, seed);
    let (calls, all) = (recording.moments() - 1, states.len());
    assert!(
        calls > 50 && all > 50,
        "{calls} calls and {all} states: nothing was recorded"
    );
    if std::env::var_os("EDGEWARD_SOAK").is_none() {
        states.shuffle(&mut StdRng::seed_from_u64(seed));
        states.truncate(SAMPLED);
    }
    eprintln!(
        "{calls} calls, {all} states, {} of them tried",
        states.len()
    );
    for (number, state) in states.iter().enumerate() {
        starts(&scene, number, state, (before, after));
    }
}
