//! Versions from a directory, and what a device makes of bad ones, of damage and of restarts.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use edgeward_agent::fleet::reconcile::ImportOutcome;
use edgeward_agent::serving::ServeError;
use edgeward_models::fleet::status::Phase;

use crate::device::Device;
use crate::site::{Site, noise};

/// Makes an installed file bad, as a failing disk would.
fn damage(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let mut bytes = std::fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("write");
}

#[tokio::test]
async fn versions_are_taken_kept_over_a_restart_and_never_taken_back_by_an_older_stick() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    let first = site.export("stick-1");
    site.push("digits-2.0.0", "r2");
    let second = site.export("stick-2");
    assert_eq!(device.import(&first).await.0, ImportOutcome::Applied);
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert_eq!(device.import(&second).await.0, ImportOutcome::Applied);
    assert_eq!(device.serves("digits").as_deref(), Some("2.0.0"));
    let status = device.model("digits").await.expect("status");
    assert_eq!(status.previous.expect("previous").to_string(), "1.0.0");

    device.restart().await;
    assert_eq!(device.serves("digits").as_deref(), Some("2.0.0"));
    let (outcome, text) = device.import(&first).await;
    assert_eq!(outcome, ImportOutcome::Older, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("2.0.0"));
    let installed = device.state().join("versions/digits/2.0.0/model.tflite");
    let mode = std::fs::metadata(installed)
        .expect("file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o222, 0, "installed files are read-only");
    let left = std::fs::read_dir(device.state().join("chunks")).expect("cache");
    assert_eq!(left.count(), 0, "chunks of installed versions are let go");
}

#[tokio::test]
async fn a_version_off_its_golden_vectors_is_tried_once_per_rollout_and_the_old_one_serves_on() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    device.import(&site.export("stick-1")).await;
    let release = site.add("digits-2.0.0", |_, files| {
        let golden = files
            .get_mut(&"golden.json".parse().expect("name"))
            .expect("golden");
        let mut document: serde_json::Value = serde_json::from_slice(golden).expect("json");
        let vectors = document["vectors"].as_array_mut().expect("vectors");
        for value in vectors[0]["outputs"]["probabilities"]["data"]
            .as_array_mut()
            .expect("data")
        {
            *value = serde_json::json!(0.5);
        }
        *golden = serde_json::to_vec(&document).expect("encode");
    });
    site.wish("digits", "2.0.0", release, "r2");
    let stick = site.export("stick-2");
    let (outcome, text) = device.import(&stick).await;
    assert_eq!(outcome, ImportOutcome::Refused, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert_eq!(device.audited("version-quarantined"), 1);
    let status = device.model("digits").await.expect("status");
    assert_eq!(status.phase, Phase::Refused);

    // The same wish again, even after a restart: refused at once, not tried.
    device.restart().await;
    assert_eq!(device.import(&stick).await.0, ImportOutcome::Refused);
    assert_eq!(device.audited("version-quarantined"), 1);
    // Another rollout that names it: tried again.
    site.wish("digits", "2.0.0", release, "r3");
    let (outcome, text) = device.import(&site.export("stick-3")).await;
    assert_eq!(outcome, ImportOutcome::Refused, "{text}");
    assert_eq!(device.audited("version-quarantined"), 2);
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
}

#[tokio::test]
async fn the_only_version_when_damaged_is_fetched_again_from_the_same_repository() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    let stick = site.export("stick");
    device.import(&stick).await;
    device.stop().await;
    damage(&device.state().join("versions/digits/1.0.0/model.tflite"));
    device.start().await;
    assert_eq!(device.serves("digits"), None);
    // It is missed, which is not the same as unknown.
    let lacking = device.engine().lacking();
    let reason = lacking.get(&"digits".parse().expect("name"));
    assert!(
        reason.is_some_and(|r| r.contains("digest")),
        "{lacking:?}: what is wrong with it"
    );
    let error = device.engine().resolve("digits", None).err();
    assert!(
        matches!(error, Some(ServeError::NotReady { .. })),
        "{error:?}"
    );
    assert_eq!(lacking.len(), 1);
    let (outcome, text) = device.import(&stick).await;
    assert_eq!(outcome, ImportOutcome::Applied, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert!(device.engine().lacking().is_empty());
    device.restart().await;
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
}

#[tokio::test]
async fn a_version_that_could_not_be_loaded_at_the_start_comes_back_whatever_becomes_of_a_wish() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    device.import(&site.export("stick-1")).await;
    device.stop().await;
    let library = device.config().tflite.library.clone();
    let elsewhere = device.state().join("library.so");
    device.config().tflite.library = elsewhere.clone();
    device.start().await;
    assert_eq!(device.serves("digits"), None);
    // A wish that fails for as long as it is tried: a chunk is not what was signed.
    site.push("digits-2.0.0", "r2");
    let stick = site.export("stick-2");
    for chunk in walk(&stick.join("chunks")) {
        damage(&chunk);
    }
    let (outcome, text) = device.import(&stick).await;
    assert_ne!(outcome, ImportOutcome::Applied, "{text}");
    std::os::unix::fs::symlink(&library, &elsewhere).expect("the library comes back");
    device.wait_serves("digits", "1.0.0").await;
}

