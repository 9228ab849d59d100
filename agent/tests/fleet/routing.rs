//! Versions beside the active one: from a repository to the device, over restarts, and when something is wrong with
//! one.

use edgeward_agent::fleet::admin::Routed;
use edgeward_agent::fleet::reconcile::ImportOutcome;
use edgeward_models::fleet::routing::{Routing, RoutingStatus, parse_label};
use edgeward_models::fleet::status::Phase;

use crate::device::Device;
use crate::site::Site;
use crate::wait;

/// Has the group route digits by these labels.
fn label(site: &mut Site, rollout: &str, labels: &[&str]) {
    let routing = Routing {
        rollout: Some(rollout.parse().expect("name")),
        labels: labels
            .iter()
            .map(|l| parse_label(l).expect("label"))
            .collect(),
        ..Routing::default()
    };
    site.change_desired(|desired| {
        desired
            .routing
            .insert("digits".parse().expect("name"), routing);
    });
}

/// The version that a label finds.
fn finds(device: &Device, label: &str) -> Option<String> {
    let served = device.engine().resolve_label("digits", label).ok()?;
    Some(served.manifest().version.to_string())
}

async fn status(device: &Device) -> RoutingStatus {
    let model = device.model("digits").await.expect("a status");
    model.routing.expect("a routing")
}

