//! How a status looks.

use super::*;
use crate::statuses::tests::status;
use edgeward_models::fleet::routing::{Routing, RoutingStatus, parse_label};
use edgeward_models::fleet::status::{ActiveVersion, Online, Phase};
use edgeward_models::name::Version;

fn report(heard: Heard) -> Report {
    Report {
        device: "ct-1".parse().expect("name"),
        online: Some(Online {
            online: true,
            reason: "started".into(),
            boot_id: "b".into(),
            session: 1,
        }),
        status: heard,
    }
}

fn shown(heard: Heard) -> String {
    let groups = BTreeSet::from(["radiology".parse().expect("name")]);
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(lines(&report(heard), &groups, 90));
    table(&rows)
}

#[test]
fn a_refused_version_shows_beside_the_one_that_serves_on() {
    let mut said = status(&"ct-1".parse().expect("name"), "b", 1);
    said.models = vec![ModelStatus {
        model: "digits".parse().expect("name"),
        active: Some(ActiveVersion {
            version: Version::new(1, 0, 0),
            release: 1,
            delegate: "xnnpack".parse().expect("name"),
            delegated_nodes: 6,
            total_nodes: 7,
            refused_delegates: Vec::new(),
        }),
        previous: None,
        target: Some(Version::new(2, 0, 0)),
        rollout: None,
        soak: None,
        phase: Phase::Refused,
        reason: Some("golden vector 0 differs".to_owned()),
        routing: None,
    }];
    assert_eq!(
        shown(Heard::Status(Box::new(said))),
        "DEVICE  ONLINE  GROUPS     MODEL   ACTIVE  PHASE          DELEGATE  AGE    NOTE\n\
         ct-1    yes     radiology  digits  1.0.0   refused 2.0.0  xnnpack   1 min  golden vector 0 differs\n"
    );
}

#[test]
fn versions_beside_the_active_one_have_lines_of_their_own_and_an_override_is_said_aloud() {
    let device = "ct-1".parse().expect("name");
    let mut said = status(&device, "b", 1);
    let routing = Routing {
        labels: [parse_label("canary=2.0.0").expect("label")].into(),
        ..Routing::default()
    };
    said.models = vec![ModelStatus {
        model: "digits".parse().expect("name"),
        active: None,
        previous: None,
        target: None,
        rollout: None,
        soak: None,
        phase: Phase::Active,
        reason: None,
        routing: Some(RoutingStatus {
            routing,
            overridden: true,
            shadow: None,
            versions: vec![BesideStatus {
                version: Version::new(2, 0, 0),
                served: None,
                phase: Phase::Refused,
                reason: Some("golden vector 0 differs".to_owned()),
            }],
        }),
    }];
    let text = shown(Heard::Status(Box::new(said)));
    assert!(
        text.contains("OVERRIDE on the device: labels canary=2.0.0"),
        "{text}"
    );
    let line = text
        .lines()
        .find(|line| line.contains("beside 2.0.0 refused"));
    assert!(
        line.is_some_and(|line| line.ends_with("golden vector 0 differs")),
        "{text}"
    );
}

#[test]
fn a_forged_status_is_named_so_and_not_shown() {
    let text = shown(Heard::NotBelieved("no signature".to_owned()));
    assert!(text.contains("NOT BELIEVED: no signature"), "{text}");
    let value = to_json(
        &report(Heard::NotBelieved("no signature".to_owned())),
        &BTreeSet::new(),
    );
    assert_eq!(value["verified"], false);
    assert!(value["status"].is_null());
}

#[test]
fn weak_points_are_said_aloud() {
    let mut said = status(&"ct-1".parse().expect("name"), "b", 1);
    said.stale = true;
    said.sandbox = "best-effort: no landlock".to_owned();
    said.at = 1000;
    let text = shown(Heard::Status(Box::new(said)));
    for words in ["STALE", "SANDBOX: best-effort", "in the future"] {
        assert!(text.contains(words), "{text}");
    }
}
