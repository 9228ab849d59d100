//! Every write to files of our own goes through one module, so that one place is to be reviewed for what lasts.

use std::path::{Path, PathBuf};

use edgeward_tests::binaries;

/// What writes, removes or renames.
const CALLS: &[&str] = &[
    "fs::write(",
    "fs::rename(",
    "fs::copy(",
    "fs::create_dir",
    "fs::remove_",
    "fs::hard_link(",
    "fs::set_permissions(",
    "File::create",
    "File::options(",
    "OpenOptions::",
    ".set_len(",
    "symlink(",
    "renameat",
    "unlinkat",
    "mkdirat",
    "sled::Config",
];

/// Files that may, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("models/src/durable/", "the module itself"),
    ("agent/src/api/awake.rs", "a device of the kernel"),
    ("agent/src/api/unix.rs", "a socket, made anew at each start"),
    (
        "agent/src/fleet/admin.rs",
        "a socket, made anew at each start",
    ),
    ("agent/src/worker/child/mod.rs", "a setting of the kernel"),
    ("agent/src/worker/filter.rs", "the calls' numbers"),
    (
        "agent/src/commands/enroll.rs",
        "a request for a person to carry away",
    ),
    ("agent/src/fleet/store/", "sled, for what can be lost"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory)
        .expect("read a directory")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

#[test]
fn nothing_writes_files_but_the_module_that_makes_them_last() {
    let root = binaries::root().canonicalize().expect("a path");
    let mut files = Vec::new();
    for part in ["models/src", "agent/src", "fleetctl/src"] {
        sources(&root.join(part), &mut files);
    }
    assert!(files.len() > 100, "only {} sources found", files.len());
    let (mut strays, mut used) = (Vec::new(), Vec::new());
    for file in files {
        let name = file
            .strip_prefix(&root)
            .expect("below")
            .display()
            .to_string();
        let text = std::fs::read_to_string(&file).expect("read a source");
        // Tests stand at the end of a file.
        let tests = text.match_indices("#[cfg(test)]\n").map(|(at, _)| at);
        let mut inline =
            tests.filter(|at| text[*at..].lines().nth(1).is_some_and(|l| l.ends_with('{')));
        let text = &text[..inline.next().unwrap_or(text.len())];
        let calls = text
            .lines()
            .filter(|line| CALLS.iter().any(|call| line.contains(call)));
        let calls: Vec<_> = calls
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        if calls.is_empty() {
            continue;
        }
        match ELSEWHERE.iter().find(|(place, _)| name.starts_with(place)) {
            Some(place) => used.push(place),
            None => strays.extend(calls.iter().map(|line| format!("{name}: {}", line.trim()))),
        }
    }
    assert!(
        strays.is_empty(),
        "these belong into models/src/durable/, or into the list above with a reason:\n{}",
        strays.join("\n")
    );
    for place in ELSEWHERE {
        assert!(used.contains(&place), "{} writes nothing any more", place.0);
    }
}
