//! A full disk stops what is new and nothing else, at whatever step of an installation it is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use edgeward_tests::fleet::path;
use edgeward_tests::{BrokerKind, Fleet, package::known, process};

/// Files that a small disk can hold.
const MAX_FILES: u64 = 300;

/// A small file system on a directory, for as long as it lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path, size: &str) -> Self {
        std::fs::create_dir_all(directory).expect("make a directory");
        let options = format!("size={size},nr_inodes={MAX_FILES},mode=0700");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs", path(directory)]);
        let mounted = process::run(&mut command);
        assert_eq!(
            mounted.code,
            Some(0),
            "only root can make a disk small: {mounted}"
        );
        Self(directory.to_owned())
    }

    fn statistics(&self) -> rustix::fs::StatVfs {
        rustix::fs::statvfs(&self.0).expect("statvfs")
    }

    fn ballast(&self) -> PathBuf {
        let directory = self.0.join("ballast");
        std::fs::create_dir(&directory).expect("make a directory");
        directory
    }

    /// Fills it up but for so many bytes.
    fn fill(&self, left: u64) {
        let ballast = self.ballast();
        let stat = self.statistics();
        let free = stat.f_bavail * stat.f_frsize;
        let bytes = vec![7; free.saturating_sub(left) as usize];
        std::fs::write(ballast.join("bytes"), bytes).expect("fill the disk");
    }

    /// Leaves all of its space free, and so many files.
    fn fill_names(&self, left: u64) {
        let ballast = self.ballast();
        for number in left..self.statistics().f_ffree {
            std::fs::write(ballast.join(number.to_string()), []).expect("fill the disk");
        }
    }

    fn make_room(&self) {
        std::fs::remove_dir_all(self.0.join("ballast")).expect("remove");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        process::run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn a_full_disk_bars_new_versions_and_never_what_serves() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    // The disk of the device's state must be there before the device is.
    let state = fleet.directory().join("ward-1/state");
    let disk = SmallDisk::mount(&state, "12m");
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure("[fleet]\n", "[fleet]\ndisk_reserve_bytes = 1000000\n");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let question = known("digits-1.0.0", 0);
    let answers = |client: &mut edgeward_tests::http::Client| {
        let answer = client.infer("digits", &question.request).expect("answer");
        question
            .check(&answer.expect_ok().json())
            .expect("the known answer");
    };

    // Larger than what is free: refused before a byte of it is fetched.
    let large = fleet
        .package("digits-1.0.0")
        .version("1.1.0")
        .padded(16 << 20, 1);
    fleet.push(large.path(), "radiology").expect_success();
    let said = ward.wait_refusal(
        "digits",
        &["bytes are needed", "free", "1000000 stay reserved"],
    );
    assert!(
        said.contains("1.1.0") || said.contains("make room"),
        "{said}"
    );
    assert_eq!(ward.cached_chunks(), (0, 0), "nothing of it was fetched");
    answers(&mut ward.unix());

    // Not one byte free: even the state cannot be written, and it serves on, and starts again.
    disk.fill(0);
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_refusal("digits", &["No space left"]);
    answers(&mut ward.unix());
    ward.kill();
    ward.start();
    answers(&mut ward.unix());

    // Room again: it goes on by itself.
    disk.make_room();
    ward.wait_active("digits", "2.0.0");
}

#[test]
fn a_disk_that_fills_up_at_any_step_of_an_installation_costs_that_installation_and_no_more() {
    let fleet = Fleet::without_broker();
    let state = fleet.directory().join("ward-1/state");
    let disk = SmallDisk::mount(&state, "8m");
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure(
        "[fleet]\nreconcile_seconds = 5\n",
        "[fleet]\ndisk_reserve_bytes = 0\nbroker_port = 1\n",
    );
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    let first = fleet.export("first");
    ward.edgeward(&["import", path(&first)]).expect_success();
    let samples = ["digits-1.0.0", "digits-2.0.0"];
    let (mut refused, mut now) = (0, 0);
    // Too little space is seen before anything is fetched; for a name too many there is no such foresight, so
    // each further one that is left lets the installation come one step further.
    let space = [0, 1, 3].map(|pages| (pages * 4096, u64::MAX));
    let names = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16].map(|names| (u64::MAX, names));
    for (round, left) in space.into_iter().chain(names).enumerate() {
        // A model of some pages, so that there are many steps to be full at.
        let next = 1 - now;
        let version = format!("1.{}.0", round + 1);
        let package = fleet
            .package(samples[next])
            .version(&version)
            .padded(60_000, round as u64);
        fleet.push(package.path(), "radiology").expect_success();
        let stick = fleet.export(&format!("stick-{round}"));
        match left {
            (bytes, u64::MAX) => disk.fill(bytes),
            (_, names) => disk.fill_names(names),
        }
        let import = ward.edgeward(&["import", path(&stick)]);
        let said = format!("{import}");
        if import.code == Some(0) {
            now = next;
        } else {
            refused += 1;
            let told = ["No space left", "bytes are needed"]
                .iter()
                .any(|words| said.contains(words));
            assert!(told && import.code == Some(2), "{left:?}: {said}");
        }
        // Before and after a restart on the full disk.
        for restart in [false, true] {
            if restart {
                ward.kill();
                ward.start();
            }
            let question = known(samples[now], 0);
            let answer = ward
                .unix()
                .infer("digits", &question.request)
                .expect("answer");
            let answer = answer.expect_ok().json();
            question
                .check(&answer)
                .unwrap_or_else(|e| panic!("{left:?}: {e}: {said}"));
        }
        disk.make_room();
        ward.edgeward(&["import", path(&stick)]).expect_success();
        now = next;
        assert_eq!(
            ward.active("digits").expect("status").as_deref(),
            Some(version.as_str())
        );
    }
    assert!(
        (3..15).contains(&refused),
        "{refused} of 15 installations met a full disk"
    );
}
