//! What the kernel says of the agent's processes.

use std::time::Duration;

use edgeward_tests::wait;

/// Resident bytes (VmRSS), pages of shared libraries included.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = status_field(pid, "VmRSS");
    let kibibytes: u64 = text.trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// The same with all its descendants.
pub fn resident_bytes_of_all(pid: u32) -> u64 {
    let descendants = children(pid).into_iter().map(resident_bytes_of_all);
    resident_bytes(pid) + descendants.sum::<u64>()
}

/// 0: no filter.
pub fn seccomp_mode(pid: u32) -> u32 {
    status_field(pid, "Seccomp").parse().expect("a number")
}

fn status_field(pid: u32, name: &str) -> String {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let value = text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == name).then(|| value.trim().to_owned())
    });
    value.unwrap_or_else(|| panic!("no {name} in {path}"))
}

/// The child process that is not among `known`, once there is exactly one: workers that were only tried
/// go away by themselves.
pub fn only_new_child(parent: u32, known: &[u32]) -> u32 {
    wait::until("one new worker", Duration::from_secs(10), || {
        let children = children(parent);
        let mut new = children.iter().filter(|pid| !known.contains(pid));
        match (new.next(), new.next()) {
            (Some(pid), None) => Ok(*pid),
            _ => Err(format!("children {children:?}, known {known:?}")),
        }
    })
}

fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).expect("the agent's threads");
    for thread in threads.flatten() {
        let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}
