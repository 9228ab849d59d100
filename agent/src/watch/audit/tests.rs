//! Restarts, torn and broken files, bounds, and what a whole look finds.

use std::fs;

use std::path::PathBuf;

use super::segment::archived;
use super::verify::{Expected, Report, verify};
use super::*;

fn filled(directory: &Path) -> (u64, Digest) {
    let audit = Audit::open(directory).expect("open");
    for number in 0..5 {
        audit
            .record("version-activated", json!({"model": "digits", "n": number}))
            .expect("record");
    }
    audit.head()
}

/// About four entries a file, three archived files.
const SMALL: Limits = Limits {
    segment_bytes: 700,
    archives: 3,
};

fn many(directory: &Path, entries: u64) -> (u64, Digest) {
    let audit = Audit::open_with(directory, SMALL).expect("open");
    for number in 0..entries {
        audit
            .record("import", json!({"n": number}))
            .expect("record");
    }
    audit.head()
}

fn look(directory: &Path) -> Report {
    expecting(directory, None)
}

/// What is said of the security log.
fn expecting(directory: &Path, expected: Option<Expected>) -> Report {
    verify(directory, expected).expect("readable").remove(0)
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let archived = archived(directory, SECURITY).expect("list").into_iter();
    let mut all: Vec<PathBuf> = archived.map(|(_, path)| path).collect();
    all.push(directory.join(SECURITY.file));
    all
}

#[test]
fn the_chain_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().expect("tempdir");
    let head = filled(directory.path());
    let audit = Audit::open(directory.path()).expect("open");
    assert_eq!(audit.head(), head);
    audit.record("import", json!({})).expect("record");
    assert_eq!(audit.head().0, 6);
}

#[test]
fn a_line_torn_by_a_power_cut_is_cut_off_and_that_is_recorded() {
    let directory = tempfile::tempdir().expect("tempdir");
    filled(directory.path());
    let path = directory.path().join(SECURITY.file);
    let bytes = fs::read(&path).expect("read");
    fs::write(&path, &bytes[..bytes.len() - 7]).expect("tear");
    assert!(look(directory.path()).torn);
    let audit = Audit::open(directory.path()).expect("open");
    assert_eq!(audit.head().0, 5, "four whole entries and the repair");
    drop(audit);
    let text = fs::read_to_string(&path).expect("read");
    let last = text.lines().last().expect("line");
    assert!(last.contains("audit-repaired"), "{last}");
    // The repaired log is whole.
    assert_eq!(Audit::open(directory.path()).expect("open").head().0, 5);
}

#[test]
fn a_tail_of_zeros_counts_as_torn() {
    let directory = tempfile::tempdir().expect("tempdir");
    filled(directory.path());
    let path = directory.path().join(SECURITY.file);
    let mut bytes = fs::read(&path).expect("read");
    bytes.extend([0; 300]);
    fs::write(&path, &bytes).expect("zeros");
    assert_eq!(Audit::open(directory.path()).expect("open").head().0, 6);
}

#[test]
fn a_broken_chain_is_kept_for_inspection_and_what_is_good_of_it_goes_on() {
    for (damage, good) in [("change", 3), ("remove", 1)] {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path());
        let path = directory.path().join(SECURITY.file);
        let text = fs::read_to_string(&path).expect("read");
        let broken = match damage {
            "change" => text.replace("\"n\":2", "\"n\":7"),
            _ => text
                .lines()
                .enumerate()
                .filter(|(i, _)| *i != 1)
                .fold(String::new(), |all, (_, line)| all + line + "\n"),
        };
        fs::write(&path, &broken).expect("damage");
        let audit = Audit::open(directory.path()).expect("open");
        assert_eq!(audit.head().0, good + 1, "{damage}: and one that says so");
        let kept = fs::read_to_string(directory.path().join("audit.log.broken-1"));
        assert_eq!(kept.expect("kept"), broken, "{damage}");
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.contains("audit-chain-broken"), "{text}");
        drop(audit);
        // From outside it is seen that the log was longer.
        assert!(look(directory.path()).findings.is_empty());
        assert_eq!(
            Audit::open(directory.path()).expect("open").head().0,
            good + 1
        );
    }
}

