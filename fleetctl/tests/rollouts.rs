//! Rollouts in waves, with devices that say what a test wants them to say.

mod desk;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use desk::{Desk, Device, Said, sample, text};
use edgeward_models::fleet::health::Soak;
use edgeward_models::fleet::status::Phase;
use serde_json::{Value, json};

const GROUP: &str = "radiology";

fn ward(devices: &[&str]) -> (Desk, BTreeMap<String, Device>) {
    let desk = Desk::with_broker();
    let enroll = |id: &&str| ((*id).to_owned(), desk.enroll(id, GROUP));
    let devices = devices.iter().map(enroll).collect();
    (desk, devices)
}

fn push(desk: &Desk, name: &str, more: &[&str]) -> Said {
    let sample = sample(name);
    desk.run(&[&["push", text(&sample), "--group", GROUP], more].concat())
}

fn rollout(desk: &Desk, verb: &str, more: &[&str]) -> Said {
    desk.run(&[&["rollout", verb, "digits", "--group", GROUP], more].concat())
}

/// The only rollout under way.
fn under_way(desk: &Desk) -> Value {
    let list = desk.run(&["rollout", "list", "--json"]).expect(0).json();
    let rollouts = list["rollouts"].as_array().expect("rollouts").clone();
    assert_eq!(rollouts.len(), 1, "{rollouts:?}");
    rollouts[0].clone()
}

/// What the group should run now.
fn wish(desk: &Desk) -> Value {
    let list = desk.run(&["group", "list", "--json"]).expect(0).json();
    list["groups"][0]["desired"]["models"]["digits"].clone()
}

/// The device serves version 2.0.0 of this rollout and has watched it.
fn is_well(device: &Device, sequence: u64, rollout: &Value) {
    let mut status = device.status(sequence, 2, Some(2), 2, Phase::Active);
    let rollout = rollout["wish"]["rollout"].as_str().expect("an id");
    status.models[0].rollout = Some(rollout.parse().expect("name"));
    status.models[0].soak = Some(Soak::Passed);
    device.says(&status);
}

#[test]
fn waves_open_at_a_word_stop_at_a_word_and_are_taken_back_at_a_word() {
    let (desk, devices) = ward(&["ct-1", "ct-2", "ct-3", "us-1"]);
    push(&desk, "digits-1.0.0", &["--no-wait"]).expect(0);
    let waves = ["--canary", "ct-1", "--waves", "50%", "--approve"];
    push(
        &desk,
        "digits-2.0.0",
        &[&waves[..], &["--no-wait"]].concat(),
    )
    .expect(0);
    let first = under_way(&desk);
    assert_eq!(
        (&first["moving"], &first["devices"]),
        (&json!(1), &json!(4))
    );
    assert_eq!(first["wish"]["waves"]["canaries"], json!(["ct-1"]));

    // An old word of the same device about another rollout is none about this one.
    let said = rollout(&desk, "advance", &[]).expect(2);
    assert!(
        said.err.contains("1 of the devices of wave 1 of 3"),
        "{}",
        said.err
    );
    is_well(&devices["ct-1"], 1, &first);
    let said = rollout(&desk, "advance", &[]).expect(0);
    assert!(said.err.contains("wave 2 of 3: 2 devices"), "{}", said.err);
    assert_eq!(
        under_way(&desk)["wish"]["rollout"],
        first["wish"]["rollout"]
    );

    rollout(&desk, "pause", &[]).expect(0);
    let table = desk.run(&["rollout", "list"]).expect(0).out;
    assert!(table.contains("2/3") && table.contains("paused"), "{table}");
    rollout(&desk, "resume", &[]).expect(0);
    assert_eq!(under_way(&desk)["wish"]["waves"]["paused"], json!(false));

    rollout(&desk, "abort", &["--reason", "wrong labels"]).expect(0);
    let back = wish(&desk);
    assert_eq!(back["version"], "1.0.0");
    assert_eq!(back["withdrawn"]["version"], "2.0.0");
    assert_eq!(back["withdrawn"]["reason"], "wrong labels");
    assert_ne!(back["rollout"], first["wish"]["rollout"]);
    let said = rollout(&desk, "abort", &[]).expect(2);
    assert!(said.err.contains("no rollout of digits"), "{}", said.err);
}

#[test]
fn silence_past_the_deadline_counts_as_failure() {
    let (desk, devices) = ward(&["ct-1", "ct-2"]);
    push(&desk, "digits-1.0.0", &["--no-wait"]).expect(0);
    // It has a say, and it is about something else.
    devices["ct-1"].says(&devices["ct-1"].status(1, 1, Some(1), 1, Phase::Active));
    let waves = [
        "--waves",
        "1",
        "--soak",
        "0",
        "--silence",
        "2",
        "--timeout",
        "1",
    ];
    let said = push(&desk, "digits-2.0.0", &[&waves[..], &["--json"]].concat()).expect(1);
    let said = said.json();
    assert_eq!(said["outcome"], "halted", "{said}");
    let reason = said["reason"].as_str().expect("a reason");
    assert!(reason.contains("silent until the deadline"), "{reason}");
    assert_eq!(said["devices"][0]["result"]["outcome"], "silent", "{said}");
    let back = wish(&desk);
    assert_eq!(
        (&back["version"], &back["waves"]),
        (&json!("1.0.0"), &Value::Null)
    );
}

