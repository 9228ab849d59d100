//! The operator's side: what a repository refuses, and what it survives.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use common::{Device, Fleet, day, desired, sample_directory, sample_manifest};
use edgeward_models::sign::{KeyRing, Publication, Repository, SigningRole};

#[tokio::test]
async fn the_sample_package_goes_in_as_it_is_and_comes_out_as_it_was() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let mut manifest = sample_manifest();
    manifest.release = 1;
    let files = manifest
        .files
        .keys()
        .map(|f| (f.clone(), sample_directory().join(f.as_str())));
    let files: BTreeMap<_, _> = files.collect();
    fleet
        .repository
        .add_version(&manifest, &files)
        .expect("add");
    fleet.commit(day(1));
    let kept = fleet
        .repository
        .manifest(&manifest.model, &manifest.version)
        .expect("manifest");
    assert_eq!(kept.as_ref(), Some(&manifest));
    let repository = device.follows(&fleet.carrier, day(1)).await;
    let targets = repository.version_targets(&manifest.model, &manifest.version);
    assert_eq!(targets.len(), 1 + manifest.files.len());
    for target in &targets[1..] {
        let bytes = repository
            .read(fleet.carrier.as_ref(), target, 1 << 24)
            .await
            .expect("read");
        let name = target.name.rsplit('/').next().expect("name");
        assert_eq!(
            bytes,
            std::fs::read(sample_directory().join(name)).expect("file")
        );
    }
}

#[test]
fn a_version_is_pushed_once_and_never_changes() {
    let mut fleet = Fleet::new();
    fleet.push("digits", "1.0.0", b"one", day(1));
    let model = "digits".parse().expect("name");
    assert_eq!(fleet.repository.next_release(&model).expect("release"), 2);
    // Again, with the next release number: nothing to do.
    fleet.stage("digits", "1.0.0", b"one");
    let publication = fleet
        .repository
        .commit(&fleet.keys, day(2))
        .expect("commit");
    assert_eq!(publication, Publication::default());
    assert_eq!(fleet.repository.timestamp_version(), 2);
    // With other bytes: refused.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fleet.stage("digits", "1.0.0", b"two");
    }));
    assert!(result.is_err());
    assert_eq!(
        fleet.repository.versions(&model).expect("versions").len(),
        1
    );
    fleet.push(
        "digits",
        "0.9.0",
        b"older by name, newer by release",
        day(3),
    );
    let versions = fleet.repository.versions(&model).expect("versions");
    let versions: Vec<_> = versions.iter().map(|(v, r)| (v.to_string(), *r)).collect();
    assert_eq!(versions, [("1.0.0".to_owned(), 1), ("0.9.0".to_owned(), 2)]);
    assert_eq!(fleet.repository.models().expect("models"), [model]);
}

#[test]
fn a_file_that_is_not_the_one_in_the_manifest_is_refused() {
    let mut fleet = Fleet::new();
    let mut manifest = sample_manifest();
    manifest.release = 1;
    let path = fleet.directory.path().join("other");
    std::fs::write(&path, b"other").expect("write");
    let files = manifest
        .files
        .keys()
        .map(|f| (f.clone(), path.clone()))
        .collect();
    let error = fleet
        .repository
        .add_version(&manifest, &files)
        .expect_err("other file");
    assert!(
        error
            .to_string()
            .contains("is not the file that the manifest"),
        "{error}"
    );
    let error = fleet
        .repository
        .add_version(&manifest, &BTreeMap::new())
        .expect_err("no file");
    assert!(error.to_string().contains("which was not given"), "{error}");
    manifest.release = 0;
    let error = fleet
        .repository
        .add_version(&manifest, &files)
        .expect_err("release");
    assert!(error.to_string().contains("the next one is 1"), "{error}");
}

