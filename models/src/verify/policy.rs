//! A site's rules about time, and what follows from them.
//!
//! Expiry never ends what is served; it bars what is new. Root, targets and the delegated roles bar new
//! installs from the moment they expire. The timestamp's own expiry is not looked at: how long a site may
//! hear nothing is the site's setting, since an air-gapped one hears from its fleet once a year.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::chain::Chain;

/// A site's rules about time.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Timestamps older than this make the device `stale`.
    pub stale_after: Duration,
}

/// Whether new things may be taken.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub stale: bool,
    /// Why nothing new may be installed.
    pub bar: Option<String>,
    /// Roles that end within [`END_IN_SIGHT`].
    pub ends: Vec<String>,
}

/// How long before something ends its owner is told.
pub const END_IN_SIGHT: SignedDuration = SignedDuration::from_hours(60 * 24);

impl Policy {
    /// `now` is the later of clock and trusted time.
    pub(super) fn judge(self, chain: &Chain, now: Timestamp) -> Verdict {
        let allowed = SignedDuration::try_from(self.stale_after).unwrap_or(SignedDuration::MAX);
        let age = now.duration_since(chain.signed_at);
        let stale = age > allowed;
        let (mut reasons, mut ends) = (Vec::new(), Vec::new());
        if stale {
            reasons.push(format!(
                "the newest word from the fleet is {} days old and {} are allowed: bring newer metadata \
                 (`fleetctl refresh` and `sync`, or `edgeward import`)",
                age.as_hours() / 24,
                allowed.as_hours() / 24
            ));
        }
        for (role, expires) in chain.offline_expiries() {
            if expires < now {
                reasons.push(format!(
                    "the role {role} expired on {}: its metadata must be signed anew",
                    expires.strftime("%Y-%m-%d")
                ));
            } else if expires < now.saturating_add(END_IN_SIGHT).unwrap_or(Timestamp::MAX) {
                ends.push(format!(
                    "the role {role} ends on {}; nothing new is installed from then on: `fleetctl key renew`",
                    expires.strftime("%Y-%m-%d")
                ));
            }
        }
        Verdict {
            stale,
            ends,
            bar: (!reasons.is_empty()).then(|| reasons.join("; ")),
        }
    }
}
