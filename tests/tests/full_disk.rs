//! A full disk stops what is new and nothing else, at whatever step of an installation it is full.

use edgeward_tests::fleet::path;
use edgeward_tests::small_disk::SmallDisk;
use edgeward_tests::{BrokerKind, Fleet, package::known};

#[test]
fn a_full_disk_bars_new_versions_and_never_what_serves() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    // The disk of the device's state must be there before the device is.
    let state = fleet.directory().join("ward-1/state");
    let disk = SmallDisk::mount(&state, "12m");
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure("[fleet]\n", "[fleet]\ndisk_reserve_bytes = 1000000\n");
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.wait_active("digits", "1.0.0");
    let question = known("digits-1.0.0", 0);
    let answers = |client: &mut edgeward_tests::http::Client| {
        let answer = client.infer("digits", &question.request).expect("answer");
        question
            .check(&answer.expect_ok().json())
            .expect("the known answer");
    };

    // Larger than what is free: refused before a byte of it is fetched.
    let large = fleet
        .package("digits-1.0.0")
        .version("1.1.0")
        .padded(16 << 20, 1);
    fleet.push(large.path(), "radiology").expect_success();
    let said = ward.wait_refusal(
        "digits",
        &["bytes are needed", "free", "1000000 stay reserved"],
    );
    assert!(
        said.contains("1.1.0") || said.contains("make room"),
        "{said}"
    );
    assert_eq!(ward.cached_chunks(), (0, 0), "nothing of it was fetched");
    answers(&mut ward.unix());

    // Not one byte free: even the state cannot be written, and it serves on, and starts again.
    disk.fill(0);
    fleet.push_sample("digits-2.0.0", "radiology");
    ward.wait_refusal("digits", &["No space left"]);
    answers(&mut ward.unix());
    ward.kill();
    ward.start();
    answers(&mut ward.unix());

    // Room again: it goes on by itself.
    disk.make_room();
    ward.wait_active("digits", "2.0.0");
}

#[test]
fn a_disk_that_fills_up_at_any_step_of_an_installation_costs_that_installation_and_no_more() {
    let fleet = Fleet::without_broker();
    let state = fleet.directory().join("ward-1/state");
    let disk = SmallDisk::mount(&state, "8m");
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure(
        "[fleet]\nreconcile_seconds = 5\n",
        "[fleet]\ndisk_reserve_bytes = 0\nbroker_port = 1\n",
    );
    ward.start();
    fleet.push_sample("digits-1.0.0", "radiology");
    let first = fleet.export("first");
    ward.edgeward(&["import", path(&first)]).expect_success();
    let samples = ["digits-1.0.0", "digits-2.0.0"];
    let (mut refused, mut now) = (0, 0);
    // Too little space is seen before anything is fetched; for a name too many there is no such foresight, so
    // each further one that is left lets the installation come one step further.
    let space = [0, 1, 3].map(|pages| (pages * 4096, u64::MAX));
    let names = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16].map(|names| (u64::MAX, names));
    for (round, left) in space.into_iter().chain(names).enumerate() {
        // A model of some pages, so that there are many steps to be full at.
        let next = 1 - now;
        let version = format!("1.{}.0", round + 1);
        let package = fleet
            .package(samples[next])
            .version(&version)
            .padded(60_000, round as u64);
        fleet.push(package.path(), "radiology").expect_success();
        let stick = fleet.export(&format!("stick-{round}"));
        match left {
            (bytes, u64::MAX) => disk.fill(bytes),
            (_, names) => disk.fill_names(names),
        }
        let import = ward.edgeward(&["import", path(&stick)]);
        let said = format!("{import}");
        if import.code == Some(0) {
            now = next;
        } else {
            refused += 1;
            let told = ["No space left", "bytes are needed"]
                .iter()
                .any(|words| said.contains(words));
            assert!(told && import.code == Some(2), "{left:?}: {said}");
        }
        // Before and after a restart on the full disk.
        for restart in [false, true] {
            if restart {
                ward.kill();
                ward.start();
            }
            let question = known(samples[now], 0);
            let answer = ward
                .unix()
                .infer("digits", &question.request)
                .expect("answer");
            let answer = answer.expect_ok().json();
            question
                .check(&answer)
                .unwrap_or_else(|e| panic!("{left:?}: {e}: {said}"));
        }
        disk.make_room();
        ward.edgeward(&["import", path(&stick)]).expect_success();
        now = next;
        assert_eq!(
            ward.active("digits").expect("status").as_deref(),
            Some(version.as_str())
        );
    }
    assert!(
        (3..15).contains(&refused),
        "{refused} of 15 installations met a full disk"
    );
}