#[test]
fn desired_states_count_up_and_membership_comes_and_goes() {
    let mut fleet = Fleet::new();
    fleet.wish("radiology", 2, day(1));
    let group = "radiology".parse().expect("name");
    // The same again is nothing new; another one must count up.
    fleet
        .repository
        .set_desired(&desired("radiology", 2))
        .expect("same");
    let mut other = desired("radiology", 2);
    other.models.clear();
    let error = fleet.repository.set_desired(&other).expect_err("sequence");
    assert!(error.to_string().contains("at sequence 2"), "{error}");
    assert_eq!(fleet.repository.groups().expect("groups"), [group]);

    fleet.join("ct-1", &["radiology"], day(1));
    fleet.join("ct-2", &["radiology", "pilot"], day(1));
    let ct_2 = "ct-2".parse().expect("name");
    assert_eq!(fleet.repository.membership().expect("all").len(), 2);
    assert_eq!(fleet.repository.groups_of(&ct_2).expect("groups").len(), 2);
    fleet
        .repository
        .set_groups(&ct_2, BTreeSet::new())
        .expect("none");
    // Seen before and after the commit, and after opening it again.
    assert_eq!(fleet.repository.membership().expect("all").len(), 1);
    fleet.commit(day(1));
    assert_eq!(fleet.repository.membership().expect("all").len(), 1);
    let path = fleet.repository_path();
    drop(fleet.repository);
    let repository = Repository::open(&path).expect("open");
    assert_eq!(repository.membership().expect("all").len(), 1);
}

#[test]
fn a_repository_has_one_writer_at_a_time() {
    let fleet = Fleet::new();
    let path = fleet.repository_path();
    let error = Repository::open(&path).expect_err("locked");
    assert!(
        error.to_string().contains("in use by another fleetctl"),
        "{error}"
    );
    let error = Repository::create(&path, &fleet.keys, day(0)).expect_err("locked");
    assert!(
        error.to_string().contains("in use by another fleetctl"),
        "{error}"
    );
    drop(fleet.repository);
    Repository::open(&path).expect("free again");
    let error = Repository::create(&path, &fleet.keys, day(0)).expect_err("there");
    assert!(
        error.to_string().contains("already a repository"),
        "{error}"
    );
    let error = Repository::open(fleet.directory.path()).expect_err("none");
    assert!(error.to_string().contains("fleetctl init"), "{error}");
}

#[tokio::test]
async fn a_crash_before_the_timestamp_leaves_the_repository_as_it_was() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"one", day(1));
    let metadata = fleet.repository_path().join("metadata");
    let timestamp = std::fs::read(metadata.join("timestamp.json")).expect("read");
    fleet.push("digits", "2.0.0", b"two", day(2));
    let first = std::fs::read(metadata.join("3.releases.json")).expect("read");
    // As if the rename of the timestamp had not happened, and the last file were half written.
    std::fs::write(metadata.join("timestamp.json"), &timestamp).expect("write");
    std::fs::write(metadata.join("3.snapshot.json"), b"{\"sig").expect("write");
    let path = fleet.repository_path();
    drop(fleet.repository);
    fleet.repository = Repository::open(&path).expect("open");
    let model = "digits".parse().expect("name");
    assert_eq!(fleet.repository.timestamp_version(), 2);
    assert_eq!(
        fleet.repository.versions(&model).expect("versions").len(),
        1
    );
    // The same version numbers are used again; nobody has seen them.
    fleet.carrier = std::sync::Arc::default();
    fleet.push("digits", "3.0.0", b"three", day(3));
    assert_ne!(
        std::fs::read(metadata.join("3.releases.json")).expect("read"),
        first
    );
    fleet.publish(&fleet.repository.everything().expect("everything"));
    let repository = device.follows(&fleet.carrier, day(3)).await;
    assert!(
        repository
            .target("models/digits/3.0.0/model.tflite")
            .is_some()
    );
    assert!(
        repository
            .target("models/digits/2.0.0/model.tflite")
            .is_none()
    );
}

