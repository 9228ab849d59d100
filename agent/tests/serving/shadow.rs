//! A shadow compares and is never felt: callers get their own version's answers, whatever becomes of it.

use edgeward_agent::serving::{Difference, StickyKey};
use edgeward_models::Version;
use edgeward_models::fleet::routing::{Routing, ShadowStatus};

use crate::support::*;

/// Digits 1.0.0 active, and this version of a sample as its shadow.
async fn shadowed(sample: &str, version: Version) -> Device {
    let device = Device::new();
    device.serve(&device.sample("digits-1.0.0")).await;
    let routing = Routing {
        shadow: Some(version.clone()),
        ..Routing::default()
    };
    device
        .engine
        .route(&"digits".parse().expect("name"), routing);
    let package = device.package(sample, |manifest, _| manifest.version = version);
    device.serve_beside(&package).await;
    device
}

fn figures(device: &Device) -> (ShadowStatus, Vec<Difference>) {
    let shadows = device.engine.shadows();
    let [(_, status, differences)] = &shadows[..] else {
        panic!("{shadows:?}");
    };
    (status.clone(), differences.clone())
}

/// What came of so many requests, when all of it is known.
async fn settled(device: &Device, requests: u64) -> ShadowStatus {
    let known = |s: &ShadowStatus| s.compared + s.dropped + s.failed;
    until("every request is accounted for", || {
        known(&figures(device).0) == requests
    })
    .await;
    figures(device).0
}

/// Asks one after the other; each must be answered as the active version answers.
async fn ask_all(device: &Device, requests: u64) {
    let (input, expected) = golden("digits-1.0.0");
    for _ in 0..requests {
        let key = StickyKey::random();
        let answer = ask_by_key(&device.engine, "digits", key, &input).await;
        assert!(close(&answer.expect("an answer"), &expected));
    }
}

#[tokio::test]
async fn another_model_differs_and_leaves_numbers_while_callers_get_their_own_answer() {
    let device = shadowed("digits-2.0.0", Version::new(2, 0, 0)).await;
    ask_all(&device, 30).await;
    let status = settled(&device, 30).await;
    assert!(status.compared > 0, "{status:?}");
    assert_eq!(status.different, status.compared, "{status:?}");
    assert_eq!(status.failed, 0, "{status:?}");
    let (_, differences) = figures(&device);
    assert!(
        (1..=8).contains(&differences.len()),
        "a few: {differences:?}"
    );
    let difference = &differences[0];
    assert_eq!(difference.output, "probabilities");
    assert!(difference.largest > difference.allowed, "{difference:?}");
    let page = device.metrics();
    let line = format!(
        "edgeward_shadow_requests_total{{model=\"digits\",version=\"2.0.0\",result=\"different\"}} {}",
        status.different
    );
    assert!(page.contains(&line), "{page}");
}

#[tokio::test]
async fn the_same_model_under_another_version_does_not_differ() {
    let device = shadowed("digits-1.0.0", Version::new(1, 0, 1)).await;
    ask_all(&device, 30).await;
    let status = settled(&device, 30).await;
    assert!(status.compared > 0, "{status:?}");
    assert_eq!((status.different, status.failed), (0, 0), "{status:?}");
    // A request that says which version it wants is that version's alone.
    let (input, _) = golden("digits-1.0.0");
    let named = ask_version(&device.engine, "digits", Some("1.0.0"), &input).await;
    named.expect("an answer");
    assert_eq!(settled(&device, 30).await, status);
}

#[tokio::test]
async fn a_shadow_that_dies_or_has_too_much_to_do_costs_no_caller_an_answer() {
    let device = shadowed("digits-2.0.0", Version::new(2, 0, 0)).await;
    let askers = (0..4).map(|_| ask_all(&device, 100));
    let death = async {
        until("something was compared", || figures(&device).0.compared > 0).await;
        let versions = device.engine.versions();
        let shadow = versions.iter().find(|v| v.beside).expect("a shadow");
        kill(shadow.worker_pid.expect("a worker"));
    };
    tokio::join!(futures::future::join_all(askers), death);
    // While it is away nothing is mirrored, and nothing is owed.
    let samples = device.engine.take_samples();
    let active = samples.iter().find(|s| s.version == Version::new(1, 0, 0));
    let active = active.expect("the active version");
    assert_eq!((active.succeeded, active.failed + active.refused), (400, 0));
    let status = figures(&device).0;
    assert!(
        status.compared + status.dropped + status.failed <= 400,
        "{status:?}"
    );
}
