//! Damage, crashes, and growth.

use std::fs;
use std::path::Path;

use super::*;

fn filled(directory: &Path, records: u64) {
    let mut store = Store::open(directory).expect("open").store;
    for number in 0..records {
        store.append(&[number as u8; 500]).expect("append");
    }
}

fn damage(directory: &Path, how: &str) {
    let path = directory.join("db/db");
    let mut bytes = fs::read(&path).expect("read");
    let length = bytes.len();
    match how {
        "truncate" => bytes.truncate(length / 2),
        "zero" => bytes[length / 4..].fill(0),
        "flip" => bytes
            .iter_mut()
            .skip(64)
            .step_by(97)
            .for_each(|b| *b ^= 0x55),
        "junk" => bytes.fill(0xa5),
        _ => panic!("unknown damage"),
    }
    fs::write(&path, bytes).expect("write");
    // The snapshot repeats part of the log.
    for entry in fs::read_dir(directory.join("db")).expect("read").flatten() {
        if entry.file_name().to_string_lossy().starts_with("snap") {
            fs::remove_file(entry.path()).expect("remove");
        }
    }
}

#[test]
fn records_come_back_in_order_after_a_restart_and_numbers_are_never_used_twice() {
    let directory = tempfile::tempdir().expect("tempdir");
    filled(directory.path(), 20);
    let mut store = Store::open(directory.path()).expect("open").store;
    let oldest = store.oldest(5, 1 << 20).expect("read");
    let keys: Vec<u64> = oldest.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, [1, 2, 3, 4, 5]);
    assert_eq!(store.oldest(5, 1200).expect("read").len(), 2);
    assert_eq!(store.oldest(5, 1).expect("read").len(), 1, "at least one");
    let all: Vec<u64> = (1..=20).collect();
    store.remove(&all, false).expect("remove");
    assert_eq!(store.bytes(), 0);
    drop(store);
    let mut store = Store::open(directory.path()).expect("open").store;
    assert_eq!(store.append(b"x").expect("append"), 21);
    assert_eq!(store.dropped(), 0);
}

#[test]
fn every_kind_of_damage_leads_to_an_empty_store_and_a_count_of_what_was_lost() {
    for how in ["truncate", "zero", "flip", "junk"] {
        let directory = tempfile::tempdir().expect("tempdir");
        filled(directory.path(), 200);
        damage(directory.path(), how);
        let Opened { mut store, damage } = Store::open(directory.path()).expect(how);
        assert!(damage.is_some(), "{how} went unnoticed");
        assert_eq!(store.bytes(), 0, "{how}");
        assert_eq!(store.dropped(), 200, "{how}");
        assert_eq!(store.append(b"goes on").expect("append"), 201, "{how}");
        let kept = fs::read_dir(directory.path()).expect("read").flatten();
        let kept = kept.filter(|e| e.file_name().to_string_lossy().starts_with("quarantine-"));
        assert_eq!(kept.count(), 1, "{how}");
    }
}

#[test]
fn a_store_whose_files_were_deleted_is_noticed() {
    let directory = tempfile::tempdir().expect("tempdir");
    filled(directory.path(), 3);
    fs::remove_dir_all(directory.path().join("db")).expect("remove");
    let opened = Store::open(directory.path()).expect("open");
    assert!(opened.damage.is_some());
    assert_eq!(opened.store.dropped(), 3);
}

#[test]
fn a_crash_in_the_middle_of_a_swap_loses_nothing() {
    let directory = tempfile::tempdir().expect("tempdir");
    filled(directory.path(), 3);
    fs::rename(directory.path().join("db"), directory.path().join("old")).expect("rename");
    fs::create_dir(directory.path().join("next")).expect("mkdir");
    let opened = Store::open(directory.path()).expect("open");
    assert_eq!(opened.damage, None);
    assert_eq!(opened.store.oldest(9, 1 << 20).expect("read").len(), 3);
}

#[test]
fn a_store_that_only_passes_records_on_does_not_grow_without_bound() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut store = Store::open(directory.path()).expect("open").store;
    let value = vec![7; 256 * 1024];
    for _ in 0..60 {
        let key = store.append(&value).expect("append");
        store.remove(&[key], false).expect("remove");
    }
    let size = store.guard(|db| db.size_on_disk()).expect("size");
    assert!(size < 2 * COMPACT_FLOOR_BYTES, "{size} bytes");
    drop(store);
    assert_eq!(Store::open(directory.path()).expect("open").damage, None);
}

#[test]
fn a_store_that_somebody_else_has_open_is_waited_for_and_never_set_aside() {
    let directory = tempfile::tempdir().expect("tempdir");
    filled(directory.path(), 3);
    let store = Store::open(directory.path()).expect("open").store;
    let error = Store::open(directory.path()).map(drop).expect_err("locked");
    assert!(error.is_locked(), "{error}");
    let soon = std::thread::spawn(move || {
        std::thread::sleep(LOCK_PATIENCE / 8);
        drop(store);
    });
    let opened = Store::open(directory.path()).expect("open");
    assert_eq!(opened.damage, None);
    assert_eq!(opened.store.oldest(9, 1 << 20).expect("read").len(), 3);
    soon.join().expect("thread");
}
