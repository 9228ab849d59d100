//! A full disk stops what is new and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use edgeward_tests::fleet::path;
use edgeward_tests::{BrokerKind, Fleet, package::known, process};

/// A small file system on a directory, for as long as it lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(directory: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(directory).expect("make a directory");
        let options = format!("size={size},mode=0700");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs", path(directory)]);
        let mounted = process::run(&mut command).code == Some(0);
        mounted.then(|| Self(directory.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        process::run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
#[allow(clippy::print_stderr)]
fn a_full_disk_bars_new_versions_and_never_what_serves() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    // The disk of the device's state must be there before the device is.
    let state = fleet.directory().join("ward-1/state");
    let Some(_disk) = SmallDisk::mount(&state, "12m") else {
        eprintln!("SKIPPED: only root may mount a small file system");
        return;
    };
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
    ward.wait_refusal("digits", &["bytes are needed", "free"]);
    answers(&mut ward.unix());

    // Not one byte free: even the state cannot be written, and it serves on, and starts again.
    let ballast = state.join("ballast");
    let mut zeros = Command::new("dd");
    zeros.args(["if=/dev/zero", "bs=64k", &format!("of={}", path(&ballast))]);
    process::run(&mut zeros);
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_refusal("digits", &["No space left"]);
    answers(&mut ward.unix());
    ward.kill();
    ward.start();
    answers(&mut ward.unix());

    // Room again: it goes on by itself.
    std::fs::remove_file(&ballast).expect("remove");
    ward.wait_active("digits", "2.0.0");
}
