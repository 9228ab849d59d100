//! What was tampered with, signed by the wrong key, or mixed from two repositories is refused, and says why.

mod common;

use common::forge::Forgery;
use common::{Device, Fleet, day, noise};
use edgeward_models::chunk::Source;
use serde_json::{Value, json};

#[tokio::test]
async fn a_tampered_metadata_file_is_refused_by_name() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"model", day(1));
    for file in [
        "timestamp.json",
        "2.snapshot.json",
        "1.targets.json",
        "2.releases.json",
        "1.rollouts.json",
    ] {
        let carrier = fleet.carrier.copy();
        let text = String::from_utf8(fleet.file(file)).expect("text");
        // Still well-formed: only what it says has changed.
        carrier.put(
            file,
            text.replace("\"expires\":\"2", "\"expires\":\"3")
                .as_bytes(),
        );
        let error = device.refuses(&carrier, day(1)).await;
        assert!(
            error.starts_with(&format!("{file} is refused: ")),
            "{error}"
        );
        // Not even JSON.
        carrier.put(file, b"{\"signed\":");
        let error = device.refuses(&carrier, day(1)).await;
        assert!(
            error.starts_with(&format!("{file} is refused: ")),
            "{error}"
        );
        // Not even zstd.
        carrier.put_head(file, b"junk".to_vec());
        let error = device.refuses(&carrier, day(1)).await;
        assert!(
            error.starts_with(&format!("{file} as it was delivered was tampered with")),
            "{error}"
        );
    }
    device.follows(&fleet.carrier, day(1)).await;
}

#[tokio::test]
async fn a_tampered_or_missing_chunk_is_refused_by_digest() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", &noise("model", 400_000), day(1));
    let repository = device.follows(&fleet.carrier, day(1)).await;
    let target = repository
        .target("models/digits/1.0.0/model.tflite")
        .expect("target");
    let chunks = repository
        .chunks(fleet.carrier.as_ref(), target)
        .await
        .expect("chunks");
    let victim = chunks[3].sha256;
    let good = fleet.carrier.chunk_bytes(&victim).expect("chunk");

    let carrier = fleet.carrier.copy();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    carrier.put_chunk(victim, bad);
    let error = repository
        .read(carrier.as_ref(), target, 1 << 20)
        .await
        .expect_err("tampered");
    assert!(
        error
            .to_string()
            .contains(&format!("chunk {victim} was tampered with")),
        "{error}"
    );

    // Another genuine chunk under this name.
    let other = fleet.carrier.chunk_bytes(&chunks[4].sha256).expect("chunk");
    carrier.put_chunk(victim, other);
    assert!(
        repository
            .read(carrier.as_ref(), target, 1 << 20)
            .await
            .is_err()
    );

    carrier.hide_chunk(&victim);
    let error = repository
        .read(carrier.as_ref(), target, 1 << 20)
        .await
        .expect_err("missing");
    assert_eq!(error.to_string(), format!("chunk {victim} is not there"));

    carrier.put_chunk(victim, good);
    repository
        .read(carrier.as_ref(), target, 1 << 20)
        .await
        .expect("read");
    let error = repository
        .read(carrier.as_ref(), target, 399_999)
        .await
        .expect_err("limit");
    assert!(
        error
            .to_string()
            .contains("larger than the 399999 bytes allowed"),
        "{error}"
    );
}

#[tokio::test]
async fn each_role_is_heard_only_with_its_own_key() {
    for (role, thief) in [
        ("timestamp", "snapshot"),
        ("snapshot", "timestamp"),
        ("targets", "releases"),
        ("releases", "rollouts"),
        ("rollouts", "releases"),
        ("releases", "targets"),
    ] {
        let fleet = Fleet::new();
        let device = Device::enrolled(&fleet);
        let carrier = fleet.carrier.copy();
        Forgery::of(&fleet)
            .version("timestamp", 2)
            .version("snapshot", 2)
            .version(
                if role == "timestamp" || role == "snapshot" {
                    "releases"
                } else {
                    role
                },
                2,
            )
            .signed_by(role, thief)
            .publish(&carrier);
        let error = device.refuses(&carrier, day(0)).await;
        assert!(
            error.contains(role) && error.contains("not signed by the keys"),
            "{role}: {error}"
        );
        assert!(
            error.contains("Signature threshold of 1 not met"),
            "{role}: {error}"
        );
    }
}

