//! More than a device can do: what it takes on is answered in time, the rest is told so at once.

use std::time::Duration;

use edgeward_tests::overload::{self, Overload};

#[test]
fn ten_times_the_load_is_answered_or_refused_and_passes() {
    let (site, request) = overload::site();
    // A third of what it can do, so that three times too much comes, even where others use the processor.
    let driven = Overload::drive(
        &site.device.socket_path(),
        &request,
        0.3,
        Duration::from_secs(2),
    );
    let said = driven.to_string();
    for phase in [&driven.before, &driven.peak, &driven.after] {
        assert_eq!(
            phase.count(200) + phase.count(429),
            phase.answers.len(),
            "{said}"
        );
        let silent = phase
            .answers
            .iter()
            .find(|a| a.status == 429 && !a.retry_after);
        assert!(silent.is_none(), "a 429 without Retry-After");
    }
    // Bounds that hold where others use the processor too; `make soak` has the strict ones.
    assert!(driven.before.share(200) > 0.5, "{said}");
    assert!(driven.peak.count(429) > 0, "it was not too much: {said}");
    // The device goes on working.
    let worked = driven.peak.count(200) as f64 / 2.0;
    assert!(worked > driven.capacity / 10.0, "{said}");
    assert!(driven.peak.p99(200) < Duration::from_secs(1), "{said}");
    assert!(driven.peak.p99(429) < Duration::from_secs(1), "{said}");
    // And is itself again when the load is.
    assert!(driven.after.share(200) > 0.5, "{said}");
}
