//! Who is in which wave, and when a rollout goes on.

use super::*;
use proptest::prelude::*;

fn rollout() -> RolloutId {
    "r1".parse().expect("name")
}

fn group(count: usize) -> BTreeSet<DeviceId> {
    let name = |i| format!("device-{i}").parse().expect("name");
    (0..count).map(name).collect()
}

fn rule(min_devices: u32, max_failed_percent: u8) -> HaltRule {
    HaltRule {
        min_devices,
        max_failed_percent,
    }
}

fn plan(canaries: &[&str], sizes: &[&str]) -> Waves {
    let sizes = sizes.iter().map(|s| s.parse().expect("a size")).collect();
    let canaries = canaries.iter().map(|c| c.parse().expect("name")).collect();
    let plan = Waves::plan(canaries, sizes, rule(1, 10), Timestamp::UNIX_EPOCH);
    plan.expect("a plan")
}

fn included(waves: &Waves, members: &BTreeSet<DeviceId>) -> BTreeSet<DeviceId> {
    let included = members.iter().filter(|m| waves.includes(m, &rollout()));
    included.cloned().collect()
}

/// The devices of each wave in turn.
fn walk(mut waves: Waves, members: &BTreeSet<DeviceId>) -> Vec<BTreeSet<DeviceId>> {
    let mut all = Vec::new();
    while !waves.reaches_everybody() {
        waves = waves.widened(members, &rollout(), Timestamp::UNIX_EPOCH);
        all.push(included(&waves, members));
    }
    all
}

#[test]
fn waves_have_the_sizes_that_were_asked_for() {
    let sizes = |count, sizes: &[&str]| -> Vec<usize> {
        let waves = walk(plan(&[], sizes), &group(count));
        waves.iter().map(BTreeSet::len).collect()
    };
    assert_eq!(sizes(200, &["1", "10%", "50%", "100%"]), [1, 20, 100, 200]);
    // The last one is everybody, said or not; what would add nobody is passed over.
    assert_eq!(sizes(4, &["1", "10%", "50%"]), [1, 2, 4]);
    assert_eq!(sizes(3, &["5", "10%"]), [3]);
    assert_eq!(sizes(0, &["1", "50%"]), [0]);
    assert!(included(&plan(&[], &["1"]), &group(4)).is_empty());
}

#[test]
fn canaries_go_first_and_alone() {
    let members = group(10);
    let waves = walk(plan(&["device-3", "device-8"], &["40%"]), &members);
    let canaries = ["device-3", "device-8"].map(|c| c.parse().expect("name"));
    assert_eq!(waves[0], BTreeSet::from(canaries));
    assert_eq!((waves[1].len(), waves[2].len()), (4, 10));
    assert!(waves[1].is_superset(&waves[0]));
}

#[test]
fn sizes_that_shrink_or_mean_nothing_are_refused() {
    let sizes = vec![Size::Percent(50), Size::Percent(10)];
    let now = Timestamp::UNIX_EPOCH;
    assert!(Waves::plan(BTreeSet::new(), sizes, rule(1, 0), now).is_err());
    for text in ["", "0", "%", "0%", "101%", "-1", "+1", "1.5", "x", "1 %"] {
        assert!(text.parse::<Size>().is_err(), "{text:?}");
    }
    assert_eq!("100%".parse(), Ok(Size::Percent(100)));
    assert_eq!("5000".parse(), Ok(Size::Devices(5000)));
}

fn tally(healthy: usize, failed: usize, silent: usize, pending: usize) -> Tally {
    Tally {
        healthy,
        failed,
        silent,
        pending,
    }
}

#[test]
fn a_rollout_widens_when_all_are_well_and_stops_when_too_many_are_not() {
    let now = Timestamp::UNIX_EPOCH;
    let mut waves = plan(&[], &["1", "50%"]);
    waves.ends = later(now, 100);
    waves.open = 1;
    let decide = |waves: &Waves, tally: Tally| waves.decide(&tally, now);
    assert_eq!(decide(&waves, tally(0, 0, 0, 1)), Decision::Wait);
    assert_eq!(decide(&waves, tally(1, 0, 0, 0)), Decision::Widen);
    assert_eq!(decide(&waves, tally(9, 1, 0, 0)), Decision::Widen);
    for too_many in [tally(0, 1, 0, 0), tally(8, 1, 1, 0), tally(1, 0, 1, 9)] {
        assert!(matches!(decide(&waves, too_many), Decision::Halt(_)));
    }
    waves.approve = true;
    assert_eq!(decide(&waves, tally(1, 0, 0, 0)), Decision::AwaitApproval);
    waves.paused = true;
    assert_eq!(decide(&waves, tally(1, 0, 0, 0)), Decision::Paused);
    let halt = decide(&waves, tally(0, 1, 0, 0));
    assert!(matches!(halt, Decision::Halt(_)), "paused is not blind");
    waves.open = waves.count();
    assert_eq!(decide(&waves, tally(4, 0, 0, 0)), Decision::Complete);
}

