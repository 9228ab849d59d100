//! What ends a rollout on a device, and what does not.

use super::*;
use crate::statuses::tests::{Speaker, status};
use edgeward_models::fleet::status::{ActiveVersion, AppliedGroup, ModelStatus};

fn wanted() -> Wanted {
    Wanted {
        group: "radiology".parse().expect("name"),
        sequence: 7,
        model: "digits".parse().expect("name"),
        what: What::Active {
            version: Version::new(2, 0, 0),
            release: 2,
        },
    }
}

fn saying(
    device: &DeviceId,
    sequence: u64,
    applied: u64,
    version: Version,
    phase: Phase,
) -> Status {
    let mut status = status(device, "boot", sequence);
    status.groups = vec![AppliedGroup {
        group: wanted().group,
        sequence: applied,
    }];
    status.models = vec![ModelStatus {
        model: wanted().model,
        active: Some(ActiveVersion {
            release: version.semver().major,
            version,
            delegate: "xnnpack".parse().expect("name"),
            delegated_nodes: 6,
            total_nodes: 7,
            refused_delegates: Vec::new(),
        }),
        previous: None,
        rollout: None,
        soak: None,
        target: Some(Version::new(2, 0, 0)),
        phase,
        reason: None,
        routing: None,
    }];
    status
}

#[test]
fn a_device_that_serves_the_version_is_active_and_says_where_it_runs() {
    let speaker = Speaker::new("ct-1");
    let id = speaker.device.id.clone();
    let mut watch = Watch::new(wanted(), vec![speaker.device.clone()], Memory::default());
    let old = Version::new(1, 0, 0);
    let fetching = Phase::Fetching { have: 50, of: 200 };
    let said = watch.hear(&id, &speaker.says(&saying(&id, 1, 7, old, fetching)));
    assert_eq!(said.as_deref(), Some("fetching 2.0.0 25 %"));
    watch.hear(
        &id,
        &speaker.says(&saying(&id, 2, 7, Version::new(2, 0, 0), Phase::Active)),
    );
    let outcome = Outcome::Active {
        delegate: "xnnpack (6 of 7 nodes)".to_owned(),
    };
    assert_eq!(watch.outcomes(), [(id, outcome)]);
}

#[test]
fn only_a_refusal_of_this_very_wish_counts() {
    let speaker = Speaker::new("ct-1");
    let id = speaker.device.id.clone();
    let mut watch = Watch::new(wanted(), vec![speaker.device.clone()], Memory::default());
    let mut earlier = saying(&id, 1, 6, Version::new(1, 0, 0), Phase::Refused);
    earlier.models[0].reason = Some("golden vectors".to_owned());
    watch.hear(&id, &speaker.says(&earlier));
    assert!(watch.pending().next().is_some());
    let mut now = saying(&id, 2, 7, Version::new(1, 0, 0), Phase::Refused);
    now.models[0].reason = Some("out of\u{1b} memory".to_owned());
    watch.hear(&id, &speaker.says(&now));
    let outcome = Outcome::Refused {
        reason: "out of  memory".to_owned(),
    };
    assert_eq!(watch.outcomes(), [(id, outcome)]);
}

#[test]
fn a_forged_or_replayed_status_neither_ends_nor_hurries_a_rollout() {
    let speaker = Speaker::new("ct-1");
    let rogue = Speaker::new("ct-1");
    let id = speaker.device.id.clone();
    let mut watch = Watch::new(wanted(), vec![speaker.device.clone()], Memory::default());
    let active = saying(&id, 5, 7, Version::new(2, 0, 0), Phase::Active);
    let said = watch.hear(&id, &rogue.says(&active)).expect("told");
    assert!(said.contains("ignored"), "{said}");
    watch.hear(
        &id,
        &speaker.says(&saying(&id, 9, 7, Version::new(1, 0, 0), Phase::Proving)),
    );
    watch.hear(&id, &speaker.says(&active));
    let online = Online {
        online: false,
        reason: "stopped".into(),
        boot_id: "boot".into(),
        session: 1,
    };
    watch.hear_online(&id, &codec::encode("online", &online).expect("encode"));
    let outcomes = watch.outcomes();
    let Outcome::Silent { reason } = &outcomes[0].1 else {
        panic!("{outcomes:?}")
    };
    let words = "offline (stopped); last said: proving 2.0.0; an unbelievable status was ignored: an old status";
    assert!(reason.starts_with(words), "{reason}");
}
