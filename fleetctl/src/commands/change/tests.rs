//! What follows from a desired state and how outcomes are told.

use super::*;

fn pace(percent: u8) -> Pace {
    Pace {
        percent,
        jitter: 0,
        soak: None,
    }
}

fn push(before: Option<DesiredState>, version: u64, percent: u8) -> DesiredState {
    let version = Version::new(version, 0, 0);
    let release = version.semver().major;
    let group = "radiology".parse().expect("name");
    let model = "digits".parse().expect("name");
    let asked = Asked {
        verb: "push",
        model: &model,
        version: &version,
        release,
        pace: &pace(percent),
        health: HealthLimits::default(),
        waves: None,
    };
    wish(before, &group, asked).expect("wish")
}

fn only(desired: &DesiredState) -> &Wish {
    desired.models.values().next().expect("one model")
}

#[test]
fn each_push_counts_up_and_remembers_what_ran_before() {
    let first = push(None, 1, 100);
    assert_eq!((first.sequence, only(&first).previous.clone()), (1, None));
    let second = push(Some(first.clone()), 2, 100);
    assert_eq!(
        (second.sequence, only(&second).previous.clone()),
        (2, Some(Version::new(1, 0, 0)))
    );
    assert_ne!(only(&first).rollout, only(&second).rollout);
    let history = second.history.iter().map(|change| change.what.as_str());
    assert_eq!(
        history.collect::<Vec<_>>(),
        ["push digits 1.0.0", "push digits 2.0.0"]
    );
}

#[test]
fn widening_keeps_the_rollout_and_trying_again_begins_a_new_one() {
    let tenth = push(Some(push(None, 1, 100)), 2, 10);
    let half = push(Some(tenth.clone()), 2, 50);
    assert_eq!(only(&tenth).rollout, only(&half).rollout);
    assert_eq!(only(&half).previous, Some(Version::new(1, 0, 0)));
    let again = push(Some(half.clone()), 2, 50);
    assert_ne!(only(&half).rollout, only(&again).rollout);
    assert_eq!(only(&again).previous, Some(Version::new(1, 0, 0)));
}

#[test]
fn a_group_goes_back_to_what_all_of_it_ran() {
    let tenth = push(Some(push(None, 1, 100)), 2, 10);
    let third = push(Some(tenth), 3, 10);
    assert_eq!(only(&third).previous, Some(Version::new(1, 0, 0)));
    let back = push(Some(third), 1, 100);
    assert_eq!(only(&back).previous, None, "not to itself");
}

#[test]
fn outcomes_are_told_device_by_device_and_a_refusal_outweighs_silence() {
    let outcomes = [
        (
            "ct-1",
            Outcome::Active {
                delegate: "xnnpack (6 of 7 nodes)".to_owned(),
            },
        ),
        (
            "ct-20",
            Outcome::Refused {
                reason: "golden vectors differ".to_owned(),
            },
        ),
        (
            "us-3",
            Outcome::Silent {
                reason: "offline (connection lost)".to_owned(),
            },
        ),
    ]
    .map(|(id, outcome)| (id.parse().expect("name"), outcome));
    let text = describe("digits 2.0.0", &outcomes);
    assert_eq!(
        text,
        "ct-1   active   digits 2.0.0 on xnnpack (6 of 7 nodes)\n\
         ct-20  refused  golden vectors differ\n\
         us-3   silent   offline (connection lost)\n"
    );
    let code = |outcomes: &[_]| format!("{:?}", exit_code(outcomes));
    assert_eq!(code(&outcomes[..1]), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(code(&outcomes[..2]), format!("{:?}", ExitCode::from(1)));
    assert_eq!(code(&outcomes), format!("{:?}", ExitCode::from(1)));
    assert_eq!(code(&outcomes[2..]), format!("{:?}", ExitCode::from(2)));
}
