//! What a restart, damage and an old age of versions leave behind.

use std::fs;

use edgeward_models::fleet::routing::Routing;
use edgeward_models::{Digest, ModelName, Version};

use super::record::MAX_QUARANTINED;
use super::*;

fn pointer(major: u64) -> Pointer {
    Pointer {
        version: Version::new(major, 0, 0),
        release: major,
        manifest_digest: Digest::of(&[major as u8]),
        rollout: Some(format!("r{major}").parse().expect("name")),
        activated_at: 0,
    }
}

fn model() -> ModelName {
    "digits".parse().expect("name")
}

#[test]
fn what_was_active_becomes_previous_and_a_put_back_reverses_that() {
    let one = ModelRecord::default().activated(pointer(1), None);
    assert_eq!(one.previous, None);
    let two = one.activated(pointer(2), None);
    assert_eq!(two.previous, Some(pointer(1)));
    assert_eq!(two.activated(pointer(2), None), two);
    let back = two
        .quarantine(Quarantined {
            version: Version::new(2, 0, 0),
            rollout: pointer(2).rollout,
            reason: "it crashed".to_owned(),
            at: 0,
        })
        .put_back(0);
    assert_eq!(back.active, Some(pointer(1)));
    assert_eq!(back.previous, None);
    let (version, rollout) = (Version::new(2, 0, 0), pointer(2).rollout);
    assert_eq!(back.barred(&version, rollout.as_ref()), Some("it crashed"));
    let another = "r9".parse().expect("name");
    assert_eq!(back.barred(&version, Some(&another)), None);
}

#[test]
fn the_quarantine_list_is_bounded() {
    let mut record = ModelRecord::default();
    for patch in 0..100 {
        record = record.quarantine(Quarantined {
            version: Version::new(1, 0, patch),
            rollout: None,
            reason: String::new(),
            at: 0,
        });
    }
    assert_eq!(record.quarantined.len(), MAX_QUARANTINED);
    assert!(record.barred(&Version::new(1, 0, 99), None).is_some());
}

#[test]
fn one_process_owns_the_directory_and_work_in_progress_is_thrown_away() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state = StateDirectory::open(directory.path()).expect("open");
    fs::create_dir(state.incoming().join("digits-1.0.0")).expect("leftover");
    assert!(matches!(
        StateDirectory::open(directory.path()),
        Err(StateError::Locked(_))
    ));
    drop(state);
    let state = StateDirectory::open(directory.path()).expect("open");
    assert_eq!(fs::read_dir(state.incoming()).expect("read").count(), 0);
}

#[test]
fn pointers_survive_a_restart_and_a_damaged_one_falls_back_to_the_generation_before() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state = StateDirectory::open(directory.path()).expect("open");
    let one = ModelRecord::default().activated(pointer(1), None);
    let two = one.activated(pointer(2), None);
    state.write_record(&model(), &one).expect("write");
    state.write_record(&model(), &two).expect("write");
    assert_eq!(state.records().expect("read")[&model()], two);
    fs::write(directory.path().join("active/digits/pointer"), b"junk").expect("damage");
    assert_eq!(state.records().expect("read")[&model()], one);
    fs::write(
        directory.path().join("active/digits/pointer.before"),
        b"junk",
    )
    .expect("damage");
    assert!(state.records().expect("others still serve").is_empty());
    assert!(state.record(&model()).is_err());
}

#[test]
fn garbage_collection_keeps_active_previous_what_is_wanted_beside_and_the_newest_others() {
    let directory = tempfile::tempdir().expect("tempdir");
    let state = StateDirectory::open(directory.path()).expect("open");
    for major in 1..=6 {
        let assembled = state.incoming().join("x");
        fs::create_dir(&assembled).expect("mkdir");
        state
            .install(&assembled, &model(), &Version::new(major, 0, 0))
            .expect("install");
    }
    let record = ModelRecord::default()
        .activated(pointer(1), None)
        .activated(pointer(3), None);
    let beside = Routing {
        versions: [Version::new(2, 0, 0)].into(),
        ..Routing::default()
    };
    state.collect_garbage(&model(), &record, &beside, 2);
    let left: Vec<String> = state
        .installed(&model())
        .iter()
        .map(Version::to_string)
        .collect();
    assert_eq!(left, ["1.0.0", "2.0.0", "3.0.0", "5.0.0", "6.0.0"]);
}
