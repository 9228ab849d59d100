//! A driver that compiles graphs: it has minutes at its first load and seconds afterwards, what it compiled lasts
//! as long as the model does, and what is wrong with that costs time or the delegate, never the version.

use std::path::PathBuf;

use edgeward_models::manifest::DelegateChoice;
use edgeward_tests::small_disk::SmallDisk;
use edgeward_tests::{Device, Fleet, Package, Site, package::known, plugin};
use serde_json::Value;

const NPU: &str = "npu";

/// A device whose driver keeps what it compiles, within these limits.
fn configure(device: &mut Device, library: PathBuf, limits: &str) {
    let profile = format!(
        "[delegates.{NPU}]\nlibrary = \"{}\"\n[delegates.{NPU}.cache]\n{limits}\n[log]",
        library.display()
    );
    device.configure("[log]", &profile);
}

fn site(limits: &str) -> Site {
    Site::new(|device| configure(device, plugin::test_delegate(), limits))
}

/// A sample on the NPU with these options, and on the built-in kernels.
fn package(site: &Site, sample: &str, version: &str, options: &[(&str, &str)]) -> Package {
    let package = site.fleet.package(sample).version(version);
    package.edit(|manifest| {
        let choice = |name: &str| DelegateChoice::new(name.parse().expect("a delegate's name"));
        let mut npu = choice(NPU);
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        npu.options = options.iter().map(text).collect();
        npu.least_share = 0.1;
        manifest.delegates = vec![npu, choice("builtin")];
        manifest.invoke_limit_ms = 1000;
    })
}