#[tokio::test]
async fn one_signature_counts_once() {
    let fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let carrier = fleet.carrier.copy();
    let mut file: Value = serde_json::from_slice(&fleet.file("timestamp.json")).expect("json");
    let signature = file["signatures"][0].clone();
    file["signatures"]
        .as_array_mut()
        .expect("array")
        .push(signature);
    carrier.put("timestamp.json", &serde_json::to_vec(&file).expect("json"));
    let error = device.refuses(&carrier, day(0)).await;
    assert!(error.contains("Duplicate key ID"), "{error}");
}

#[tokio::test]
async fn metadata_of_two_repositories_does_not_mix() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"one", day(1));
    let old_releases = fleet.file("2.releases.json");
    fleet.push("digits", "2.0.0", b"two", day(2));
    // The older list of releases under the newer name.
    let carrier = fleet.carrier.copy();
    carrier.put("3.releases.json", &old_releases);
    let error = device.refuses(&carrier, day(2)).await;
    assert!(
        error.starts_with("3.releases.json is refused: its length or content is not"),
        "{error}"
    );

    // A snapshot that names a version of targets which says another of itself.
    let carrier = fleet.carrier.copy();
    let mut forgery = Forgery::of(&fleet)
        .version("timestamp", 4)
        .version("snapshot", 4);
    forgery.link("snapshot", "targets");
    forgery.signed.get_mut("snapshot").expect("role")["meta"]["targets.json"]["version"] = json!(7);
    forgery.link("timestamp", "snapshot");
    carrier.put("7.targets.json", &forgery.sign("targets"));
    forgery.publish_unlinked(&carrier);
    let error = device.refuses(&carrier, day(2)).await;
    assert!(
        error.contains("7.targets.json is refused: it says of itself that it is version 1, not 7"),
        "{error}"
    );
}

/// A target entry that is right in itself.
fn entry() -> Value {
    let digest = edgeward_models::Digest::of(b"evil");
    json!({ "length": 4, "hashes": { "sha256": digest } })
}

#[tokio::test]
async fn a_role_may_speak_only_for_its_own_paths() {
    for (role, name) in [
        ("rollouts", "models/digits/1.0.0/model.tflite"),
        ("releases", "groups/radiology.json"),
        ("releases", "devices/00.json"),
        ("releases", "elsewhere.json"),
    ] {
        let fleet = Fleet::new();
        let device = Device::enrolled(&fleet);
        let carrier = fleet.carrier.copy();
        Forgery::of(&fleet)
            .version("timestamp", 2)
            .version("snapshot", 2)
            .version(role, 2)
            .edit(role, |signed| signed["targets"][name] = entry())
            .publish(&carrier);
        let error = device.refuses(&carrier, day(0)).await;
        assert!(error.contains(name), "{error}");
    }
}

#[tokio::test]
async fn target_names_that_are_not_plain_are_refused() {
    for name in [
        "models/../../etc/passwd",
        "models//x",
        "models/X/1",
        "models/a b",
        "models/con:",
    ] {
        let fleet = Fleet::new();
        let device = Device::enrolled(&fleet);
        let carrier = fleet.carrier.copy();
        Forgery::of(&fleet)
            .version("timestamp", 2)
            .version("snapshot", 2)
            .version("releases", 2)
            .edit("releases", |signed| signed["targets"][name] = entry())
            .publish(&carrier);
        device.refuses(&carrier, day(0)).await;
    }
}

#[tokio::test]
async fn a_wish_for_another_group_is_not_obeyed() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.wish("radiology", 1, day(1));
    let carrier = fleet.carrier.copy();
    Forgery::of(&fleet)
        .version("timestamp", 3)
        .version("snapshot", 3)
        .version("rollouts", 3)
        .edit("rollouts", |signed| {
            signed["targets"]["groups/lab.json"] =
                signed["targets"]["groups/radiology.json"].clone();
        })
        .publish(&carrier);
    let repository = device.follows(&carrier, day(1)).await;
    let group = "lab".parse().expect("name");
    let error = repository
        .desired(carrier.as_ref(), &group)
        .await
        .expect_err("other group");
    assert_eq!(
        error.to_string(),
        "groups/lab.json is refused: it is about group radiology"
    );
}