#[test]
fn a_rollout_does_not_outlast_its_deadline() {
    let now = Timestamp::UNIX_EPOCH;
    let mut waves = plan(&[], &["1", "50%"]);
    (waves.open, waves.ends) = (1, later(now, 100));
    let waiting = tally(0, 0, 0, 1);
    assert_eq!(waves.decide(&waiting, later(now, 100)), Decision::Wait);
    let Decision::Halt(reason) = waves.decide(&waiting, later(now, 101)) else {
        panic!("it goes on for ever");
    };
    assert!(
        reason.contains("deadline passed in wave 1 of 3"),
        "{reason}"
    );
}

proptest! {
    #[test]
    fn no_device_leaves_a_wave_again_and_no_wave_is_larger_than_asked(
        count in 0usize..60,
        sizes in proptest::collection::vec((1u32..80, any::<bool>()), 0..5),
        canaries in 0usize..4,
    ) {
        let sizes: Vec<Size> = sizes.into_iter().map(|(n, share)| match share {
            true => Size::Percent(n as u8),
            false => Size::Devices(n),
        }).collect();
        let members = group(count);
        let canaries: BTreeSet<_> = members.iter().take(canaries).cloned().collect();
        let Ok(waves) = Waves::plan(canaries.clone(), sizes.clone(), rule(1, 0), Timestamp::UNIX_EPOCH) else {
            return Ok(());
        };
        let largest = sizes.iter().map(|s| s.of(count)).max().unwrap_or(0).max(canaries.len());
        let walked = walk(waves, &members);
        for (before, after) in walked.iter().zip(&walked[1..]) {
            prop_assert!(before.is_subset(after) && before.len() < after.len());
            prop_assert!(before.len() <= largest);
        }
        prop_assert_eq!(walked.last(), Some(&members));
    }

    /// Devices come and go while a rollout widens: whoever stays in the group stays in the waves.
    #[test]
    fn a_changing_group_drops_nobody_who_has_moved(first in 1usize..40, then in 1usize..40, size in 1u8..100) {
        let waves = plan(&[], &[&format!("{size}%"), "99%"]);
        let (before, after) = (group(first), group(then));
        let waves = waves.widened(&before, &rollout(), Timestamp::UNIX_EPOCH);
        let moved = included(&waves, &before);
        let wider = waves.widened(&after, &rollout(), Timestamp::UNIX_EPOCH);
        for device in moved.intersection(&after) {
            prop_assert!(wider.includes(device, &rollout()));
        }
    }

    #[test]
    fn the_halt_rule_is_about_shares_of_outcomes(
        healthy in 0usize..100, failed in 0usize..100, silent in 0usize..100, pending in 0usize..100,
        min_devices in 0u32..50, most in 0u8..=100,
    ) {
        let rule = rule(min_devices, most);
        let counted = tally(healthy, failed, silent, pending);
        let broken = rule.is_broken(&counted);
        let outcomes = healthy + failed + silent;
        if failed + silent == 0 || most == 100 {
            prop_assert!(!broken, "nothing failed, or everything may");
        }
        if broken {
            prop_assert!(outcomes >= min_devices as usize || pending == 0);
            // One more failure never mends it.
            let worse = Tally { failed: failed + 1, ..counted };
            prop_assert!(rule.is_broken(&worse));
        } else if outcomes >= min_devices as usize || pending == 0 {
            prop_assert!((failed + silent) * 100 <= usize::from(most) * outcomes);
        }
        // Silence and failure are the same to it.
        prop_assert_eq!(broken, rule.is_broken(&tally(healthy, failed + silent, 0, pending)));
    }
}
