//! Who changed what a group should run, and when: kept in its desired state, under the same signature.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Changes that a desired state remembers; the oldest go first.
pub const REMEMBERED: usize = 32;
/// The longest text of a change, in bytes.
const LONGEST: usize = 300;

/// One change of a desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The desired state that it led to.
    pub sequence: u64,
    /// By the operator's clock.
    pub at: Timestamp,
    /// Who says to have made it; the signature says with which keys.
    pub by: String,
    /// In words.
    pub what: String,
}

/// Adds a change to those that are remembered.
pub fn remember(history: &mut Vec<Change>, mut change: Change) {
    for text in [&mut change.by, &mut change.what] {
        text.truncate(text.floor_char_boundary(LONGEST));
    }
    history.push(change);
    let excess = history.len().saturating_sub(REMEMBERED);
    history.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_changes_are_remembered_and_none_is_long() {
        let mut history = Vec::new();
        for sequence in 1..=100 {
            let change = Change {
                sequence,
                at: Timestamp::UNIX_EPOCH,
                by: "é".repeat(1000),
                what: "push".to_owned(),
            };
            remember(&mut history, change);
        }
        assert_eq!(history.len(), REMEMBERED);
        assert_eq!(history[REMEMBERED - 1].sequence, 100);
        assert!(history[0].by.len() <= LONGEST);
    }
}
