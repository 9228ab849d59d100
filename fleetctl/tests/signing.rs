//! Two people, two machines, one file between them.

mod desk;

use std::fs;
use std::path::{Path, PathBuf};

use desk::{Desk, Said, sample, text};

/// A directory of an operator with a copy of the repository, and no keys.
fn joined(desk: &Desk, name: &str) -> PathBuf {
    let stick = desk.path("stick");
    desk.run(&["export", text(&stick)]).expect(0);
    let home = desk.path(name);
    let broker = format!("localhost:{}", desk.port);
    let init = [
        "init",
        "hospital",
        "--broker",
        &broker,
        "--join",
        text(&stick),
    ];
    desk.run_in(&home, &init).expect(0);
    home
}

/// A further desk, with a key for a role and its public half.
fn further_desk(desk: &Desk, name: &str, role: &str) -> (PathBuf, PathBuf) {
    let home = joined(desk, name);
    let public = desk.path(&format!("{name}-{role}.pem"));
    let generate = ["key", "generate", role, "--out", text(&public)];
    desk.run_in(&home, &generate).expect(0);
    (home, public)
}

fn catch_up(desk: &Desk, home: &Path) {
    let stick = desk.path("stick");
    desk.run(&["export", text(&stick)]).expect(0);
    desk.run_in(home, &["pull", text(&stick)]).expect(0);
}

/// The file in which a change waits.
fn waits(said: Said) -> String {
    let said = said.expect(1);
    assert!(said.err.contains("nothing is changed yet"), "{}", said.err);
    said.out.trim().to_owned()
}

#[test]
fn two_of_three_sign_a_push_offline_and_one_may_be_revoked() {
    let desk = Desk::new();
    let (bob, bobs) = further_desk(&desk, "bob", "releases");
    let (carol, carols) = further_desk(&desk, "carol", "releases");
    for public in [&bobs, &carols] {
        desk.run(&["key", "add", "releases", text(public), "--offline"])
            .expect(0);
    }
    for home in [&bob, &carol] {
        catch_up(&desk, home);
    }
    let sign = |home: &Path, file: &str| desk.run_in(home, &["sign", file, "--yes"]);
    let publish = |file: &str| desk.run(&["publish", file, "--offline"]);
    let file = waits(desk.run(&["key", "threshold", "releases", "2", "--offline"]));
    sign(&bob, &file).expect(0);
    publish(&file).expect(0);
    let list = desk.run(&["key", "list"]).expect(0).out;
    assert!(list.contains("2 of 3"), "{list}");

    let model = sample("digits-1.0.0");
    let push = ["push", text(&model), "--group", "radiology", "--offline"];
    let file = waits(desk.run(&push));
    let said = publish(&file).expect(1);
    assert!(
        said.err.contains("role releases has 1 of 2 signatures"),
        "{}",
        said.err
    );
    // Carol's copy is from before the threshold, and Bob's; what they do not know follows from what they know.
    let asked = desk.run_in(&carol, &["sign", &file]).expect(2);
    assert!(asked.err.contains("--yes"), "{}", asked.err);
    for words in [
        "+ models/digits/1.0.0/model.tflite: ",
        "+ groups/radiology.json: ",
        "models.digits.version: \"1.0.0\"",
    ] {
        assert!(asked.out.contains(words), "no {words:?} in {}", asked.out);
    }
    let said = sign(&carol, &file).expect(0);
    assert!(
        said.err.contains("all signatures are there"),
        "{}",
        said.err
    );
    let said = sign(&carol, &file).expect(2);
    assert!(said.err.contains("has not signed it"), "{}", said.err);
    publish(&file).expect(0);
    let groups = desk.run(&["group", "list"]).expect(0).out;
    assert!(groups.contains("digits 1.0.0"), "{groups}");
    // Once is enough: what is carried out is not carried out again.
    let said = publish(&file).expect(2);
    assert!(said.err.contains("the repository moved on"), "{}", said.err);

    // Bob's key is revoked: what stands has two other signatures, so nobody else is needed. It signs nothing more.
    let list = desk
        .run_in(&bob, &["key", "list", "--json"])
        .expect(0)
        .json();
    let role = &list["roles"][2];
    assert_eq!(role["role"], "releases", "{list}");
    let id = role["own"].as_str().expect("Bob's key");
    let revoke = ["key", "revoke", "releases", &id[..12], "--offline"];
    desk.run(&revoke).expect(0);
    let model = sample("digits-2.0.0");
    let push = ["push", text(&model), "--group", "radiology", "--offline"];
    let file = waits(desk.run(&push));
    let before = fs::read(&file).expect("read");
    let said = sign(&bob, &file).expect(2);
    assert!(said.err.contains("none of the keys"), "{}", said.err);
    assert!(fs::read(&file).expect("read") == before);
    sign(&carol, &file).expect(0);
    publish(&file).expect(0);
    desk.run(&["doctor", "--offline"]).expect(0);
}

