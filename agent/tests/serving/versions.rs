//! Several versions of a model at once: each found by its names, none in another's way.

use edgeward_agent::serving::ServeError;
use edgeward_models::fleet::routing::{Routing, parse_label};

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
