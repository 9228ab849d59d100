//! Several versions of a model at once: each found by its names, none in another's way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use edgeward_agent::serving::{ServeError, StickyKey};
use edgeward_models::fleet::routing::{Routing, parse_label};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::*;

fn routing(versions: &[&str], labels: &[&str]) -> Routing {
    Routing {
        versions: versions
            .iter()
            .map(|v| v.parse().expect("version"))
            .collect(),
        labels: labels
            .iter()
            .map(|l| parse_label(l).expect("label"))
            .collect(),
        ..Routing::default()
    }
}

/// The version that a request finds.
fn finds(device: &Device, version: Option<&str>) -> Result<String, ServeError> {
    let served = device.engine.resolve("digits", version)?;
    Ok(served.manifest().version.to_string())
}

/// Digits 1.0.0 active and 2.0.0 beside it, with these labels.
async fn two_versions(labels: &[&str]) -> Device {
    let device = Device::new();
    device
        .serve(&device.package("digits-1.0.0", |m, _| m.release = 1))
        .await;
    let model = "digits".parse().expect("name");
    device.engine.route(&model, routing(&["2.0.0"], labels));
    device
        .serve_beside(&device.package("digits-2.0.0", |m, _| m.release = 2))
        .await;
    device
}

#[tokio::test]
async fn each_version_is_found_by_version_release_and_label_and_answers_as_itself() {
    let device = two_versions(&["stable=1.0.0", "canary=2.0.0"]).await;
    for (name, version) in [
        (None, "1.0.0"),
        (Some("1.0.0"), "1.0.0"),
        (Some("2.0.0"), "2.0.0"),
        (Some("1"), "1.0.0"),
        (Some("2"), "2.0.0"),
        (Some("stable"), "1.0.0"),
        (Some("canary"), "2.0.0"),
    ] {
        assert_eq!(finds(&device, name).expect("found"), version, "{name:?}");
    }
    for sample in ["digits-1.0.0", "digits-2.0.0"] {
        let (input, expected) = golden(sample);
        let version = sample.strip_prefix("digits-");
        let answer = ask_version(&device.engine, "digits", version, &input).await;
        assert!(close(&answer.expect("an answer"), &expected), "{sample}");
    }
    let labelled = device
        .engine
        .resolve_label("digits", "canary")
        .expect("a label");
    assert_eq!(labelled.manifest().version.to_string(), "2.0.0");
    // A label is no version's number, and a version no label.
    for unknown in ["beta", "2.0.0", "2"] {
        match device.engine.resolve_label("digits", unknown).err() {
            Some(ServeError::UnknownLabel { known, .. }) => {
                assert_eq!(known, "canary (2.0.0), stable (1.0.0)");
            }
            other => panic!("{unknown}: {other:?}"),
        }
    }
    match finds(&device, Some("3.0.0")) {
        Err(ServeError::UnknownVersion { loaded, .. }) => {
            assert_eq!(loaded, "1.0.0 (release 1), 2.0.0 (release 2)");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(device.engine.models().len(), 1, "one model");
    assert_eq!(device.engine.versions().len(), 2, "two versions of it");
}

#[tokio::test]
async fn a_version_that_is_wanted_and_not_there_says_so_and_leaves_the_active_one_alone() {
    let device = Device::new();
    device.serve(&device.sample("digits-1.0.0")).await;
    let serving = device.pid();
    let model = "digits".parse().expect("name");
    device.engine.route(&model, routing(&[], &["canary=2.0.0"]));
    let reason = |version| match finds(&device, Some(version)) {
        Err(ServeError::NotReady { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason("canary").contains("2.0.0") && reason("2.0.0").contains("being loaded"));
    let version = "2.0.0".parse().expect("version");
    device
        .engine
        .withdraw(&model, &version, "golden vector 3 is off");
    assert!(reason("canary").contains("golden vector 3 is off"));
    assert_eq!(finds(&device, None).expect("found"), "1.0.0");
    assert_eq!(device.pid(), serving);
    // What is not wanted is not served, however it came here.
    device.engine.route(&model, Routing::default());
    device.serve_beside(&device.sample("digits-2.0.0")).await;
    assert!(matches!(
        finds(&device, Some("2.0.0")),
        Err(ServeError::UnknownVersion { .. })
    ));
    assert_eq!(device.engine.versions().len(), 1);
}

#[tokio::test]
async fn a_version_beside_becomes_active_and_the_active_one_stays_if_it_is_wanted() {
    let device = two_versions(&["stable=1.0.0", "canary=2.0.0"]).await;
    let first = device.pid();
    device
        .serve(&device.package("digits-2.0.0", |m, _| m.release = 2))
        .await;
    assert_eq!(finds(&device, None).expect("found"), "2.0.0");
    assert_eq!(finds(&device, Some("stable")).expect("found"), "1.0.0");
    assert_eq!(device.engine.versions().len(), 2, "each of them once");
    assert!(running(first), "1.0.0 goes on with the worker that it had");
    let model = "digits".parse().expect("name");
    device.engine.route(&model, Routing::default());
    assert!(matches!(
        finds(&device, Some("1.0.0")),
        Err(ServeError::UnknownVersion { .. })
    ));
    until("the worker of 1.0.0 ends", || !running(first)).await;
    device.engine.retire(&model).await;
    assert!(matches!(
        finds(&device, None),
        Err(ServeError::UnknownModel(_))
    ));
}

fn split(weights: [u32; 2]) -> Routing {
    let versions = ["1.0.0", "2.0.0"].map(|v| v.parse().expect("version"));
    Routing {
        split: versions.into_iter().zip(weights).collect(),
        ..Routing::default()
    }
}

#[tokio::test]
async fn a_split_passes_over_a_version_that_cannot_answer_now() {
    let device = two_versions(&[]).await;
    let model = "digits".parse().expect("name");
    device.engine.route(&model, split([0, 1]));
    let chosen = || {
        let served = device.engine.choose("digits", StickyKey::of(b"someone"));
        served.expect("a version").manifest().version.to_string()
    };
    assert_eq!(chosen(), "2.0.0");
    assert_eq!(
        finds(&device, None).expect("found"),
        "1.0.0",
        "what is active is no matter of chance"
    );
    device
        .engine
        .withdraw(&model, &"2.0.0".parse().expect("version"), "it fails");
    assert_eq!(chosen(), "1.0.0", "the active one answers for it");
}

#[tokio::test]
async fn no_request_is_lost_or_answered_twice_while_versions_come_and_go() {
    let device = Device::new();
    let packages = ["digits-1.0.0", "digits-2.0.0"].map(|s| device.sample(s));
    let answers = ["digits-1.0.0", "digits-2.0.0"].map(|s| golden(s).1);
    let (input, _) = golden("digits-1.0.0");
    let model: edgeward_models::ModelName = "digits".parse().expect("name");
    device.serve(&packages[0]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let askers = (0..4u64).map(|asker| {
        let (engine, stop) = (device.engine.clone(), stop.clone());
        let (input, answers) = (input.clone(), answers.clone());
        tokio::spawn(async move {
            let mut counts = [0u64; 2];
            let mut keys = StdRng::seed_from_u64(asker);
            while !stop.load(Ordering::Relaxed) {
                let key = StickyKey::of(&keys.random::<[u8; 4]>());
                let answer = ask_by_key(&engine, "digits", key, &input).await;
                let answer = answer.expect("no failure");
                let which = answers.iter().position(|expected| close(&answer, expected));
                counts[which.expect("the answer of a version")] += 1;
            }
            counts
        })
    });
    let askers: Vec<_> = askers.collect();
    let mut chance = StdRng::seed_from_u64(5);
    for _ in 0..40 {
        let which = chance.random_range(0..2);
        match chance.random_range(0..5) {
            0 => device.serve(&packages[which]).await,
            1 => device.serve_beside(&packages[which]).await,
            2 => {
                let version = packages[which].manifest().version.clone();
                device.engine.withdraw(&model, &version, "a test");
            }
            3 => device.engine.route(&model, Routing::default()),
            _ => {
                let weights = [chance.random_range(0..9), chance.random_range(1..9)];
                device.engine.route(&model, split(weights));
                device.serve_beside(&packages[which]).await;
            }
        }
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut counts = [0; 2];
    for asker in askers {
        let [first, second] = asker.await.expect("no failure");
        counts = [counts[0] + first, counts[1] + second];
    }
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    device.engine.shutdown().await;
    let samples = device.engine.take_samples();
    let failed: u64 = samples
        .iter()
        .map(|s| s.failed + s.refused + s.crashes)
        .sum();
    assert_eq!(failed, 0);
    for (count, package) in counts.iter().zip(&packages) {
        let version = &package.manifest().version;
        let of_it = samples.iter().filter(|s| s.version == *version);
        let succeeded: u64 = of_it.map(|s| s.succeeded).sum();
        assert_eq!(
            succeeded, *count,
            "as many answers of {version} as were counted there"
        );
    }
}

#[tokio::test]
async fn a_crash_beside_is_not_felt_by_the_active_version() {
    let device = two_versions(&[]).await;
    let active = device.pid();
    let versions = device.engine.versions();
    let beside = versions.iter().find(|v| v.beside).expect("one beside");
    kill(beside.worker_pid.expect("a worker"));
    until("the death is noticed", || {
        device
            .metrics()
            .contains("edgeward_worker_crashes_total{model=\"digits\",version=\"2.0.0\"} 1")
    })
    .await;
    let (input, expected) = golden("digits-1.0.0");
    let answer = ask(&device.engine, "digits", &input)
        .await
        .expect("an answer");
    assert!(close(&answer, &expected));
    assert_eq!(device.pid(), active);
    until("it is back", || {
        device.engine.versions().iter().all(|v| v.ready)
    })
    .await;
}
