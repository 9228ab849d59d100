//! Devices that join with a token, and secrets that are seen nowhere.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgeward_tests::fleet::path;
use edgeward_tests::process::{self, Finished};
use edgeward_tests::{BrokerKind, Device, Fleet, binaries};
use jiff::{SignedDuration, Timestamp};

/// A device that is in no fleet yet.
fn stranger(fleet: &Fleet, id: &str) -> Device {
    Device::new(id, fleet.directory())
}

/// The device's request with a token.
fn asks(fleet: &Fleet, device: &Device, token: &Path, serial: &str) -> PathBuf {
    let request = fleet
        .directory()
        .join(format!("{}.request.json", device.id()));
    let enroll = [
        "enroll",
        "--request",
        path(&request),
        "--claim",
        path(token),
    ];
    device
        .edgeward(&[&enroll[..], &["--serial", serial]].concat())
        .expect_success();
    request
}

fn refused(said: Finished, words: &str) {
    assert_eq!(said.code, Some(2), "{said}");
    assert!(format!("{said}").contains(words), "no {words:?} in {said}");
}

#[test]
fn a_token_lets_one_listed_device_in_once_and_in_time() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let token = fleet.directory().join("token");
    let create = ["claim", "create", "--serial", "SN-1", "--serial", "SN-2"];
    let rest = ["--group", "radiology", "--out", path(&token)];
    fleet
        .fleetctl(&[&create[..], &rest[..]].concat())
        .expect_success();
    let mode = std::fs::metadata(&token).expect("a token").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let [mut first, second, third] = ["sn-1", "sn-2", "sn-3"].map(|id| stranger(&fleet, id));

    // Not listed; changed on its way; too late.
    let request = asks(&fleet, &third, &token, "SN-3");
    refused(
        fleet.fleetctl(&["claim", "accept", path(&request)]),
        "not for serial number \"SN-3\"",
    );
    let text = std::fs::read_to_string(&request).expect("read");
    std::fs::write(&request, text.replace("SN-3", "SN-1")).expect("write");
    refused(
        fleet.fleetctl(&["claim", "accept", path(&request)]),
        "changed on its way",
    );
    let request = asks(&fleet, &first, &token, "SN-1");
    let late = Timestamp::now() + SignedDuration::from_hours(24 * 8);
    refused(
        fleet.fleetctl_at(late, &["claim", "accept", path(&request)]),
        "its token ended",
    );

    // The one that it is for, twice the same; then nobody else, however listed.
    let bundle = fleet.directory().join("bundle.json");
    let accept = ["claim", "accept", path(&request), "--out", path(&bundle)];
    for _ in 0..2 {
        fleet.fleetctl(&accept).expect_success();
    }
    let other = asks(&fleet, &second, &token, "SN-2");
    refused(
        fleet.fleetctl(&["claim", "accept", path(&other)]),
        "was used at",
    );
    let list = fleet.fleetctl(&["claim", "list"]).expect_success();
    assert!(
        list.contains("SN-1, SN-2") && list.trim_end().ends_with("SN-1"),
        "{list}"
    );

    // The authority decided the name, and the device is what any other is.
    first
        .edgeward(&["enroll", "--accept", path(&bundle)])
        .expect_success();
    fleet.push_sample("digits-1.0.0", "radiology");
    first.start();
    first.wait_active("digits", "1.0.0");

    // After the loss of its disk, a token that says so gives its name to a new key.
    let mut again = stranger(&fleet, "again");
    let token = fleet.directory().join("second-token");
    let create = ["claim", "create", "--serial", "SN-1", "--out", path(&token)];
    fleet.fleetctl(&create).expect_success();
    let request = asks(&fleet, &again, &token, "SN-1");
    refused(
        fleet.fleetctl(&["claim", "accept", path(&request)]),
        "another key",
    );
    fleet
        .fleetctl(&[&create[..], &["--replace"]].concat())
        .expect_success();
    let request = asks(&fleet, &again, &token, "SN-1");
    let accept = ["claim", "accept", path(&request), "--out", path(&bundle)];
    fleet.fleetctl(&accept).expect_success();
    first.stop();
    again
        .edgeward(&["enroll", "--accept", path(&bundle)])
        .expect_success();
    again.start();
    again.wait_active("digits", "1.0.0");
}

const PASSPHRASE: &str = "planted horse battery staple";

/// Every file below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("list").flatten() {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// What a secret may look like where it should not be.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        secret.to_vec(),
        hex.clone().into_bytes(),
        hex.to_uppercase().into_bytes(),
    ]
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    let mut places = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == part[0]);
    places.any(|(place, _)| bytes[place..].starts_with(part))
}