#[test]
fn one_process_owns_the_log() {
    let directory = tempfile::tempdir().expect("tempdir");
    let _audit = Audit::open(directory.path()).expect("open");
    let error = Audit::open(directory.path()).err().expect("refused");
    assert!(
        std::error::Error::source(&error)
            .expect("source")
            .to_string()
            .contains("another edgeward process")
    );
}

#[test]
fn a_full_file_is_archived_the_chain_goes_on_and_the_oldest_go_with_a_record_of_it() {
    let directory = tempfile::tempdir().expect("tempdir");
    let head = many(directory.path(), 60);
    let bytes: u64 = segments(directory.path())
        .iter()
        .map(|path| fs::metadata(path).expect("metadata").len())
        .sum();
    assert!(bytes < 6 * SMALL.segment_bytes, "{bytes} bytes are kept");
    let report = look(directory.path());
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(
        (report.segments, report.last, report.head),
        (4, head.0, Some(head.1))
    );
    assert!(report.first > 1, "the oldest are gone");
    // After a restart it goes on where it was, even from an archive alone.
    assert_eq!(many(directory.path(), 0), head);
    let archived = many(directory.path(), 40);
    assert!(archived.0 > head.0 + 40);
    let newest = directory.path().join(SECURITY.file);
    let lines = fs::read_to_string(&newest).expect("read").lines().count() as u64;
    fs::remove_file(&newest).expect("remove");
    assert_eq!(many(directory.path(), 0).0, archived.0 - lines);
}

#[test]
fn tampering_truncation_and_reordering_are_found_and_located() {
    type Damage = fn(&mut Vec<String>);
    // In the second of four files.
    let rows: [(Damage, u64, &str); 5] = [
        (
            |lines| lines[1] = lines[1].replace("\"n\":", "\"n\":9"),
            3,
            "was changed",
        ),
        (|lines| drop(lines.remove(1)), 2, "is missing"),
        (|lines| lines.swap(1, 2), 2, "is missing"),
        (
            |lines| lines.insert(2, lines[0].clone()),
            3,
            "out of order or repeated",
        ),
        (|lines| lines[1].truncate(20), 2, "no entry"),
    ];
    for (damage, line, words) in rows {
        let directory = tempfile::tempdir().expect("tempdir");
        let head = many(directory.path(), 15);
        let file = &segments(directory.path())[1];
        let text = fs::read_to_string(file).expect("read");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        damage(&mut lines);
        fs::write(file, lines.join("\n") + "\n").expect("damage");
        let report = look(directory.path());
        let first = report.findings.first().expect(words);
        let name = file.file_name().expect("name").to_string_lossy();
        assert_eq!((first.file.as_str(), first.line), (&*name, line), "{words}");
        assert!(first.problem.contains(words), "{}", first.problem);
        // The agent starts all the same, and counts on.
        assert!(many(directory.path(), 1).0 > head.0);
    }
}

#[test]
fn missing_files_and_a_missing_end_are_found() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (number, digest) = many(directory.path(), 15);
    let all = segments(directory.path());
    let expected = Some(Expected { number, digest });
    let report = |expected| expecting(directory.path(), expected);
    assert!(report(expected).findings.is_empty());
    let other = Some(Expected {
        number,
        digest: Digest::of(b"another"),
    });
    assert!(report(other).findings[0].problem.contains("not the one"));
    let away = |path: &Path, words: &str| {
        let bytes = fs::read(path).expect("read");
        fs::remove_file(path).expect("remove");
        if path.ends_with(SECURITY.file) {
            fs::write(path, b"").expect("write");
        }
        let findings = report(expected).findings;
        assert!(findings[0].problem.contains(words), "{findings:?}");
        fs::write(path, bytes).expect("put back");
    };
    away(&all[0], "no entry says that they were removed");
    away(&all[1], "are missing");
    away(all.last().expect("files"), "cut short");
    assert!(report(expected).findings.is_empty());
}
