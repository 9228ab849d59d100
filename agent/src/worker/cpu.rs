//! The cores that this process may really use.
//!
//! XNNPACK with more threads than free cores is a hundred times slower, so the count must not be what the
//! machine has, but what affinity and the cgroup's quota leave.

use std::path::{Path, PathBuf};

/// Cores for all workers together: affinity, cgroup quota and the configuration's `cores` (0: no limit of
/// its own), whichever is least; at least 1.
pub fn usable_cores(configured: usize) -> usize {
    let affinity = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize);
    let quota = cgroup_quota(
        Path::new("/sys/fs/cgroup"),
        &std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
    );
    let configured = if configured == 0 {
        usize::MAX
    } else {
        configured
    };
    affinity.min(quota).min(configured).max(1)
}

/// Threads for each of `instances` interpreters that want `wanted`: never more in all than `cores`, never
/// less than 1 each.
pub fn threads_each(wanted: usize, instances: usize, cores: usize) -> usize {
    wanted.min(cores / instances.max(1)).max(1)
}

/// Whole cores of the tightest quota on the way to the root; `usize::MAX` without one.
fn cgroup_quota(root: &Path, own: &str) -> usize {
    let mut least = usize::MAX;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next(), parts.next());
        let (Some(controllers), Some(path)) = (controllers, path) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            for base in [root.to_owned(), root.join("unified")] {
                least = least.min(tightest(&base, path, |directory| {
                    let text = std::fs::read_to_string(directory.join("cpu.max")).ok()?;
                    let (quota, period) = text.trim().split_once(' ')?;
                    cores(quota.parse().ok()?, period.parse().ok()?)
                }));
            }
        } else if controllers.split(',').any(|c| c == "cpu") {
            least = least.min(tightest(&root.join(controllers), path, version_1));
            least = least.min(tightest(&root.join("cpu"), path, version_1));
        }
    }
    least
}

fn version_1(directory: &Path) -> Option<usize> {
    let number = |name: &str| -> Option<i64> {
        let text = std::fs::read_to_string(directory.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let quota = u64::try_from(number("cpu.cfs_quota_us")?).ok()?;
    cores(quota, u64::try_from(number("cpu.cfs_period_us")?).ok()?)
}

fn cores(quota: u64, period: u64) -> Option<usize> {
    let cores = quota.checked_div(period)?;
    // Half a core is one slow core.
    Some(usize::try_from(cores).unwrap_or(usize::MAX).max(1))
}

fn tightest(base: &Path, path: &str, read: impl Fn(&Path) -> Option<usize>) -> usize {
    let mut directory: PathBuf = base.join(path);
    let mut least = usize::MAX;
    while directory.starts_with(base) {
        least = least.min(read(&directory).unwrap_or(usize::MAX));
        if !directory.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_quota_on_the_way_up_counts() {
        let root = tempfile::tempdir().expect("dir");
        let slice = root.path().join("system.slice");
        let unit = slice.join("edgeward.service");
        std::fs::create_dir_all(&unit).expect("dir");
        std::fs::write(unit.join("cpu.max"), "max 100000\n").expect("write");
        let own = "0::/system.slice/edgeward.service\n";
        assert_eq!(cgroup_quota(root.path(), own), usize::MAX);
        std::fs::write(slice.join("cpu.max"), "250000 100000\n").expect("write");
        assert_eq!(cgroup_quota(root.path(), own), 2);
        std::fs::write(unit.join("cpu.max"), "50000 100000\n").expect("write");
        assert_eq!(cgroup_quota(root.path(), own), 1);
    }

    #[test]
    fn the_old_kind_of_cgroup_counts_too() {
        let root = tempfile::tempdir().expect("dir");
        let own = root.path().join("cpu,cpuacct/docker/x");
        std::fs::create_dir_all(&own).expect("dir");
        std::fs::write(own.join("cpu.cfs_period_us"), "100000\n").expect("write");
        std::fs::write(own.join("cpu.cfs_quota_us"), "-1\n").expect("write");
        let line = "4:cpu,cpuacct:/docker/x\n";
        assert_eq!(cgroup_quota(root.path(), line), usize::MAX);
        std::fs::write(own.join("cpu.cfs_quota_us"), "300000\n").expect("write");
        assert_eq!(cgroup_quota(root.path(), line), 3);
    }

    #[test]
    fn threads_never_exceed_the_cores() {
        assert_eq!(threads_each(4, 1, 2), 2);
        assert_eq!(threads_each(4, 2, 4), 2);
        assert_eq!(threads_each(1, 8, 2), 1);
        assert!(usable_cores(0) >= 1 && usable_cores(1) == 1);
    }
}
