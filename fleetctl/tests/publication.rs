//! From a sample to a broker and a stick, and everything that must not be published.

mod desk;

use std::path::Path;
use std::sync::Arc;

use desk::{Desk, sample, text};
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::{GroupName, ModelName};
use edgeward_models::repository::DirectorySource;
use edgeward_models::verify::{Policy, TrustStore, Update, VerifiedRepository};
use jiff::Timestamp;

/// What a device makes of a repository directory.
async fn verified(directory: &Path, root: &str) -> (VerifiedRepository, Arc<DirectorySource>) {
    let store = tempfile::tempdir().expect("tempdir");
    let mut trust =
        TrustStore::create(&store.path().join("trust"), root.as_bytes()).expect("trust");
    let source = Arc::new(DirectorySource::open(directory).expect("repository"));
    let policy = Policy {
        stale_after: std::time::Duration::from_secs(86_400),
    };
    match trust
        .update(source.clone(), Timestamp::now(), policy)
        .await
        .expect("verifies")
    {
        Update::Current(repository) => (repository, source),
        Update::Older { .. } => panic!("a new trust store knows nothing newer"),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[tokio::test]
async fn what_is_pushed_can_be_exported_and_verifies_on_a_device() {
    let desk = Desk::with_broker();
    let device = desk.enroll("ct-1", "radiology");
    let push = [
        "push",
        text(&sample("digits-1.0.0")),
        "--group",
        "radiology",
        "--no-wait",
    ]
    .map(str::to_owned);
    let push: Vec<_> = push.iter().map(String::as_str).collect();
    let said = desk.run(&push).expect(0);
    assert!(
        said.err
            .contains("digits 1.0.0 (release 1) for group radiology is published"),
        "{}",
        said.err
    );
    assert!(
        said.out.is_empty(),
        "data without being asked: {}",
        said.out
    );

    let stick = desk.path("stick");
    desk.run(&["export", text(&stick)]).expect(0);
    let (repository, source) = verified(&stick, &device.bundle.root).await;
    assert_eq!(repository.install_bar(), None);
    let groups = repository
        .groups(&*source, &device.bundle.device)
        .await
        .expect("groups");
    assert_eq!(groups, ["radiology".parse::<GroupName>().expect("name")]);
    let desired = repository
        .desired(&*source, &groups[0])
        .await
        .expect("desired")
        .expect("there");
    let model: ModelName = "digits".parse().expect("name");
    let wish = &desired.models[&model];
    assert_eq!((desired.sequence, wish.release, wish.percent), (1, 1, 100));
    let targets = repository.version_targets(&model, &wish.version);
    assert_eq!(targets.len(), 3, "manifest, model and golden vectors");
    for target in targets {
        repository
            .read(&*source, target, 1 << 20)
            .await
            .expect("whole");
    }
}

#[test]
fn a_version_is_immutable_and_counts_its_releases() {
    let desk = Desk::new();
    let push = |path: &Path| desk.run(&["push", text(path), "--group", "g", "--offline", "--json"]);
    assert_eq!(push(&sample("digits-1.0.0")).expect(0).json()["release"], 1);
    assert_eq!(push(&sample("digits-2.0.0")).expect(0).json()["release"], 2);
    // The same again is the same version, and a new try.
    let again = push(&sample("digits-2.0.0")).expect(0).json();
    assert_eq!(
        (&again["release"], &again["sequence"]),
        (&2.into(), &3.into())
    );
    let other = desk.path("other");
    copy(&sample("digits-1.0.0"), &other);
    let manifest = std::fs::read_to_string(other.join("manifest.json")).expect("read");
    std::fs::write(
        other.join("manifest.json"),
        manifest.replace("95.3", "99.9"),
    )
    .expect("write");
    let said = push(&other).expect(2);
    assert!(said.err.contains("versions are immutable"), "{}", said.err);

    let said = desk
        .run(&["rollback", "digits", "--group", "g", "--offline", "--json"])
        .expect(0)
        .json();
    assert_eq!(
        (&said["version"], &said["release"], &said["sequence"]),
        (&"1.0.0".into(), &1.into(), &4.into())
    );
    let said = desk
        .run(&[
            "rollback",
            "digits",
            "--group",
            "g",
            "--to",
            "3.0.0",
            "--offline",
        ])
        .expect(2);
    assert!(said.err.contains("there are 1.0.0, 2.0.0"), "{}", said.err);
    let said = desk
        .run(&["rollback", "digits", "--group", "other", "--offline"])
        .expect(2);
    assert!(
        said.err.contains("nothing was ever pushed to group other"),
        "{}",
        said.err
    );
}

#[test]
fn a_bare_tflite_file_becomes_an_editable_package_that_can_be_pushed() {
    let desk = Desk::new();
    let model = desk.path("hand-digits-1.2.0.tflite");
    std::fs::copy(sample("digits-1.0.0").join("model.tflite"), &model).expect("copy");
    let package = desk.path("package");
    let said = desk
        .run(&["package", text(&model), "--out", text(&package)])
        .expect(0);
    assert_eq!(said.out.trim(), text(&package));
    assert!(said.err.contains("no golden vectors"), "{}", said.err);
    let manifest = std::fs::read_to_string(package.join("manifest.json")).expect("read");
    assert!(
        manifest.contains("\"hand-digits\"") && manifest.contains("\"image\""),
        "{manifest}"
    );
    let pushed = desk
        .run(&[
            "push",
            text(&package),
            "--group",
            "g",
            "--offline",
            "--json",
        ])
        .expect(0)
        .json();
    assert_eq!(pushed["version"], "1.2.0");
    std::fs::write(&model, b"junk").expect("write");
    let said = desk
        .run(&["push", text(&model), "--group", "g", "--offline"])
        .expect(2);
    assert!(said.err.contains("not a TFLite model"), "{}", said.err);
}

#[test]
fn a_second_operator_cannot_write_over_newer_metadata() {
    let desk = Desk::with_broker();
    let first = text(&sample("digits-1.0.0")).to_owned();
    let second = text(&sample("digits-2.0.0")).to_owned();
    desk.run(&["push", &first, "--group", "g", "--no-wait"])
        .expect(0);
    let colleague = desk.path("colleague");
    copy(&desk.home(), &colleague);
    desk.run(&["push", &second, "--group", "g", "--no-wait"])
        .expect(0);

    let before = std::fs::read(colleague.join("repository/metadata/timestamp.json")).expect("read");
    for verb in [
        &["push", &second, "--group", "g", "--no-wait"][..],
        &["sync"],
        &["refresh"],
    ] {
        let said = desk.run_in(&colleague, verb).expect(2);
        assert!(
            said.err.contains("the broker holds newer metadata"),
            "{verb:?}: {}",
            said.err
        );
    }
    let after = std::fs::read(colleague.join("repository/metadata/timestamp.json")).expect("read");
    assert_eq!(before, after, "the refused operator's repository moved");

    // Both at the same version: the one who was first stays.
    desk.run_in(&colleague, &["push", &second, "--group", "g", "--offline"])
        .expect(0);
    let said = desk.run_in(&colleague, &["sync"]).expect(2);
    assert!(
        said.err.contains("two operators published at once"),
        "{}",
        said.err
    );
    let said = desk.run(&["sync"]).expect(0);
    assert!(
        said.err.starts_with("0 messages were published"),
        "{}",
        said.err
    );
}

#[test]
fn an_emptied_broker_is_filled_again_and_only_with_what_is_missing() {
    let mut desk = Desk::with_broker();
    let device = desk.enroll("ct-1", "g");
    desk.run(&[
        "push",
        text(&sample("digits-1.0.0")),
        "--group",
        "g",
        "--no-wait",
    ])
    .expect(0);
    desk.start_broker();
    let said = desk.run(&["sync"]).expect(0);
    assert!(said.err.contains(", 0 were there"), "{}", said.err);
    let said = desk.run(&["sync"]).expect(0);
    assert!(
        said.err.starts_with("0 messages were published"),
        "{}",
        said.err
    );
    // Without access list a device may scribble; that is noticed, told and mended.
    device.publishes(
        Topic::Metadata("timestamp.json".parse().expect("name")),
        b"mine now".to_vec(),
    );
    let said = desk.run(&["sync"]).expect(0);
    assert!(said.err.contains("did not sign"), "{}", said.err);
    assert!(
        said.err.contains("1 messages were published"),
        "{}",
        said.err
    );
    // A change onto an emptied broker brings everything, not the change alone.
    desk.start_broker();
    desk.run(&[
        "push",
        text(&sample("digits-2.0.0")),
        "--group",
        "g",
        "--no-wait",
    ])
    .expect(0);
    let said = desk.run(&["sync"]).expect(0);
    assert!(
        said.err.starts_with("0 messages were published"),
        "{}",
        said.err
    );
}

#[test]
fn work_done_offline_is_published_by_sync_and_refreshed() {
    let desk = Desk::with_broker();
    desk.run(&[
        "push",
        text(&sample("digits-1.0.0")),
        "--group",
        "g",
        "--offline",
    ])
    .expect(0);
    desk.run(&["sync"]).expect(0);
    let said = desk.run(&["refresh"]).expect(0);
    assert!(said.err.contains("timestamp 3 is signed"), "{}", said.err);
    let said = desk.run(&["sync"]).expect(0);
    assert!(
        said.err.starts_with("0 messages were published"),
        "{}",
        said.err
    );
}

#[test]
fn nothing_changes_when_the_broker_cannot_be_reached() {
    let desk = Desk::new();
    let push = ["push", text(&sample("digits-1.0.0")), "--group", "g"].map(str::to_owned);
    let push: Vec<_> = push.iter().map(String::as_str).collect();
    let said = desk.run(&push).expect(2);
    assert!(
        said.err.contains(&format!(
            "cannot connect to the broker localhost:{}",
            desk.port
        )),
        "{}",
        said.err
    );
    assert_eq!(
        desk.run(&["group", "list", "--json"]).expect(0).json()["groups"],
        serde_json::json!([])
    );
}

#[test]
fn the_host_that_refreshes_needs_two_keys_and_can_do_nothing_else() {
    let desk = Desk::with_broker();
    let path = sample("digits-1.0.0");
    let push = ["push", text(&path), "--group", "g", "--no-wait"];
    desk.run(&push).expect(0);
    for role in ["root", "targets", "releases", "rollouts"] {
        std::fs::remove_file(desk.home().join(format!("keys/{role}.pem"))).expect("remove");
    }
    std::fs::remove_file(desk.home().join("ca/ca.key")).expect("remove");
    desk.run(&["refresh"]).expect(0);
    let said = desk.run(&push).expect(1);
    assert!(
        said.err.contains("role rollouts has 0 of 1 signatures"),
        "{}",
        said.err
    );
    let said = desk.run(&["sync"]).expect(0);
    assert!(said.err.starts_with("0 messages"), "{}", said.err);
}
