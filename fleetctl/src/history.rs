//! What is remembered of a change: who made it, when, and what it was.

use edgeward_models::fleet::history::{self, Change};
use edgeward_models::fleet::rollout::DesiredState;
use jiff::Timestamp;

/// Says who makes changes, where it is not the user and computer that fleetctl runs as and on.
const OPERATOR: &str = "FLEETCTL_OPERATOR";

/// Writes a change into the desired state that it led to.
pub fn remember(desired: &mut DesiredState, what: String) {
    let change = Change {
        sequence: desired.sequence,
        at: Timestamp::now(),
        by: operator(),
        what,
    };
    history::remember(&mut desired.history, change);
}

fn operator() -> String {
    let said = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    said(OPERATOR).unwrap_or_else(|| {
        let user = said("USER").or_else(|| said("LOGNAME"));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let user = user.unwrap_or_else(|| "somebody".to_owned());
        match host.trim() {
            "" => user,
            host => format!("{user}@{host}"),
        }
    })
}