#[test]
fn a_root_rotated_by_two_machines_follows_both_thresholds() {
    let desk = Desk::new();
    let (bob, public) = further_desk(&desk, "bob", "root");
    desk.run(&["key", "add", "root", text(&public), "--offline"])
        .expect(0);
    catch_up(&desk, &bob);
    let file = waits(desk.run(&["key", "threshold", "root", "2", "--offline"]));
    desk.run_in(&bob, &["sign", &file, "--yes"]).expect(0);
    desk.run(&["publish", &file, "--offline"]).expect(0);
    // The first desk's root key is replaced: both sign for the keys before, and both for those after.
    let file = waits(desk.run(&["key", "rotate", "root", "--offline"]));
    let said = desk.run(&["publish", &file, "--offline"]).expect(1);
    assert!(
        said.err.contains("role root (the keys before) has 1 of 2"),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("role root (the keys after) has 1 of 2"),
        "{}",
        said.err
    );
    catch_up(&desk, &bob);
    desk.run_in(&bob, &["sign", &file, "--yes"]).expect(0);
    desk.run(&["publish", &file, "--offline"]).expect(0);
    assert!(!desk.home().join("keys/root.next.pem").exists());
    let list = desk.run(&["key", "list"]).expect(0).out;
    assert!(!list.contains("ANOTHER KEY"), "{list}");
    desk.run(&["refresh", "--offline"]).expect(0);
}

#[test]
fn two_operators_with_copies_of_their_own_publish_in_turn() {
    let desk = Desk::with_broker();
    desk.run(&["sync"]).expect(0);
    let second = joined(&desk, "second");
    // An operator in full, with the same keys and certificate.
    for directory in ["keys", "ca"] {
        for entry in fs::read_dir(desk.home().join(directory)).expect("list") {
            let from = entry.expect("entry").path();
            fs::copy(
                &from,
                second.join(directory).join(from.file_name().expect("name")),
            )
            .expect("copy");
        }
    }
    let model = sample("digits-1.0.0");
    let push = ["push", text(&model), "--group", "radiology", "--no-wait"];
    desk.run(&push).expect(0);
    // The other knows nothing of it, is told, and follows.
    let said = desk.run_in(&second, &["refresh"]).expect(2);
    assert!(said.err.contains("fleetctl pull"), "{}", said.err);
    desk.run_in(&second, &["pull"]).expect(0);
    let groups = desk.run_in(&second, &["group", "list"]).expect(0).out;
    assert!(groups.contains("digits 1.0.0"), "{groups}");
    let model = sample("digits-2.0.0");
    let push = ["push", text(&model), "--group", "radiology", "--no-wait"];
    desk.run_in(&second, &push).expect(0);
    // Both at once: the one who lost is told so, gives up its change and makes it anew.
    let own = sample("breast-cancer-1.0.0");
    let lost = ["push", text(&own), "--group", "radiology", "--offline"];
    desk.run(&lost).expect(0);
    let said = desk.run(&["sync"]).expect(2);
    assert!(said.err.contains("pull --discard-own"), "{}", said.err);
    let said = desk.run(&["pull"]).expect(2);
    assert!(said.err.contains("was not published"), "{}", said.err);
    desk.run(&["pull", "--discard-own"]).expect(0);
    desk.run(&["push", text(&own), "--group", "radiology", "--no-wait"])
        .expect(0);
    let groups = desk.run(&["group", "list"]).expect(0).out;
    assert!(
        groups.contains("digits 2.0.0") && groups.contains("breast-cancer 1.0.0"),
        "{groups}"
    );
    desk.run(&["doctor"]).expect(0);
}
