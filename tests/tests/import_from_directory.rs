//! The same signed repository from a USB stick, where no line may leave the building.

use edgeward_tests::fleet::path;
use edgeward_tests::{Device, Fleet};

/// A device that has never had a network.
fn isolated(fleet: &Fleet) -> Device {
    let mut device = fleet.device("vault-1", "radiology");
    device.without_fleet();
    device.start();
    device
}

fn answers_like(device: &Device, sample: &str) {
    device
        .answers_as("digits", sample)
        .expect("the known answer");
}

#[test]
fn a_device_without_a_network_takes_versions_from_a_directory() {
    let fleet = Fleet::without_broker();
    let vault = isolated(&fleet);
    fleet.push_sample("digits-1.0.0", "radiology");
    let first = fleet.export("stick-1");
    fleet.push_sample("digits-2.0.0", "radiology");
    let second = fleet.export("stick-2");

    vault.edgeward(&["import", path(&first)]).expect_success();
    vault.wait_active("digits", "1.0.0");
    answers_like(&vault, "digits-1.0.0");
    vault.edgeward(&["import", path(&second)]).expect_success();
    vault.wait_active("digits", "2.0.0");
    answers_like(&vault, "digits-2.0.0");

    // An older stick is no attack and no error: it says so and changes nothing.
    let finished = vault.edgeward(&["import", path(&first)]);
    let said = format!("{finished}");
    finished.expect_success();
    assert!(said.contains("older"), "{said}");
    vault.wait_active("digits", "2.0.0");
}

#[test]
fn a_stick_with_a_changed_byte_is_refused_by_name_and_the_old_version_serves_on() {
    let fleet = Fleet::without_broker();
    let vault = isolated(&fleet);
    fleet.push_sample("digits-1.0.0", "radiology");
    vault
        .edgeward(&["import", path(&fleet.export("stick-1"))])
        .expect_success();
    vault.wait_active("digits", "1.0.0");

    let package = fleet
        .package("digits-2.0.0")
        .version("2.0.0")
        .padded(200_000, 3);
    fleet.push(package.path(), "radiology").expect_success();
    let stick = fleet.export("stick-2");
    let mut changed = 0;
    for folder in std::fs::read_dir(stick.join("chunks")).expect("chunks") {
        for chunk in std::fs::read_dir(folder.expect("entry").path()).expect("chunks") {
            let chunk = chunk.expect("entry").path();
            let mut bytes = std::fs::read(&chunk).expect("read");
            // Only the large chunks: those of the padded model.
            if bytes.len() > 20_000 {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&chunk, bytes).expect("write");
                changed += 1;
            }
        }
    }
    assert!(changed > 0, "no large chunk on the stick");
    let said = vault.edgeward(&["import", path(&stick)]).expect_failure();
    assert!(
        said.contains("chunk") && said.contains("tampered"),
        "{said}"
    );
    answers_like(&vault, "digits-1.0.0");
    assert_eq!(
        vault.active("digits").expect("status").as_deref(),
        Some("1.0.0")
    );
}