#[tokio::test]
async fn an_empty_carrier_is_told_from_a_hostile_one() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"model", day(1));
    for file in [
        "timestamp.json",
        "2.snapshot.json",
        "1.targets.json",
        "2.releases.json",
    ] {
        let carrier = fleet.carrier.copy();
        carrier.hide(file);
        let error = device.refuses(&carrier, day(1)).await;
        assert_eq!(
            error,
            format!(
                "{file} is not there, or this device may not read it: republish the repository with \
                 `fleetctl sync`, and look at the broker's access list"
            )
        );
    }
}

#[tokio::test]
async fn a_link_that_drops_anywhere_changes_nothing() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    fleet.push("digits", "1.0.0", b"model", day(1));
    for file in [
        "2.root.json",
        "timestamp.json",
        "2.snapshot.json",
        "1.targets.json",
        "1.rollouts.json",
    ] {
        fleet.carrier.break_at(file);
        let error = device.refuses(&fleet.carrier, day(1)).await;
        assert_eq!(error, format!("cannot fetch {file}: the link dropped"));
        fleet.carrier.mend();
    }
    device.follows(&fleet.carrier, day(1)).await;
}

#[tokio::test]
async fn links_and_pipes_in_a_directory_are_not_read() {
    let mut fleet = Fleet::new();
    fleet.push("digits", "1.0.0", b"model", day(1));
    let stick = tempfile::tempdir().expect("tempdir");
    fleet.repository.export(stick.path()).expect("export");
    let secret = stick.path().join("secret");
    std::fs::write(&secret, b"secret").expect("write");
    let metadata = stick.path().join("metadata");
    std::os::unix::fs::symlink(&secret, metadata.join("9.root.json")).expect("symlink");
    std::fs::create_dir(metadata.join("8.root.json")).expect("mkdir");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        metadata.join("7.root.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("fifo");
    let source = edgeward_models::repository::DirectorySource::open(stick.path()).expect("open");
    for (file, problem) in [
        ("9.root.json", "symbolic link"),
        ("8.root.json", "not a regular file"),
        ("7.root.json", "not a regular file"),
    ] {
        let error = source
            .metadata(&file.parse().expect("name"))
            .await
            .expect_err(file);
        assert!(error.what.ends_with(file));
        assert!(
            error.source.to_string().contains(problem),
            "{}",
            error.source
        );
    }
    assert!(
        source
            .metadata(&"6.root.json".parse().expect("name"))
            .await
            .expect("none")
            .is_none()
    );
    // Nor is a whole directory that is a link.
    std::fs::rename(&metadata, stick.path().join("elsewhere")).expect("rename");
    std::os::unix::fs::symlink("elsewhere", &metadata).expect("symlink");
    assert!(
        source
            .metadata(&"timestamp.json".parse().expect("name"))
            .await
            .is_err()
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]

    #[test]
    fn no_changed_byte_of_a_linked_file_goes_unnoticed(
        file in 0usize..4,
        place in proptest::prelude::any::<proptest::sample::Index>(),
        change in 1u8..,
        junk in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
    ) {
        use std::sync::LazyLock;
        static FLEET: LazyLock<std::sync::Mutex<Fleet>> = LazyLock::new(|| Fleet::new().into());
        let fleet = FLEET.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let file = ["1.snapshot.json", "1.targets.json", "1.releases.json", "1.rollouts.json"][file];
            let device = Device::enrolled(&fleet);
            let carrier = fleet.carrier.copy();
            let mut bytes = fleet.file(file);
            let at = place.index(bytes.len());
            bytes[at] ^= change;
            carrier.put(file, &bytes);
            device.refuses(&carrier, day(0)).await;
            // And whatever else may stand in any topic ends in a refusal, not in a panic.
            for file in [file, "timestamp.json", "2.root.json"] {
                let carrier = fleet.carrier.copy();
                carrier.put(file, &junk);
                device.refuses(&carrier, day(0)).await;
                carrier.put_head(file, junk.clone());
                device.refuses(&carrier, day(0)).await;
            }
        });
    }
}
