//! Files of the state directory that are cut short, zeroed or gone: what can serve serves, trust is never begun
//! anew by itself, and what is lost is said.

use std::path::{Path, PathBuf};

use edgeward_tests::fleet::path;
use edgeward_tests::{Device, Fleet, process};

/// What happened to the files.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Truncated,
    Zeroed,
    Gone,
}
use Damage::{Gone, Truncated, Zeroed};

/// What the device can do afterwards.
#[derive(Debug, Clone, Copy, PartialEq)]
enum After {
    /// Everything: it takes the next version.
    All,
    /// It serves, and takes nothing new until a person has looked at it; these words are in what it says.
    ServesOnly(&'static str),
    /// It serves the version before.
    Before,
    /// That model is not served, the device lives.
    Lives,
}

/// The file below the state directory of this name, or all that begin like this if it ends in a slash or a star.
fn files(state: &Path, name: &str) -> Vec<PathBuf> {
    let prefix = name.trim_end_matches('*');
    let many = name.ends_with(['/', '*']);
    fn visit(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).expect("read").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => visit(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut all = Vec::new();
    visit(state, &mut all);
    all.retain(|file| {
        file.strip_prefix(state).is_ok_and(|f| {
            let path = f.to_string_lossy();
            path == name || many && path.starts_with(prefix)
        })
    });
    all
}

fn damage(file: &Path, how: Damage) {
    let length = std::fs::metadata(file).expect("metadata").len();
    let bytes = match how {
        Gone => return std::fs::remove_file(file).expect("remove"),
        Truncated => std::fs::read(file).expect("read")[..length as usize / 2].to_vec(),
        Zeroed => vec![0; length as usize],
    };
    std::fs::remove_file(file).expect("remove");
    std::fs::write(file, bytes).expect("damage");
}

fn check(device: &Device, name: &str, after: After, stick: &Path) {
    let (sample, version) = match after {
        After::Before => ("digits-1.0.0", "1.0.0"),
        _ => ("digits-2.0.0", "2.0.0"),
    };
    let active = device.active("digits").expect("a status");
    if after == After::Lives {
        assert_eq!(active, None, "{name}");
    } else {
        assert_eq!(active.as_deref(), Some(version), "{name}");
        device
            .answers_as("digits", sample)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let import: process::Finished = device.edgeward(&["import", path(stick)]);
    if let After::ServesOnly(words) = after {
        assert_ne!(import.code, Some(0), "{name}: {import}");
        let said = format!("{import}");
        assert!(said.contains(words), "{name}: {words:?} is not in {said}");
    } else {
        assert_eq!(import.code, Some(0), "{name}: {import}");
        assert_eq!(
            device.active("digits").expect("a status").as_deref(),
            Some("3.0.0"),
            "{name}"
        );
    }
}

#[test]
fn damaged_files_cost_what_they_hold_and_nothing_else() {
    let fleet = Fleet::without_broker();
    let device = fleet.device("ward-1", "radiology");
    for sample in ["digits-1.0.0", "digits-2.0.0"] {
        fleet.push_sample(sample, "radiology");
        let stick = fleet.export(sample);
        device.edgeward(&["import", path(&stick)]).expect_success();
    }
    let third = fleet.package("digits-1.0.0").version("3.0.0");
    fleet.push(third.path(), "radiology").expect_success();
    let stick = fleet.export("stick");
    let lost_trust = After::ServesOnly("trust");
    let rows: &[(&str, &[Damage], After)] = &[
        // The newest generation of trust is damaged: the one before would be a step back, so a person decides.
        ("trust/trust", &[Truncated, Zeroed], lost_trust),
        ("trust/trust*", &[Truncated, Zeroed, Gone], lost_trust),
        // The generation before is nothing that anything depends on.
        ("trust/trust.before", &[Truncated, Zeroed, Gone], After::All),
        ("trust/metadata/", &[Truncated, Zeroed, Gone], After::All),
        (
            "identity/",
            &[Truncated, Zeroed],
            After::ServesOnly("nothing can be verified"),
        ),
        (
            "identity/",
            &[Gone],
            After::ServesOnly("nothing can be verified"),
        ),
        (
            "versions/digits/2.0.0/model.tflite",
            &[Truncated, Zeroed, Gone],
            After::Before,
        ),
        ("versions/", &[Truncated], After::Lives),
        // Both generations of the pointer.
        ("active/", &[Truncated, Zeroed, Gone], After::Lives),
        ("desired", &[Truncated, Zeroed, Gone], After::All),
        ("desired*", &[Truncated, Zeroed, Gone], After::All),
        ("audit.log", &[Truncated, Zeroed, Gone], After::All),
    ];
    let mut number = 0;
    for (prefix, damages, after) in rows {
        for how in *damages {
            number += 1;
            let mut twin = device.clone_as(&format!("row-{number}"));
            // Configured for a fleet whose broker is not there: as in the field.
            let damaged = files(&twin.state_directory(), prefix);
            assert!(!damaged.is_empty(), "there is no {prefix}");
            damaged.iter().for_each(|file| damage(file, *how));
            twin.start();
            check(&twin, &format!("{prefix} {how:?}"), *after, &stick);
            twin.kill();
        }
    }
}