#[tokio::test]
async fn a_damaged_active_version_gives_way_to_the_previous_one_and_can_be_fetched_again() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    device.import(&site.export("stick-1")).await;
    site.push("digits-2.0.0", "r2");
    let stick = site.export("stick-2");
    device.import(&stick).await;
    device.stop().await;
    damage(&device.state().join("versions/digits/2.0.0/model.tflite"));
    device.start().await;
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert_eq!(device.audited("version-put-back"), 1);
    let (outcome, text) = device.import(&stick).await;
    assert_eq!(outcome, ImportOutcome::Applied, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("2.0.0"));
}

#[tokio::test]
async fn a_version_that_was_installed_and_not_yet_active_needs_no_second_fetch() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    let stick = site.export("stick-1");
    device.import(&stick).await;
    device.stop().await;
    // As after a power cut between installation and activation.
    std::fs::remove_dir_all(device.state().join("active/digits")).expect("remove");
    let installed = device.state().join("versions/digits/1.0.0");
    let before = std::fs::metadata(&installed).expect("installed");
    device.start().await;
    assert_eq!(device.serves("digits"), None);
    let (outcome, text) = device.import(&stick).await;
    assert_eq!(outcome, ImportOutcome::Applied, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    let after = std::fs::metadata(&installed).expect("installed");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(before.ino(), after.ino(), "the very directory is used");
}

#[tokio::test]
async fn a_changed_chunk_is_named_and_nothing_of_it_is_installed() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    device.import(&site.export("stick-1")).await;
    let release = site.add("digits-2.0.0", |_, files| {
        files.insert("notes.bin".parse().expect("name"), noise(200_000));
    });
    site.wish("digits", "2.0.0", release, "r2");
    let stick = site.export("stick-2");
    for entry in walk(&stick.join("chunks")) {
        let mut bytes = std::fs::read(&entry).expect("read");
        if bytes.len() > 20_000 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::set_permissions(&entry, std::fs::Permissions::from_mode(0o600))
                .expect("chmod");
            std::fs::write(&entry, bytes).expect("write");
        }
    }
    let (outcome, text) = device.import(&stick).await;
    assert_eq!(outcome, ImportOutcome::Refused, "{text}");
    assert!(
        text.contains("chunk") && text.contains("tampered"),
        "{text}"
    );
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert!(!device.state().join("versions/digits/2.0.0").exists());
    assert_eq!(device.audited("version-refused"), 1);
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let folders = std::fs::read_dir(directory).expect("read").flatten();
    folders
        .flat_map(|folder| std::fs::read_dir(folder.path()).expect("read").flatten())
        .map(|entry| entry.path())
        .collect()
}

#[tokio::test]
async fn waves_groups_and_retirement_are_obeyed() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    site.push("breast-cancer-1.0.0", "r2");
    device.import(&site.export("stick-1")).await;
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert_eq!(device.serves("breast-cancer").as_deref(), Some("1.0.0"));

    // Not this device's turn.
    let release = site.add("digits-2.0.0", |_, _| {});
    site.wish_with("digits", "2.0.0", release, "r3", |wish| wish.percent = 0);
    let (outcome, text) = device.import(&site.export("stick-2")).await;
    assert_eq!(outcome, ImportOutcome::Applied, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    let status = device.model("digits").await.expect("status");
    assert_eq!(status.phase, Phase::Waiting);

    // A device that is in no group is told nothing, so it keeps what it has.
    site.put_into(&[]);
    device.import(&site.export("stick-3")).await;
    assert_eq!(device.serves("breast-cancer").as_deref(), Some("1.0.0"));

    // A model that the group no longer lists is let go, also over a restart; its files stay.
    site.put_into(&[crate::site::GROUP]);
    site.change_desired(|desired| {
        desired
            .models
            .remove(&"breast-cancer".parse().expect("name"));
    });
    device.import(&site.export("stick-4")).await;
    crate::wait::until("breast-cancer to be retired", || {
        device.serves("breast-cancer").is_none()
    })
    .await;
    device.restart().await;
    assert_eq!(device.serves("breast-cancer"), None);
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert!(device.state().join("versions/breast-cancer/1.0.0").exists());
}

#[tokio::test]
async fn a_repository_of_strangers_is_refused_and_recorded() {
    let mut site = Site::new();
    let mut strangers = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    device.import(&site.export("stick")).await;
    strangers.push("digits-2.0.0", "r2");
    let (outcome, text) = device.import(&strangers.export("stick")).await;
    assert_eq!(outcome, ImportOutcome::Refused, "{text}");
    assert_eq!(device.audited("metadata-refused"), 1);
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
}
