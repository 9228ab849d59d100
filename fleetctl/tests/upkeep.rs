//! Keys rotated, roles and certificates renewed, and a doctor who says when that is due.

mod desk;

use std::fs;

use desk::Desk;
use edgeward_models::sign::Repository;
use serde_json::Value;

/// The key ids by role, and whether each key is here.
fn keys(desk: &Desk) -> Vec<(String, String)> {
    let list = desk.run(&["key", "list", "--json"]).expect(0).json();
    let roles = list["roles"].as_array().expect("roles");
    let key = |role: &Value| {
        assert_eq!(role["here"], true, "{role}");
        (role["role"].to_string(), role["keys"][0].to_string())
    };
    roles.iter().map(key).collect()
}

fn root_version(desk: &Desk) -> u64 {
    let repository = Repository::open(&desk.home().join("repository"));
    repository.expect("open").root_version()
}

#[test]
fn rotated_keys_take_the_place_of_the_old_ones_and_sign_from_then_on() {
    let desk = Desk::with_broker();
    let before = keys(&desk);
    desk.run(&["key", "rotate", "timestamp", "releases"])
        .expect(0);
    let after = keys(&desk);
    let changed: Vec<&str> = before
        .iter()
        .zip(&after)
        .filter(|(a, b)| a != b)
        .map(|(a, _)| a.0.as_str())
        .collect();
    assert_eq!(changed, ["\"releases\"", "\"timestamp\""]);
    assert_eq!(root_version(&desk), 2);
    let retired = fs::read_dir(desk.home().join("keys/retired")).expect("retired");
    assert_eq!(retired.count(), 2);
    desk.run(&["refresh"]).expect(0);
    // All of them, the root's too, and a renewal without any.
    desk.run(&[
        "key",
        "rotate",
        "root",
        "targets",
        "releases",
        "rollouts",
        "snapshot",
        "timestamp",
    ])
    .expect(0);
    assert!(keys(&desk).iter().zip(&after).all(|(a, b)| a != b));
    let same = keys(&desk);
    desk.run(&["key", "renew"]).expect(0);
    assert_eq!((keys(&desk), root_version(&desk)), (same, 4));
    desk.run(&["doctor"]).expect(0);
}

#[test]
fn a_rotation_that_was_cut_short_is_finished_or_taken_back() {
    let desk = Desk::new();
    let file = |name: &str| desk.home().join("keys").join(name);
    // Before anything was signed, for want of a key that is elsewhere: the new one waits, and the change in a file.
    let away = desk.path("root.pem");
    fs::rename(file("root.pem"), &away).expect("rename");
    let rotate = ["key", "rotate", "timestamp", "--offline"];
    let said = desk.run(&rotate).expect(1);
    assert!(
        said.err.contains("role root (the keys before) has 0 of 1"),
        "{}",
        said.err
    );
    assert_eq!(root_version(&desk), 1);
    let waiting = fs::read(file("timestamp.next.pem")).expect("a waiting key");
    desk.run(&["refresh", "--offline"]).expect(0);
    fs::rename(away, file("root.pem")).expect("rename");
    desk.run(&rotate).expect(0);
    assert_eq!(
        fs::read(file("timestamp.pem")).expect("the new key"),
        waiting
    );
    // After it was signed, and before the new key was in its place.
    fs::rename(file("timestamp.pem"), file("timestamp.next.pem")).expect("rename");
    let retired = fs::read_dir(file("retired")).expect("retired").next();
    let retired = retired.expect("one").expect("entry").path();
    fs::rename(retired, file("timestamp.pem")).expect("rename");
    desk.run(&["refresh", "--offline"]).expect(0);
    assert!(!file("timestamp.next.pem").exists());
    keys(&desk);
    // A key that is not here is not rotated here.
    fs::remove_file(file("targets.pem")).expect("remove");
    let said = desk
        .run(&["key", "rotate", "targets", "--offline"])
        .expect(2);
    assert!(said.err.contains("the key of role targets"), "{}", said.err);
    assert_eq!(root_version(&desk), 2);
}

#[test]
fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let mut desk = Desk::with_broker();
    desk.enroll("ct-1", "radiology");
    let said = desk.run(&["doctor"]).expect(0);
    for what in [
        "the role root",
        "broker shows",
        "device ct-1",
        "holds what was published",
    ] {
        assert!(said.out.contains(what), "no {what} in {}", said.out);
    }
    // Signed and not published.
    desk.run(&["refresh", "--offline"]).expect(0);
    let said = desk.run(&["doctor", "--json"]).expect(1).json();
    let findings = said["findings"].as_array().expect("findings");
    let wrong: Vec<&Value> = findings.iter().filter(|f| f["state"] != "good").collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert_eq!(wrong[0]["advice"], "run `fleetctl sync`");
    desk.run(&["sync"]).expect(0);
    // Another role's key under the wrong name.
    let key = |role: &str| desk.home().join(format!("keys/{role}.pem"));
    let timestamp = fs::read(key("timestamp")).expect("read");
    fs::copy(key("snapshot"), key("timestamp")).expect("copy");
    let said = desk.run(&["doctor", "--offline"]).expect(1);
    assert!(
        said.out
            .contains("the key of role timestamp in this directory"),
        "{}",
        said.out
    );
    fs::write(key("timestamp"), timestamp).expect("write");
    desk.stop_broker();
    desk.run(&["doctor", "--offline"]).expect(0);
    let said = desk.run(&["doctor"]).expect(2);
    assert!(
        said.out.contains("the broker does not answer"),
        "{}",
        said.out
    );
}