/// Directories of caches.
fn caches(site: &Site) -> Vec<PathBuf> {
    let parent = site
        .device
        .state_directory()
        .join("delegate-caches")
        .join(NPU);
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn files(site: &Site) -> Vec<PathBuf> {
    let entries = caches(site).into_iter().flat_map(std::fs::read_dir);
    entries
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn times(log: &str, words: &str) -> usize {
    log.lines()
        .filter(|line| line.contains("test-delegate:") && line.contains(words))
        .count()
}

fn assert_serves(site: &Site, delegate: &str) -> Value {
    let active = site.active("digits");
    assert_eq!(active["delegate"], delegate, "{active}");
    let question = known("digits-1.0.0", 0);
    let answer = site.device.unix().infer("digits", &question.request);
    answer.expect("an answer").expect_ok();
    active
}

fn reason(active: &Value) -> &str {
    active["refused_delegates"][0]["reason"]
        .as_str()
        .expect("a reason")
}

#[test]
fn what_was_compiled_in_minutes_loads_in_seconds_until_the_model_goes() {
    let mut site = Site::new(|device| {
        configure(
            device,
            plugin::test_delegate(),
            "first_load_timeout_ms = 120000",
        );
        device.configure("[tflite]", "[tflite]\nload_timeout_ms = 4000");
    });
    // Longer than a worker may take that has something to start with.
    let slow = [("cache", "{cache}/graph"), ("compile_ms", "6000")];
    site.install(package(&site, "digits-1.0.0", "1.0.1", &slow).path());
    assert_serves(&site, NPU);
    assert_eq!(times(&site.device.log(), "compiling"), 1);
    assert_eq!(files(&site).len(), 1);

    site.device.kill();
    site.device.start();
    assert_serves(&site, NPU);
    let log = site.device.log();
    assert_eq!(
        (times(&log, "compiling"), times(&log, "was used")),
        (1, 1),
        "{log}"
    );

    // It belongs to the model: a new version with the same one has it from the start.
    site.install(package(&site, "digits-1.0.0", "1.0.2", &slow).path());
    assert_serves(&site, NPU);
    assert_eq!(times(&site.device.log(), "compiling"), 1);
    let of_the_first = caches(&site);

    let fast = [("cache", "{cache}/graph")];
    for (number, version) in ["2.0.1", "2.0.2", "2.0.3", "2.0.4"].iter().enumerate() {
        site.install(package(&site, "digits-2.0.0", version, &fast).path());
        assert_serves(&site, NPU);
        // Active, previous and two more are kept.
        let kept = if number < 3 { 2 } else { 1 };
        assert_eq!(caches(&site).len(), kept, "after {version}");
    }
    assert!(!caches(&site).contains(&of_the_first[0]));
    site.device.stop();
}

#[test]
fn a_driver_that_compiles_in_its_first_invoke_has_the_same_time_and_afterwards_the_models() {
    let site = site("first_load_timeout_ms = 120000");
    let options = [
        ("cache", "{cache}/graph"),
        ("compile_ms", "3000"),
        ("compile_at", "invoke"),
        ("hang", "invoke"),
        ("from_invoke", "30"),
    ];
    site.install(package(&site, "digits-1.0.0", "1.0.1", &options).path());
    assert_serves(&site, NPU);
    let mut client = site.device.unix();
    let failed = (0..40).find_map(|_| {
        let answer = client.infer("digits", &known("digits-1.0.0", 0).request);
        let answer = answer.expect("an answer");
        (answer.status != 200).then(|| answer.text())
    });
    let failed = failed.expect("a hanging invoke");
    assert!(failed.contains("exceeded its limit of 1s"), "{failed}");
}

#[test]
fn a_driver_that_needs_longer_than_even_that_gives_way_and_leaves_nothing() {
    let site = site("first_load_timeout_ms = 2000");
    for (version, moment) in [
        ("1.0.1", "create"),
        ("1.0.2", "prepare"),
        ("1.0.3", "invoke"),
    ] {
        let options = [
            ("cache", "{cache}/graph"),
            ("compile_ms", "600000"),
            ("compile_at", moment),
        ];
        site.install(package(&site, "digits-1.0.0", version, &options).path());
        let active = assert_serves(&site, "builtin");
        let reason = reason(&active);
        for word in ["2s", "first_load_timeout_ms"] {
            assert!(reason.contains(word), "{moment}: {reason}");
        }
        assert_eq!(files(&site), Vec::<PathBuf>::new(), "{moment}");
    }
}

#[test]
fn a_damaged_cache_costs_another_compilation_and_not_the_delegate() {
    let mut site = site("");
    let options = [("cache", "{cache}/graph")];
    site.install(package(&site, "digits-1.0.0", "1.0.1", &options).path());
    assert_serves(&site, NPU);
    for (count, damage) in [&b"compiled by somebody else"[..], b"", &[0; 5000]]
        .iter()
        .enumerate()
    {
        site.device.kill();
        for file in files(&site) {
            std::fs::write(file, damage).expect("damage it");
        }
        site.device.start();
        let active = assert_serves(&site, NPU);
        assert_eq!(
            active["refused_delegates"].as_array().map(Vec::len),
            Some(0)
        );
        let log = site.device.log();
        assert_eq!(times(&log, "compiling"), count + 2, "{log}");
        assert!(
            log.contains("its cache is damaged") && log.contains("is tried without"),
            "{log}"
        );
    }
    site.device.stop();
}

#[test]
fn the_gpu_delegate_keeps_its_kernels_in_the_directory_that_it_is_given() {
    let site = Site::new(|device| configure(device, plugin::test_gpu_delegate(), ""));
    let options = [
        ("inference_priority3", "3"),
        ("experimental_flags", "1099511627776"),
        ("max_delegated_partitions", "7"),
        ("serialization_dir", "{cache}"),
    ];
    for version in ["1.0.1", "1.0.2"] {
        site.install(package(&site, "digits-1.0.0", version, &options).path());
        assert_serves(&site, NPU);
    }
    let log = site.device.log();
    assert_eq!(
        (times(&log, "compiling"), times(&log, "was used")),
        (1, 1),
        "{log}"
    );
    assert_eq!(files(&site).len(), 1);
}

#[test]
fn a_place_for_a_cache_that_the_device_does_not_give_is_refused_by_name() {
    let library = plugin::test_delegate();
    let site = Site::new(|device| {
        let profile = format!(
            "[delegates.{NPU}]\nlibrary = \"{}\"\n[log]",
            library.display()
        );
        device.configure("[log]", &profile);
    });
    let options = [("cache", "{cache}/graph")];
    site.install(package(&site, "digits-1.0.0", "1.0.1", &options).path());
    let active = assert_serves(&site, "builtin");
    assert!(
        reason(&active).contains("add [delegates.npu.cache]"),
        "{active}"
    );
    // Anywhere else the sandbox lets it write nothing.
    let elsewhere = site.fleet.directory().join("graph").display().to_string();
    site.install(package(&site, "digits-1.0.0", "1.0.2", &[("cache", &elsewhere)]).path());
    let active = assert_serves(&site, "builtin");
    assert!(
        reason(&active).contains("cannot be written: Permission denied"),
        "{active}"
    );
}

#[test]
fn a_driver_that_keeps_too_much_gives_way_and_the_disk_keeps_its_reserve() {
    for (limits, bytes) in [("max_bytes = 100000", "1000000"), ("", "60000000")] {
        // The disk must be there before the device is; the usual reserve leaves a third of it.
        let fleet = Fleet::without_broker();
        let disk = SmallDisk::mount(&fleet.directory().join("lab-1/state"), "96m");
        let mut site = Site::of(fleet, |device| {
            configure(device, plugin::test_delegate(), limits);
        });
        let options = [("cache", "{cache}/graph"), ("cache_bytes", bytes)];
        site.install(package(&site, "digits-1.0.0", "1.0.1", &options).path());
        let active = assert_serves(&site, "builtin");
        assert!(reason(&active).contains("are allowed"), "{active}");
        assert_eq!(files(&site), Vec::<PathBuf>::new());
        // What serves comes back on a disk that is full.
        disk.fill(0);
        site.device.kill();
        site.device.start();
        let active = assert_serves(&site, "builtin");
        assert!(
            reason(&active).contains("no directory") || reason(&active).contains("no room"),
            "{active}"
        );
        site.device.stop();
    }
}
