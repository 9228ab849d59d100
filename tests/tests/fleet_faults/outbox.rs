//! The telemetry outbox (sled) damaged, deleted or out of reach, at a start and while the agent runs.

use std::path::{Path, PathBuf};

use edgeward_models::codec;
use edgeward_models::fleet::signed::Envelope;
use edgeward_models::fleet::telemetry::TelemetryBatch;
use edgeward_tests::publisher::next_message;
use edgeward_tests::{BrokerKind, Device, Fleet, wait};

/// As the broker passes them on; who signed it is not what this is about.
fn next_batch(fleet: &Fleet) -> TelemetryBatch {
    let bytes = next_message(fleet, "edgeward/v1/hospital/device/ward-1/telemetry");
    let bytes = zstd::bulk::decompress(&bytes, 1 << 20).expect("zstd");
    let envelope: Envelope = codec::decode("envelope", &bytes).expect("an envelope");
    codec::decode("telemetry", &envelope.payload).expect("a batch")
}

/// Samples that lie in the outbox, as the file beside it says.
fn waiting(outbox: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(outbox.join("sentinel")).map_err(|e| e.to_string())?;
    let (_, sentinel) = text.split_once('\n').ok_or("no sentinel")?;
    let sentinel: serde_json::Value = serde_json::from_str(sentinel).map_err(|e| e.to_string())?;
    sentinel["records"].as_u64().ok_or("no records".to_owned())
}

fn collect(device: &Device, samples: u64) -> u64 {
    wait::until("samples to wait", wait::PATIENCE, || {
        let there = waiting(&outbox(device))?;
        (there >= samples)
            .then_some(there)
            .ok_or_else(|| format!("{there} samples"))
    })
}

fn outbox(device: &Device) -> PathBuf {
    device.state_directory().join("outbox")
}

fn database(device: &Device) -> PathBuf {
    outbox(device).join("db")
}

/// Replaces the log of sled, and removes the snapshot, which repeats part of it.
fn overwrite(device: &Device, change: impl Fn(Vec<u8>) -> Vec<u8>) {
    let file = database(device).join("db");
    let bytes = std::fs::read(&file).expect("read");
    std::fs::write(&file, change(bytes)).expect("write");
    for entry in std::fs::read_dir(database(device)).expect("read").flatten() {
        if entry.file_name().to_string_lossy().starts_with("snap") {
            std::fs::remove_file(entry.path()).expect("remove");
        }
    }
}

/// Serves, sends, and has counted and told what was lost.
fn recovered(fleet: &Fleet, device: &Device, lost: u64, what: &str) {
    device
        .answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
    let batch = next_batch(fleet);
    assert!(
        batch.dropped >= lost,
        "{what}: {} counted, {lost} lost",
        batch.dropped
    );
    let warnings = device.wait_warnings(what, |warnings| {
        warnings
            .iter()
            .any(|w| w.contains("telemetry samples were lost"))
    });
    assert!(
        warnings.iter().any(|w| w.contains("outbox")),
        "{what}: {warnings:?}"
    );
}

#[test]
fn a_damaged_outbox_costs_its_samples_which_are_counted_and_nothing_else() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure("[log]\n", "[telemetry]\ninterval_seconds = 1\n\n[log]\n");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");

    // At a start: cut short, zeroed, deleted.
    type Damage = fn(&Device);
    let damages: [(&str, Damage); 3] = [
        ("truncated", |d| {
            overwrite(d, |mut bytes| {
                bytes.truncate(bytes.len() / 8);
                bytes
            })
        }),
        ("zeroed", |d| overwrite(d, |bytes| vec![0; bytes.len()])),
        ("deleted", |d| {
            std::fs::remove_dir_all(database(d)).expect("remove")
        }),
    ];
    let mut lost = 0;
    for (name, damage) in damages {
        fleet.broker().kill();
        collect(&ward, 1);
        ward.kill();
        lost += waiting(&outbox(&ward)).expect("a sentinel");
        damage(&ward);
        fleet.broker().restart();
        ward.start();
        recovered(&fleet, &ward, lost, name);
    }

    // While it runs.
    fleet.broker().kill();
    lost += collect(&ward, 1);
    std::fs::remove_dir_all(database(&ward)).expect("remove");
    wait::until("the loss to be noticed", wait::PATIENCE, || {
        let log = ward.log();
        log.contains("opened anew")
            .then_some(())
            .ok_or("nothing said".to_owned())
    });
    fleet.broker().restart();
    recovered(&fleet, &ward, lost, "deleted while it runs");

    // Out of reach: a file stands where its directory should (the tests may run as root, whom no mode bars).
    ward.kill();
    let aside = outbox(&ward).with_file_name("aside");
    std::fs::rename(outbox(&ward), &aside).expect("rename");
    std::fs::write(outbox(&ward), b"in the way").expect("write");
    ward.start();
    ward.wait_warnings("the unusable outbox to be told of", |warnings| {
        warnings.iter().any(|w| w.contains("no telemetry is kept"))
    });
    ward.answers_as("digits", "digits-1.0.0")
        .expect("the known answer");
    std::fs::remove_file(outbox(&ward)).expect("remove");
    std::fs::rename(&aside, outbox(&ward)).expect("rename");
    // Without a restart.
    recovered(&fleet, &ward, lost + 1, "out of reach");
}
