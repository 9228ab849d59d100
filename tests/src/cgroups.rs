//! Control groups of its own for a program that shares them out further, as a container's systemd does: two in one
//! group would take each other's apart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::dying_with_us;
use crate::wait;

/// Where the hierarchies are that systemd works with: the only one, or one of each kind.
const HIERARCHIES: &[&str] = &[
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup/systemd",
];
/// Enters the groups before `--` and becomes the program after it.
const ENTER: &str = r#"
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 1; shift; done
shift
exec "$@"
"#;
/// The kernel may take a moment to be done with the processes of a group.
const EMPTYING: Duration = Duration::from_secs(10);

/// One new group in each hierarchy, below the group of this process. They go with this value.
pub struct Cgroups {
    groups: Vec<PathBuf>,
}

impl Cgroups {
    pub fn new(name: &str) -> io::Result<Self> {
        let mut made = Self { groups: Vec::new() };
        let own = fs::read_to_string("/proc/self/cgroup")?;
        for hierarchy in HIERARCHIES.iter().map(Path::new) {
            if !hierarchy.join("cgroup.procs").exists() {
                continue;
            }
            let prefix = if hierarchy.ends_with("systemd") {
                ":name=systemd:/"
            } else {
                "0::/"
            };
            let place = own
                .lines()
                .find_map(|line| Some(line.split_once(prefix)?.1));
            let group = hierarchy.join(place.unwrap_or_default()).join(name);
            fs::create_dir(&group)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", group.display())))?;
            made.groups.push(group);
        }
        if made.groups.is_empty() {
            return Err(io::Error::other("no control groups at /sys/fs/cgroup"));
        }
        Ok(made)
    }

    /// `program` in these groups; it dies with the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = dying_with_us(Path::new("sh"));
        command.args(["-c", ENTER, "sh"]).args(&self.groups);
        command.args(["--", program]);
        command
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for group in &self.groups {
            if std::thread::panicking() {
                let _ = remove(group);
            } else {
                let what = format!("{} to be empty", group.display());
                wait::until(&what, EMPTYING, || remove(group).map_err(|e| e.to_string()));
            }
        }
    }
}

/// A group's files cannot be removed and go with it; only the groups in it come first.
fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