/// A device with digits 1.0.0 active and 2.0.0 beside it, as its fleet wishes.
async fn two_versions(site: &mut Site) -> Device {
    let mut device = Device::new(site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    site.add("digits-2.0.0", |_, _| {});
    label(site, "r2", &["stable=1.0.0", "canary=2.0.0"]);
    let (outcome, text) = device.import(&site.export("stick-1")).await;
    assert_eq!(outcome, ImportOutcome::Applied, "{text}");
    assert!(text.contains("digits 2.0.0 is served beside it"), "{text}");
    device
}

#[tokio::test]
async fn a_labelled_version_is_fetched_and_serves_beside_the_active_one_also_after_a_restart() {
    let mut site = Site::new();
    let mut device = two_versions(&mut site).await;
    for _ in 0..2 {
        wait::until("the label to be found", || {
            finds(&device, "canary").as_deref() == Some("2.0.0")
        })
        .await;
        assert_eq!(finds(&device, "stable").as_deref(), Some("1.0.0"));
        assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
        let status = status(&device).await;
        assert!(!status.overridden);
        let [beside] = &status.versions[..] else {
            panic!("{status:?}");
        };
        assert_eq!(beside.phase, Phase::Active);
        assert_eq!(beside.version.to_string(), "2.0.0");
        assert!(beside.served.is_some());
        device.restart().await;
    }
    // The pointers are those of the active version alone.
    let model = device.model("digits").await.expect("status");
    assert_eq!(model.previous, None);

    label(&mut site, "r3", &[]);
    device.import(&site.export("stick-2")).await;
    assert_eq!(finds(&device, "canary"), None);
    assert_eq!(device.engine().versions().len(), 1);
    let model = device.model("digits").await.expect("status");
    assert_eq!(model.routing, None);
    assert_eq!(device.audited("routing-changed"), 2);
}

#[tokio::test]
async fn the_labelled_version_becomes_active_and_the_one_before_stays_under_its_label() {
    let mut site = Site::new();
    let mut device = two_versions(&mut site).await;
    site.wish("digits", "2.0.0", 2, "r3");
    let (outcome, text) = device.import(&site.export("stick-2")).await;
    assert_eq!(outcome, ImportOutcome::Applied, "{text}");
    assert_eq!(device.serves("digits").as_deref(), Some("2.0.0"));
    assert_eq!(finds(&device, "stable").as_deref(), Some("1.0.0"));
    device.restart().await;
    wait::until("the older version to be back", || {
        finds(&device, "stable").as_deref() == Some("1.0.0")
    })
    .await;
    assert_eq!(finds(&device, "canary").as_deref(), Some("2.0.0"));
}

#[tokio::test]
async fn an_override_takes_the_fleets_place_until_it_is_ended_and_says_that_it_is_one() {
    let mut site = Site::new();
    let mut device = two_versions(&mut site).await;
    let other = Routing {
        labels: [parse_label("trial=2.0.0").expect("label")].into(),
        ..Routing::default()
    };
    let done = device.route("digits", Some(other.clone())).await;
    assert!(
        matches!(&done, Routed::Done(text) if text.contains("trial=2.0.0")),
        "{done:?}"
    );
    assert_eq!(finds(&device, "trial").as_deref(), Some("2.0.0"));
    assert_eq!(finds(&device, "canary"), None);
    assert!(status(&device).await.overridden);
    // What the fleet says meanwhile waits for its end, also over a restart.
    label(&mut site, "r3", &["later=2.0.0"]);
    device.import(&site.export("stick-2")).await;
    device.restart().await;
    wait::until("the override to hold again", || {
        finds(&device, "trial").as_deref() == Some("2.0.0")
    })
    .await;
    assert_eq!(finds(&device, "later"), None);

    // Nothing that the fleet's keys did not sign, and no model that is not here.
    let unknown = Routing {
        versions: ["9.0.0".parse().expect("version")].into(),
        ..Routing::default()
    };
    for (model, routing) in [
        ("digits", Some(unknown)),
        ("other", Some(other)),
        ("other", None),
    ] {
        let refused = device.route(model, routing).await;
        assert!(matches!(refused, Routed::Refused(_)), "{refused:?}");
    }
    assert!(matches!(
        device.route("digits", None).await,
        Routed::Done(_)
    ));
    wait::until("the fleet's label", || {
        finds(&device, "later").as_deref() == Some("2.0.0")
    })
    .await;
    assert_eq!(finds(&device, "trial"), None);
    assert!(!status(&device).await.overridden);
    assert!(matches!(
        device.route("digits", None).await,
        Routed::Refused(_)
    ));
    assert_eq!(device.audited("routing-overridden"), 1);
    assert_eq!(device.audited("routing-override-ended"), 1);
}

#[tokio::test]
async fn a_bad_version_beside_is_told_kept_out_and_changes_nothing_for_the_active_one() {
    let mut site = Site::new();
    let mut device = Device::new(&site, None);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    device.import(&site.export("stick-1")).await;
    let pid = device.engine().models()[0].worker_pid;
    site.add("digits-2.0.0", |_, files| {
        let golden = files.get_mut(&"golden.json".parse().expect("name"));
        let golden = golden.expect("golden");
        let text = String::from_utf8(golden.clone()).expect("text");
        let mut document: serde_json::Value = serde_json::from_str(&text).expect("json");
        document["vectors"][0]["outputs"]["probabilities"]["data"][0] = 7.into();
        *golden = serde_json::to_vec(&document).expect("encode");
    });
    label(&mut site, "r2", &["canary=2.0.0", "other=9.0.0"]);
    let (outcome, text) = device.import(&site.export("stick-2")).await;
    assert_eq!(outcome, ImportOutcome::Refused, "{text}");
    assert!(text.contains("digits 1.0.0 is active"), "{text}");
    assert!(
        text.contains("2.0.0 is not served beside it") && text.contains("golden"),
        "{text}"
    );
    assert!(
        text.contains("the repository holds no such version"),
        "{text}"
    );
    let refused: Vec<_> = status(&device).await.versions;
    assert!(
        refused.iter().all(|v| v.phase == Phase::Refused),
        "{refused:?}"
    );
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    assert_eq!(device.engine().models()[0].worker_pid, pid, "untouched");
    assert_eq!(device.audited("version-quarantined"), 1);
    // Not tried again for this routing; for another one it is.
    device.restart().await;
    device.import(&site.export("stick-3")).await;
    assert_eq!(device.audited("version-quarantined"), 1);
    label(&mut site, "r3", &["canary=2.0.0"]);
    device.import(&site.export("stick-4")).await;
    assert_eq!(device.audited("version-quarantined"), 2);
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
}
