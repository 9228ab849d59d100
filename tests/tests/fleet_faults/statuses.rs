//! Statuses that the device did not say, or not now: fleetctl neither believes them nor falls over.

use edgeward_models::fleet::topic::Topic;
use edgeward_tests::fleet::path;
use edgeward_tests::publisher::{next_message, publish_retained};
use edgeward_tests::{BrokerKind, Device, Fleet, binaries, wait};

fn topic(device: &Device) -> String {
    let fleet = "hospital".parse().expect("name");
    Topic::Status(device.id().parse().expect("name")).in_fleet(&fleet)
}

/// The row of a device in `fleetctl status --json`.
fn row(fleet: &Fleet, id: &str) -> serde_json::Value {
    let status = fleet.status();
    let devices = status["devices"].as_array().expect("devices");
    let row = devices.iter().find(|row| row["device"] == id);
    row.expect("a row").clone()
}

fn not_believed(fleet: &Fleet, id: &str, words: &str) {
    let said = fleet.fleetctl(&["status"]);
    let all = format!("{said}");
    let table = said.expect_success();
    let line = table
        .lines()
        .find(|line| line.starts_with(id))
        .expect("a line");
    assert!(
        line.contains("NOT BELIEVED") && line.contains(words),
        "{words:?} is not in {line}"
    );
    assert!(
        all.contains(&format!("warning: {id}: a status is not believed")),
        "{all}"
    );
    let row = row(fleet, id);
    assert!(row["verified"] == false && row["status"].is_null(), "{row}");
}

#[test]
fn what_a_device_did_not_say_now_is_neither_believed_nor_counted() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let mut lab = fleet.device("lab-1", "radiology");
    for device in [&mut ward, &mut lab] {
        device.start();
    }
    fleet.push_sample("digits-1.0.0", "radiology");
    for device in [&ward, &lab] {
        device.wait_active("digits", "1.0.0");
    }
    let heard = |version: &str| {
        for id in ["ward-1", "lab-1"] {
            wait::until("both statuses", wait::PATIENCE, || {
                let row = row(&fleet, id);
                let active = &row["status"]["models"][0]["active"]["version"];
                (active == version)
                    .then_some(())
                    .ok_or_else(|| row.to_string())
            });
        }
    };
    heard("1.0.0");
    let old = next_message(&fleet, &topic(&ward));
    fleet.push_sample("digits-2.0.0", "radiology");
    for device in [&ward, &lab] {
        device.wait_active("digits", "2.0.0");
    }
    heard("2.0.0");
    let own = next_message(&fleet, &topic(&ward));
    let foreign = next_message(&fleet, &topic(&lab));

    // A broker that does whatever it likes, and devices that cannot contradict.
    ward.kill();
    lab.kill();
    let broker = fleet.broker.take().expect("a broker");
    broker.permit(|list| list.replace("topic read edgeward", "topic readwrite edgeward"));
    let says = |message: &[u8]| publish_retained(&fleet, vec![(topic(&ward), message.to_vec())]);
    let mut changed = own.clone();
    let middle = changed.len() / 3;
    changed[middle] ^= 1;
    for (message, words) in [
        // Another device's key, which is also its status in a topic that is not its own.
        (&foreign, "does not carry that device's signature"),
        (&changed, ""),
        (&own[..own.len() / 2].to_vec(), "not a signed envelope"),
        (&old, "played again"),
    ] {
        says(message);
        not_believed(&fleet, "ward-1", words);
        // The other's word still counts.
        assert_eq!(row(&fleet, "lab-1")["verified"], true);
    }

    // Nor does a push count them: the version runs on both already, by the statuses as they were.
    let sample = binaries::sample("digits-2.0.0");
    let push = |time: &str| {
        let push = [
            "push",
            path(&sample),
            "--group",
            "radiology",
            "--timeout",
            time,
            "--json",
        ];
        fleet.fleetctl(&push)
    };
    for message in [&foreign, &changed, &old] {
        says(message);
        let said = push("1");
        assert_ne!(said.code, Some(0), "{said}");
        let outcomes: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
        let outcome = outcomes["devices"].as_array().expect("devices");
        let outcome = outcome
            .iter()
            .find(|o| o["device"] == "ward-1")
            .expect("ward-1");
        assert_eq!(outcome["outcome"], "silent", "{said}");
        let reason = outcome["reason"].as_str().expect("a reason");
        assert!(
            reason.contains("unbelievable status was ignored"),
            "{reason}"
        );
    }

    // The devices speak for themselves again.
    fleet.broker = Some(broker);
    for device in [&mut ward, &mut lab] {
        device.start();
    }
    wait::until("ward-1 to be believed", wait::PATIENCE, || {
        let row = row(&fleet, "ward-1");
        (row["verified"] == true)
            .then_some(())
            .ok_or_else(|| row.to_string())
    });
}

#[test]
fn an_audit_log_that_was_cut_short_is_seen_from_outside() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let verified = |what: &str| {
        wait::until(what, wait::PATIENCE, || {
            let row = row(&fleet, "ward-1");
            let active = &row["status"]["models"][0]["active"]["version"];
            (active == "1.0.0")
                .then_some(())
                .ok_or_else(|| row.to_string())
        });
    };
    verified("the first word");
    ward.stop();
    // Whole lines are gone: the chain that is left is in order.
    let log = ward.state_directory().join("audit.log");
    let text = std::fs::read_to_string(&log).expect("read");
    let first: String = text
        .lines()
        .take(1)
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&log, first).expect("write");
    ward.start();
    wait::until("the alarm", wait::PATIENCE, || {
        let row = row(&fleet, "ward-1");
        let problem = row["problem"].as_str().unwrap_or_default().to_owned();
        problem
            .contains("audit log has")
            .then_some(())
            .ok_or_else(|| row.to_string())
    });
    not_believed(&fleet, "ward-1", "cut short");
    fleet
        .fleetctl(&["device", "accept-history", "ward-1"])
        .expect_success();
    verified("the operator's word to count");
}
