//! What devices say, as `push` and `status` take it.

mod desk;

use std::io::Read;
use std::process::{Command, Stdio};

use desk::{Desk, sample, text};
use edgeward_models::fleet::status::Phase;
use edgeward_models::fleet::topic::Topic;

#[test]
fn push_tells_what_became_of_each_device() {
    let desk = Desk::with_broker();
    let good = desk.enroll("ct-1", "radiology");
    let push = |version: &str, timeout: &str| {
        let path = sample(version);
        desk.run(&[
            "push",
            text(&path),
            "--group",
            "radiology",
            "--timeout",
            timeout,
        ])
    };
    // Nobody has spoken.
    let said = push("digits-1.0.0", "1").expect(2);
    assert_eq!(said.out, "ct-1  silent  never seen by this broker\n");

    good.is_online(true);
    good.says(&good.status(1, 2, Some(1), 1, Phase::Active));
    let said = push("digits-1.0.0", "20").expect(0);
    assert_eq!(
        said.out,
        "ct-1  active  digits 1.0.0 on xnnpack (6 of 7 nodes)\n"
    );

    // One device serves the second version, another refuses it and serves on.
    let bad = desk.enroll("ct-2", "radiology");
    good.says(&good.status(2, 3, Some(2), 2, Phase::Active));
    bad.says(&bad.status(1, 3, Some(1), 2, Phase::Refused));
    let said = push("digits-2.0.0", "20").expect(1);
    assert_eq!(
        said.out,
        "ct-1  active   digits 2.0.0 on xnnpack (6 of 7 nodes)\nct-2  refused  golden vector 0 differs\n"
    );

    let rows = desk.run(&["status", "--json"]).expect(0).json();
    let device = &rows["devices"][0];
    assert_eq!(
        (&device["device"], &device["online"], &device["verified"]),
        (&"ct-1".into(), &true.into(), &true.into())
    );
    assert_eq!(device["status"]["models"][0]["active"]["version"], "2.0.0");
    let table = desk.run(&["status", "--group", "radiology"]).expect(0).out;
    assert!(table.starts_with("DEVICE  ONLINE  GROUPS"), "{table}");
    assert!(table.contains("refused 2.0.0"), "{table}");
    let show = desk.run(&["device", "show", "ct-2"]).expect(0).out;
    assert!(
        show.contains("1.0.0 (release 1) on xnnpack, 6 of 7 nodes; refused 2.0.0"),
        "{show}"
    );
}

#[test]
fn a_status_that_another_device_signed_counts_for_nothing() {
    let desk = Desk::with_broker();
    let victim = desk.enroll("ct-1", "radiology");
    let rogue = desk.enroll("ct-2", "lab");
    let lie = victim.status(1, 9, Some(1), 1, Phase::Active);
    rogue.publishes(
        Topic::Status(victim.bundle.device.clone()),
        rogue.signed(&lie),
    );
    let path = sample("digits-1.0.0");
    let said = desk
        .run(&[
            "push",
            text(&path),
            "--group",
            "radiology",
            "--timeout",
            "2",
        ])
        .expect(2);
    assert!(said.out.starts_with("ct-1  silent"), "{}", said.out);
    let rows = desk
        .run(&["status", "--json", "--group", "radiology"])
        .expect(0)
        .json();
    assert_eq!(rows["devices"][0]["verified"], false);
    assert!(rows["devices"][0]["status"].is_null());
    let table = desk.run(&["status"]).expect(0).out;
    assert!(table.contains("NOT BELIEVED"), "{table}");
}

#[test]
fn a_hundred_devices_are_all_heard_though_the_broker_drops_what_it_cannot_hold() {
    let mut desk = Desk::new();
    let devices: Vec<_> = (0..100)
        .map(|n| desk.enroll(&format!("d-{n}"), "radiology"))
        .collect();
    desk.start_broker();
    let messages = devices
        .iter()
        .map(|device| {
            let status = device.status(1, 1, Some(1), 1, Phase::Active);
            (
                Topic::Status(device.bundle.device.clone()),
                device.signed(&status),
            )
        })
        .collect();
    devices[0].publishes_all(messages);
    let rows = desk.run(&["status", "--json"]).expect(0).json();
    let rows = rows["devices"].as_array().expect("devices");
    assert_eq!(rows.len(), 100);
    assert!(rows.iter().all(|row| row["verified"] == true), "{rows:?}");
    let path = sample("digits-1.0.0");
    let said = desk
        .run(&[
            "push",
            text(&path),
            "--group",
            "radiology",
            "--timeout",
            "20",
        ])
        .expect(0);
    assert_eq!(
        said.out
            .lines()
            .filter(|line| line.contains("  active  "))
            .count(),
        100
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let desk = Desk::new();
    desk.enroll("ct-1", "radiology");
    let mut child = Command::new(env!("CARGO_BIN_EXE_fleetctl"))
        .arg("--home")
        .arg(desk.home())
        .args(["device", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .expect("stderr")
        .read_to_string(&mut err)
        .expect("read");
    assert_eq!(child.wait().expect("wait").code(), Some(0), "{err}");
}

#[test]
fn the_broker_ends_when_it_is_told_to() {
    let mut desk = Desk::with_broker();
    let said = desk
        .run(&["broker", "--listen", &format!("127.0.0.1:{}", desk.port)])
        .expect(2);
    assert!(said.err.contains("cannot listen on"), "{}", said.err);
    let broker = rustix::process::Pid::from_raw(desk.broker_id()).expect("pid");
    rustix::process::kill_process(broker, rustix::process::Signal::TERM).expect("signal");
    assert_eq!(desk.wait_for_broker(), Some(0));
}