#[test]
fn a_refresh_needs_only_the_two_online_keys() {
    let mut fleet = Fleet::new();
    for role in ["root", "targets", "releases", "rollouts"] {
        std::fs::remove_file(fleet.key_directory.join(format!("{role}.pem"))).expect("remove");
    }
    let online = KeyRing::open(&fleet.key_directory).expect("keys");
    assert!(online.has(SigningRole::Timestamp) && !online.has(SigningRole::Root));
    let publication = fleet.repository.refresh(&online, day(1)).expect("refresh");
    let files: Vec<_> = publication.metadata.iter().map(|f| f.as_str()).collect();
    assert_eq!(files, ["2.snapshot.json", "timestamp.json"]);
    // A push needs more, says which, and stays staged.
    fleet.stage("digits", "1.0.0", b"one");
    let error = fleet
        .repository
        .commit(&online, day(2))
        .expect_err("no key");
    assert!(
        error.to_string().contains("role releases has 0 of 1"),
        "{error}"
    );
    fleet
        .repository
        .commit(&fleet.keys, day(2))
        .expect("commit");
    let model = "digits".parse().expect("name");
    assert_eq!(
        fleet.repository.versions(&model).expect("versions").len(),
        1
    );
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let fleet = Fleet::new();
    let error = KeyRing::generate(&fleet.key_directory).expect_err("overwrite");
    assert!(error.to_string().contains("already a key"), "{error}");
    for role in SigningRole::ALL {
        let path = fleet.key_directory.join(format!("{role}.pem"));
        let mode = std::fs::metadata(&path)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    }
    let path = fleet.key_directory.join("root.pem");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("chmod");
    let error = KeyRing::open(&fleet.key_directory).expect_err("readable");
    assert!(
        error.to_string().contains("may be read by others"),
        "{error}"
    );
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
    std::fs::write(
        &path,
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    )
    .expect("write");
    let error = KeyRing::open(&fleet.key_directory).expect_err("junk");
    assert!(
        error.to_string().contains("is not an Ed25519 key"),
        "{error}"
    );
    assert!(!format!("{:?}", fleet.keys).contains("PRIVATE"));
    let empty = tempfile::tempdir().expect("tempdir");
    let error = KeyRing::open(empty.path()).expect_err("none");
    assert!(error.to_string().contains("no signing keys"), "{error}");
}

#[test]
fn a_clock_that_went_back_signs_nothing() {
    let mut fleet = Fleet::new();
    fleet.refresh(day(5));
    let error = fleet
        .repository
        .refresh(&fleet.keys, day(4))
        .expect_err("clock");
    assert!(error.to_string().contains("set the clock"), "{error}");
    // Unless it was the other signature that was wrong.
    fleet.repository.accept_earlier_clock();
    fleet.refresh(day(4));
    assert_eq!(fleet.repository.signed_at(), day(4));
}

#[test]
fn roles_are_renewed_before_they_expire() {
    let mut fleet = Fleet::new();
    assert_eq!(fleet.commit(day(200)), Publication::default());
    let publication = fleet.commit(day(300));
    let files: Vec<_> = publication.metadata.iter().map(|f| f.as_str()).collect();
    let renewed = [
        "2.targets.json",
        "2.releases.json",
        "2.rollouts.json",
        "2.snapshot.json",
        "timestamp.json",
    ];
    assert_eq!(files, renewed);
}

#[test]
fn an_export_goes_over_neither_a_newer_nor_another_repository() {
    let mut fleet = Fleet::new();
    let stick = tempfile::tempdir().expect("tempdir");
    fleet.refresh(day(1));
    fleet.repository.export(stick.path()).expect("export");
    let error = Fleet::new()
        .repository
        .export(stick.path())
        .expect_err("another fleet");
    assert!(error.to_string().contains("another fleet"), "{error}");
    // An operator's copy that was left behind.
    let behind = fleet.directory.path().join("behind");
    fleet.repository.export(&behind).expect("export");
    fleet.refresh(day(2));
    fleet.repository.export(stick.path()).expect("export");
    let behind = Repository::open(&behind).expect("open");
    let error = behind.export(stick.path()).expect_err("newer");
    assert!(
        error.to_string().contains("newer than this repository's 2"),
        "{error}"
    );
}

#[test]
fn a_damaged_repository_is_told_at_once() {
    let mut fleet = Fleet::new();
    fleet.push("digits", "1.0.0", b"one", day(1));
    let path = fleet.repository_path();
    drop(fleet.repository);
    let file = path.join("metadata/2.releases.json");
    let mut bytes = std::fs::read(&file).expect("read");
    bytes.truncate(100);
    std::fs::write(&file, &bytes).expect("write");
    let error = Repository::open(&path).expect_err("damaged");
    let cause = std::error::Error::source(&error)
        .expect("cause")
        .to_string();
    assert!(cause.contains("2.releases.json"), "{cause}");
}

#[test]
fn old_versioned_files_go_once_nobody_can_be_reading_them() {
    let mut fleet = Fleet::new();
    for n in 1..6 {
        fleet.refresh(day(n));
    }
    let entries = std::fs::read_dir(fleet.repository_path().join("metadata")).expect("read_dir");
    let names: BTreeSet<_> = entries.map(|e| e.expect("entry").file_name()).collect();
    let expected = [
        "1.releases.json",
        "1.rollouts.json",
        "1.root.json",
        "1.targets.json",
        "5.snapshot.json",
        "6.snapshot.json",
        "timestamp.json",
    ];
    assert_eq!(names, expected.iter().map(Into::into).collect());
}
