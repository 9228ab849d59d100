//! A device of the fleet that has turned, with its own good certificate: what mosquitto, told what `fleetctl` wrote for
//! it, lets it do; and what becomes of a device that was taken out of the fleet.

use std::collections::BTreeSet;
use std::time::Duration;

use edgeward_tests::fleet::path;
use edgeward_tests::http::tls_config;
use edgeward_tests::publisher::next_message;
use edgeward_tests::{BrokerKind, Device, Fleet, wait};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet, PubAckReason};
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};

/// Connects with a device's key and certificate, under any name.
fn connect(
    fleet: &Fleet,
    device: &Device,
    name: &str,
    will: Option<LastWill>,
) -> (Client, Connection) {
    let identity = device.state_directory().join("identity");
    let files = ["certificate.pem", "key.pem"].map(|file| identity.join(file));
    let tls = tls_config(
        &fleet.home().join("ca/ca.pem"),
        Some((&files[0], &files[1])),
    );
    let mut options = MqttOptions::new(name, "localhost", fleet.port());
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.into())));
    options.set_max_packet_size(Some(1 << 20));
    if let Some(will) = will {
        options.set_last_will(will);
    }
    Client::new(options, 64)
}

/// Whether the broker took a message.
fn publish(client: &Client, connection: &mut Connection, topic: &str) -> PubAckReason {
    client
        .publish(topic, QoS::AtLeastOnce, true, "forged")
        .expect("queue a message");
    loop {
        match connection.recv().expect("a connection") {
            Ok(Event::Incoming(Packet::PubAck(ack))) => return ack.reason,
            Ok(_) => {}
            Err(e) => panic!("{topic}: {e}"),
        }
    }
}

fn topic(tail: &str) -> String {
    format!("edgeward/v1/hospital/{tail}")
}

#[test]
fn a_device_reads_the_repository_and_writes_its_own_topics_and_nothing_else() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut victim = fleet.device("ward-1", "radiology");
    victim.configure("[log]\n", "[telemetry]\ninterval_seconds = 1\n\n[log]\n");
    let rogue = fleet.device("ward-2", "radiology");
    fleet.push_sample("digits-1.0.0", "radiology");
    victim.start();
    victim.wait_active("digits", "1.0.0");
    let held = ["repo/metadata/timestamp.json", "device/ward-1/online"].map(topic);
    let before = held.clone().map(|topic| next_message(&fleet, &topic));

    // Under the victim's name too: the name that counts is that of the certificate.
    for name in ["ward-2", "ward-1", "Operator"] {
        let (client, mut connection) = connect(&fleet, &rogue, name, None);
        for denied in [
            "device/ward-1/status",
            "device/ward-1/online",
            "device/ward-1/telemetry",
            "device/ward-2/anything",
            "repo/metadata/timestamp.json",
            "repo/metadata/9.root.json",
            "repo/chunk/0000000000000000000000000000000000000000000000000000000000000000",
        ] {
            let reason = publish(&client, &mut connection, &topic(denied));
            assert_eq!(reason, PubAckReason::NotAuthorized, "{name}: {denied}");
        }
        for permitted in ["device/ward-2/status", "device/ward-2/telemetry"] {
            let reason = publish(&client, &mut connection, &topic(permitted));
            let taken = [PubAckReason::Success, PubAckReason::NoMatchingSubscribers];
            assert!(taken.contains(&reason), "{name}: {permitted}: {reason:?}");
        }
    }

    // A last word under the victim's name, as if the victim had died.
    let will = LastWill::new(&held[1], "forged", QoS::AtLeastOnce, true, None);
    let (client, mut connection) = connect(&fleet, &rogue, "ward-2", Some(will));
    client
        .subscribe(topic("repo/#"), QoS::AtLeastOnce)
        .expect("queue a subscription");
    // The broker refuses such a connection, or takes it and keeps the word to itself when it breaks.
    let _ = connection.recv_timeout(Duration::from_secs(5));
    drop((client, connection));

    // Whatever it subscribes to, it hears the repository and itself.
    let (client, mut connection) = connect(&fleet, &rogue, "ward-2", None);
    let filters = [
        "#",
        "$SYS/#",
        "edgeward/v1/+/device/+/telemetry",
        "edgeward/v1/hospital/device/ward-1/#",
    ];
    for filter in filters {
        client
            .subscribe(filter, QoS::AtLeastOnce)
            .expect("queue a subscription");
    }
    let mut answered = 0;
    let mut heard = BTreeSet::new();
    let mut listen = |connection: &mut Connection, until: &mut dyn FnMut(&Event) -> bool| {
        loop {
            let event = connection.recv().expect("a connection").expect("an event");
            if let Event::Incoming(Packet::Publish(message)) = &event {
                heard.insert(String::from_utf8(message.topic.to_vec()).expect("UTF-8"));
            }
            if until(&event) {
                return;
            }
        }
    };
    listen(&mut connection, &mut |event| {
        answered += u32::from(matches!(event, Event::Incoming(Packet::SubAck(_))));
        answered == filters.len() as u32
    });
    // The victim speaks: the operator hears it, and with the answer to a word of its own the rogue has heard what it will.
    for tail in [
        "device/ward-1/telemetry",
        "device/ward-1/telemetry",
        "device/ward-1/status",
    ] {
        next_message(&fleet, &topic(tail));
    }
    client
        .publish(
            topic("device/ward-2/telemetry"),
            QoS::AtLeastOnce,
            false,
            "x",
        )
        .expect("queue a message");
    listen(&mut connection, &mut |event| {
        matches!(event, Event::Incoming(Packet::PubAck(_)))
    });
    let own = topic("device/ward-2/");
    let foreign: Vec<&String> = heard
        .iter()
        .filter(|heard| !heard.starts_with(&topic("repo/")) && !heard.starts_with(&own))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(heard.contains(&held[0]), "{heard:?}");

    assert!(held.map(|topic| next_message(&fleet, &topic)) == before);
    victim
        .answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
}