#[test]
fn no_key_passphrase_or_token_is_in_any_message_log_or_other_file() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    fleet.broker().persist();
    fleet.broker().restart();
    let file = |name: &str| fleet.directory().join(name);
    // What is planted, and the files that may hold it.
    let mut secrets = vec![("the passphrase", vec![PASSPHRASE.as_bytes().to_vec()])];
    for role in ["root", "releases", "timestamp"] {
        let text =
            std::fs::read_to_string(fleet.home().join(format!("keys/{role}.pem"))).expect("a key");
        let pem = pem::parse(&text).expect("PEM");
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        // The seed is the 32 bytes after a prefix of 16; base64 lines hold it from the 22nd character on.
        let mut looks = forms(&pem.contents()[16..48]);
        looks.push(body.as_bytes()[22..62].to_vec());
        secrets.push((role, looks));
    }
    std::fs::write(file("passphrase"), format!("{PASSPHRASE}\n")).expect("write");
    std::fs::set_permissions(file("passphrase"), PermissionsExt::from_mode(0o600)).expect("chmod");
    let mut said = Vec::new();
    let mut fleetctl = |arguments: &[&str]| {
        let mut command = Command::new(binaries::program("fleetctl"));
        command
            .arg("--home")
            .arg(fleet.home())
            .args(arguments)
            .env("FLEETCTL_PASSPHRASE_FILE", file("passphrase"))
            .env("FLEETCTL_LOG", "trace");
        let finished = process::run(&mut command);
        said.push(format!("{finished}").into_bytes());
        finished
    };
    fleetctl(&["key", "encrypt"]).expect_success();
    let token = file("token");
    fleetctl(&[
        "claim",
        "create",
        "--serial",
        "SN-1",
        "--group",
        "radiology",
        "--out",
        path(&token),
    ])
    .expect_success();
    let revealed = std::fs::read_to_string(&token).expect("a token");
    let secret = revealed.trim().rsplit('.').next().expect("a secret");
    secrets.push(("the token", vec![secret.as_bytes().to_vec()]));
    let mut ward = stranger(&fleet, "sn-1");
    ward.configure(
        "filter = \"info,edgeward_agent=debug\"",
        "filter = \"trace\"",
    );
    let request = asks(&fleet, &ward, &token, "SN-1");
    let bundle = file("bundle.json");
    fleetctl(&["claim", "accept", path(&request), "--out", path(&bundle)]).expect_success();
    ward.edgeward(&["enroll", "--accept", path(&bundle)])
        .expect_success();
    ward.start();
    let sample = binaries::sample("digits-1.0.0");
    fleetctl(&["push", path(&sample), "--group", "radiology", "--no-wait"]).expect_success();
    ward.wait_active("digits", "1.0.0");
    fleetctl(&["key", "rotate", "timestamp"]).expect_success();
    // One that fails, and a change that waits for another desk.
    fleetctl(&["key", "threshold", "root", "2"]);
    std::fs::rename(fleet.home().join("keys/root.pem"), file("root-key")).expect("rename");
    assert_eq!(fleetctl(&["key", "renew"]).code, Some(1));
    fleetctl(&["export", path(&file("stick"))]).expect_success();
    ward.stop();
    let key =
        std::fs::read_to_string(ward.state_directory().join("identity/key.pem")).expect("a key");
    let key = pem::parse(key).expect("PEM");
    secrets.push(("the device's key", forms(&key.contents()[36..68])));
    fleet.broker().stop();

    let mut all = Vec::new();
    files(fleet.directory(), &mut all);
    let named = |file: &&PathBuf, end: &str| file.ends_with(end);
    let own = ["passphrase", "token", "identity/key.pem"];
    all.retain(|file| !own.iter().any(|end| named(&file, end)));
    assert!(
        all.iter().any(|file| named(&file, "mosquitto.db")),
        "{all:?}"
    );
    assert!(
        all.iter()
            .any(|file| file.starts_with(fleet.home().join("pending"))),
        "{all:?}"
    );
    for (what, looks) in &secrets {
        for look in looks {
            for text in &said {
                assert!(
                    !holds(text, look),
                    "{what} was said: {}",
                    String::from_utf8_lossy(text)
                );
            }
            for file in &all {
                let bytes = std::fs::read(file).expect("read");
                assert!(!holds(&bytes, look), "{what} is in {}", file.display());
            }
        }
    }
}
