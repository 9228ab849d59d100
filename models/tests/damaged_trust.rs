//! A trust file that cannot be read is an error with advice, never a fresh start.

mod common;

use common::forge::Forgery;
use common::{Device, Fleet, POLICY, day, text};
use edgeward_models::verify::TrustStore;

async fn device_with_two_generations() -> (Fleet, Device) {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(0)).await;
    fleet.push("digits", "1.0.0", b"model", day(1));
    device.follows(&fleet.carrier, day(1)).await;
    (fleet, device)
}

fn refusal(device: &Device) -> String {
    text(Err(
        TrustStore::open(&device.path()).expect_err("unreadable")
    ))
}

#[tokio::test]
async fn a_truncated_zeroed_or_altered_trust_file_is_refused_with_advice() {
    let (_fleet, device) = device_with_two_generations().await;
    let file = device.path().join("trust");
    let whole = std::fs::read(&file).expect("read");
    let mut altered = whole.clone();
    let last = altered.len() - 20;
    altered[last] ^= 1;
    for damage in [
        &whole[..0],
        &whole[..whole.len() / 2],
        &vec![0; whole.len()][..],
        &altered,
    ] {
        std::fs::write(&file, damage).expect("damage");
        let error = refusal(&device);
        assert!(error.contains("is unreadable"), "{error}");
        assert!(
            error.contains("the generation before it, which knows timestamp 1, is whole"),
            "{error}"
        );
        assert!(
            error.contains("nothing new is accepted until it is mended"),
            "{error}"
        );
        // Enrolling over it does not paper over it either.
        let root = _fleet.repository.root().expect("root");
        assert!(TrustStore::create(&device.path(), &root).is_err());
    }
    // What the advice says works, at the price that it names.
    std::fs::rename(device.path().join("trust.before"), &file).expect("rename");
    assert_eq!(device.store().timestamp_version(), 1);
    std::fs::write(&file, b"").expect("damage");
    assert!(refusal(&device).contains("enrol this device again"));
}

#[tokio::test]
async fn a_power_cut_during_an_update_leaves_the_update_before() {
    let (fleet, device) = device_with_two_generations().await;
    // The cut came between the two renames: only the generation before has its name.
    std::fs::remove_file(device.path().join("trust")).expect("remove");
    assert_eq!(device.store().timestamp_version(), 1);
    // Its copies may be gone by then: nothing is believed without them, and all is fetched again.
    assert!(device.store().current(day(1), POLICY).is_err());
    device.follows(&fleet.carrier, day(1)).await;
    assert_eq!(
        device.current(day(1)).expect("current").timestamp_version(),
        2
    );
}

#[tokio::test]
async fn a_power_cut_between_copies_and_state_leaves_the_copies_that_the_old_state_names() {
    let mut fleet = Fleet::new();
    let device = Device::enrolled(&fleet);
    let honest = fleet.carrier.copy();
    // Under the old keys, the numbers that the fleet's own next files have after the rotation.
    Forgery::of(&fleet)
        .version("timestamp", 2)
        .version("snapshot", 2)
        .publish(&honest);
    device.follows(&honest, day(0)).await;
    let read_all = |directory: std::path::PathBuf| -> Vec<_> {
        let entries = std::fs::read_dir(directory).expect("list");
        let paths = entries.map(|entry| entry.expect("entry").path());
        let files = paths.filter(|path| path.is_file());
        files
            .map(|path| (path.clone(), std::fs::read(path).expect("read")))
            .collect()
    };
    let states = read_all(device.path());
    let copies = read_all(device.path().join("metadata"));
    assert!(states.len() >= 2 && copies.len() >= 4);
    fleet.rotate(day(1));
    device.follows(&fleet.carrier, day(1)).await;
    // The cut: the new copies are there, the new state is not, and nothing was let go of.
    for (path, bytes) in states {
        std::fs::write(path, bytes).expect("write");
    }
    for (path, bytes) in copies.iter().filter(|(path, _)| !path.exists()) {
        std::fs::write(path, bytes).expect("write");
    }
    let current = device.current(day(1)).expect("current");
    assert_eq!(current.timestamp_version(), 2);
}

#[tokio::test]
async fn a_state_of_a_newer_program_is_not_misread() {
    let (_fleet, device) = device_with_two_generations().await;
    let file = edgeward_models::durable::Generations::new(device.path().join("trust"));
    let edgeward_models::durable::Stored::Good(bytes) = file.read().expect("read") else {
        panic!("not good");
    };
    let newer = String::from_utf8(bytes)
        .expect("text")
        .replace("\"format\":1", "\"format\":2");
    file.write(newer.as_bytes(), edgeward_models::durable::Access::Owner)
        .expect("write");
    assert!(
        refusal(&device).contains("update it"),
        "{}",
        refusal(&device)
    );
}

#[tokio::test]
async fn a_device_belongs_to_one_fleet() {
    let (mut fleet, device) = device_with_two_generations().await;
    let stranger = Fleet::new();
    let root = stranger.repository.root().expect("root");
    let error = TrustStore::create(&device.path(), &root).expect_err("another fleet");
    assert!(error.to_string().contains("another root"), "{error}");
    // Enrolled again by its own, nothing is lost.
    let root = fleet.repository.root().expect("root");
    let store = TrustStore::create(&device.path(), &root).expect("same fleet");
    assert_eq!(store.timestamp_version(), 2);
    // Also after a rotation that it has followed.
    fleet.rotate(day(2));
    device.follows(&fleet.carrier, day(2)).await;
    let root = fleet.repository.root().expect("root");
    let store = TrustStore::create(&device.path(), &root).expect("same fleet");
    assert_eq!(store.timestamp_version(), 3);
}

#[test]
fn a_device_that_was_never_enrolled_says_so() {
    let directory = tempfile::tempdir().expect("tempdir");
    let error = TrustStore::open(&directory.path().join("trust")).expect_err("none");
    assert!(
        error.to_string().contains("enrol this device first"),
        "{error}"
    );
    for junk in [
        &b""[..],
        b"{}",
        b"null",
        b"{\"signed\":{},\"signatures\":[]}",
    ] {
        assert!(TrustStore::create(&directory.path().join("trust"), junk).is_err());
    }
}
