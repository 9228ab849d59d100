//! A file system so small that a test can fill it. Only root can make one.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fleet::path;
use crate::process;

/// Files that a small disk can hold.
const MAX_FILES: u64 = 300;

/// A small file system on a directory, for as long as it lives.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(directory: &Path, size: &str) -> Self {
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

    pub fn statistics(&self) -> rustix::fs::StatVfs {
        rustix::fs::statvfs(&self.0).expect("statvfs")
    }

    fn ballast(&self) -> PathBuf {
        let directory = self.0.join("ballast");
        std::fs::create_dir(&directory).expect("make a directory");
        directory
    }

    /// Fills it up but for so many bytes.
    pub fn fill(&self, left: u64) {
        let ballast = self.ballast();
        let stat = self.statistics();
        let free = stat.f_bavail * stat.f_frsize;
        let bytes = vec![7; free.saturating_sub(left) as usize];
        std::fs::write(ballast.join("bytes"), bytes).expect("fill the disk");
    }

    /// Leaves all of its space free, and so many files.
    pub fn fill_names(&self, left: u64) {
        let ballast = self.ballast();
        for number in left..self.statistics().f_ffree {
            std::fs::write(ballast.join(number.to_string()), []).expect("fill the disk");
        }
    }

    pub fn make_room(&self) {
        std::fs::remove_dir_all(self.0.join("ballast")).expect("remove");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        process::run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}