#[test]
fn a_removed_device_is_told_is_turned_away_and_serves_on_until_it_joins_again() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut stays = fleet.device("ward-1", "radiology");
    let mut leaves = fleet.device("ward-2", "radiology");
    fleet.push_sample("digits-1.0.0", "radiology");
    for device in [&mut stays, &mut leaves] {
        device.start();
        device.wait_active("digits", "1.0.0");
    }
    fleet
        .fleetctl(&["device", "remove", "ward-2"])
        .expect_success();
    let told = |warnings: &[String]| {
        warnings
            .iter()
            .any(|w| w.contains("taken out of the fleet"))
    };
    leaves.wait_warnings("its removal", told);
    let status = fleet.status().to_string();
    assert!(
        status.contains("ward-1") && !status.contains("ward-2"),
        "{status}"
    );

    // The broker reads the list of revoked certificates when it starts.
    fleet.broker().restart();
    fleet.fleetctl(&["sync"]).expect_success();
    let (_client, mut connection) = connect(&fleet, &leaves, "ward-2", None);
    let refused = wait::until("the broker's word", wait::PATIENCE, || {
        match connection.recv_timeout(Duration::from_secs(1)) {
            Ok(Err(e)) => Ok(e.to_string()),
            Ok(Ok(event)) => panic!("a revoked certificate is taken: {event:?}"),
            Err(e) => Err(format!("{e:?}")),
        }
    });
    assert!(!refused.is_empty());
    fleet.push_sample("digits-2.0.0", "radiology");
    stays.wait_active("digits", "2.0.0");
    for _ in 0..2 {
        leaves
            .answers_as("digits", "digits-1.0.0")
            .expect("it serves on");
        leaves.kill();
        leaves.start();
    }

    // It comes back with a new key; with the one that was removed it cannot.
    leaves.stop();
    let file = |end: &str| fleet.directory().join(format!("again.{end}"));
    let (request, bundle) = (file("csr.pem"), file("bundle.json"));
    let enroll = ["device", "enroll", path(&request), "--id", "ward-2"];
    let rest = ["--group", "radiology", "--out", path(&bundle)];
    let enroll = [&enroll[..], &rest[..]].concat();
    let ask = ["enroll", "--request", path(&request)];
    leaves.edgeward(&ask).expect_success();
    let said = fleet.fleetctl(&enroll);
    assert_eq!(said.code, Some(2), "{said}");
    assert!(format!("{said}").contains("--new-key"), "{said}");
    leaves
        .edgeward(&[&ask[..], &["--new-key"]].concat())
        .expect_success();
    fleet.fleetctl(&enroll).expect_success();
    leaves
        .edgeward(&["enroll", "--accept", path(&bundle)])
        .expect_success();
    leaves.start();
    leaves.wait_active("digits", "2.0.0");
    leaves.wait_warnings("nothing of a removal", |warnings| !told(warnings));
}