#[test]
fn a_first_version_that_fails_has_nothing_to_go_back_to_and_another_push_takes_its_place() {
    let (desk, devices) = ward(&["ct-1", "ct-2"]);
    let waves = ["--canary", "ct-1", "--waves", "50%"];
    push(
        &desk,
        "digits-1.0.0",
        &[&waves[..], &["--no-wait"]].concat(),
    )
    .expect(0);
    let first = under_way(&desk);
    let mut status = devices["ct-1"].status(1, 1, None, 1, Phase::Refused);
    let id = first["wish"]["rollout"].as_str().expect("an id");
    status.models[0].rollout = Some(id.parse().expect("name"));
    devices["ct-1"].says(&status);
    let said = rollout(&desk, "watch", &[]).expect(1);
    assert!(said.err.contains("nothing to go back to"), "{}", said.err);
    assert!(said.out.contains("golden vector 0 differs"), "{}", said.out);
    let table = desk.run(&["rollout", "list"]).expect(0).out;
    assert!(table.contains("halted: 1 of 1 devices failed"), "{table}");
    // Whoever watches it again is told so at once.
    rollout(&desk, "watch", &[]).expect(1);

    std::thread::scope(|scope| {
        push(&desk, "digits-2.0.0", &["--waves", "1", "--no-wait"]).expect(0);
        let watch = scope.spawn(|| rollout(&desk, "watch", &[]));
        // At whatever moment: something else is asked for from then on.
        push(&desk, "digits-2.0.0", &["--no-wait"]).expect(0);
        let said = watch.join().expect("watch").expect(2);
        let known = ["superseded", "no rollout of digits"];
        assert!(
            known.iter().any(|word| said.err.contains(word)),
            "{}",
            said.err
        );
    });
    assert_eq!(wish(&desk)["version"], "2.0.0");
}

#[test]
fn waves_that_make_no_sense_are_refused_before_anything_is_signed() {
    let (desk, _) = ward(&["ct-1"]);
    for (arguments, words) in [
        (&["--waves", "50%,10%"][..], "get smaller"),
        (&["--waves", "0"], "no size of a wave"),
        (&["--canary", "us-9"], "not in group radiology"),
        (&["--approve"], "--waves or --canary"),
        (&["--waves", "1", "--percent", "10"], "cannot be used with"),
    ] {
        let said = push(&desk, "digits-1.0.0", arguments).expect(2);
        assert!(said.err.contains(words), "{arguments:?}: {}", said.err);
    }
    assert_eq!(wish(&desk), Value::Null);
}

/// Asks until it is so; panics with what was there at last.
fn until(what: &str, mut probe: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(last) = probe() {
        assert!(Instant::now() < end, "waited for {what}: {last}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_controller_widens_all_rollouts_whenever_it_runs_and_the_history_says_who_did_what() {
    let (desk, devices) = ward(&["ct-1", "ct-2", "ct-3"]);
    push(&desk, "digits-1.0.0", &["--no-wait"]).expect(0);
    let waves = ["--canary", "ct-1", "--waves", "100%", "--no-wait"];
    let version = |sequence: u64, major| {
        for device in devices.values() {
            device.says(&device.status(sequence, 1, Some(major), major, Phase::Active));
        }
    };
    version(1, 1);

    // What would change is shown, and nothing is signed for that.
    let before = desk.run(&["rollout", "list", "--json"]).expect(0).json();
    let dry = push(
        &desk,
        "digits-2.0.0",
        &["--waves", "1", "--dry-run", "--json"],
    );
    let dry = dry.expect(0).json();
    let rows = dry["differences"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{dry}");
    assert_eq!(
        rows.iter().filter(|row| row["now"] == true).count(),
        1,
        "{dry}"
    );
    assert_eq!(
        desk.run(&["rollout", "list", "--json"]).expect(0).json(),
        before
    );
    let said = desk.run(&["diff", GROUP]).expect(0);
    assert!(said.err.contains("all 3 devices"), "{}", said.err);

    push(&desk, "digits-2.0.0", &waves).expect(0);
    let rollout = under_way(&desk);
    let table = desk.run(&["diff", GROUP]).expect(0).out;
    for (device, when) in [("ct-1", "now"), ("ct-2", "later")] {
        let line = table.lines().find(|line| line.contains(device));
        let line = line.unwrap_or_else(|| panic!("{table}"));
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, [device, "digits", "1.0.0", "2.0.0", when], "{table}");
    }
    drop(desk.start_controller());
    let running = desk.start_controller();
    assert_eq!(
        under_way(&desk)["moving"],
        1,
        "nothing is known of ct-1 yet"
    );
    is_well(&devices["ct-1"], 2, &rollout);
    until("the second wave", || match &under_way(&desk)["moving"] {
        moving if *moving == 3 => Ok(()),
        moving => Err(moving.to_string()),
    });
    // Whatever another one missed, it finds.
    drop(running);
    is_well(&devices["ct-2"], 2, &rollout);
    is_well(&devices["ct-3"], 2, &rollout);
    let _running = desk.start_controller();
    until("the end", || match &wish(&desk)["waves"] {
        Value::Null => Ok(()),
        waves => Err(waves.to_string()),
    });
    assert_eq!(wish(&desk)["version"], "2.0.0");

    let history = desk.run(&["history", GROUP, "--json"]).expect(0).json();
    let changes = history["changes"].as_array().expect("changes");
    let what = changes.iter().map(|c| c["what"].as_str().expect("words"));
    assert_eq!(
        what.collect::<Vec<_>>(),
        [
            "push digits 1.0.0",
            "push digits 2.0.0 (wave 1 of 2)",
            "widen digits 2.0.0 (wave 2 of 2)",
            "complete digits 2.0.0",
        ]
    );
    assert!(
        changes.iter().all(|c| c["by"] == "night shift"),
        "{history}"
    );
}
