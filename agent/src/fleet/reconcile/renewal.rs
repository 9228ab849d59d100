//! A renewed certificate is taken; what is about to end, and that this device was removed, is told.

use edgeward_models::Digest;
use edgeward_models::verify::END_IN_SIGHT;
use serde_json::json;
use tracing::{info, warn};

use super::Reconciler;
use crate::fleet::board::chain;
use crate::fleet::identity::IdentityError;

impl Reconciler {
    /// Takes the certificate that a verified repository holds out, if it is good and lasts longer.
    pub(super) fn renew(&mut self, certificate: &str) {
        if let Err(problem) = self.adopt(certificate) {
            warn!(problem = %chain(&problem), "renewed certificate not taken");
            let text = format!("the renewed certificate is not taken: {}", chain(&problem));
            self.workshop.board.error(text);
        }
        self.tell_certificate();
    }

    fn adopt(&self, certificate: &str) -> Result<(), IdentityError> {
        let Some(membership) = &self.membership else {
            return Ok(());
        };
        let credentials = &membership.credentials;
        let Some(validity) = credentials.judge(certificate, membership.clock.now())? else {
            return Ok(());
        };
        let fields = json!({
            "certificate": Digest::of(certificate.as_bytes()), "ends": validity.ends.to_string(),
        });
        self.workshop.audit.record("certificate-renewed", fields)?;
        credentials.adopt(certificate, validity)?;
        info!(ends = %validity.ends, "certificate renewed");
        Ok(())
    }

    /// Says that this device's key belongs to the fleet no longer. What it serves it serves on.
    pub(super) fn tell_removal(&self, removed: Option<Digest>) {
        let Some(membership) = &self.membership else {
            return;
        };
        let ours = membership.credentials.key_digest();
        let texts = match removed == Some(ours) {
            true => vec![
                "this device was taken out of the fleet: it serves what it has, gets nothing new, and its word counts \
                 for nothing; with `edgeward enroll --request FILE --new-key` it may join again"
                    .to_owned(),
            ],
            false => Vec::new(),
        };
        self.workshop.board.warn("removal", texts);
    }

    /// Warns of a certificate that is about to end. Serving never depends on it; the link to the broker does.
    pub(super) fn tell_certificate(&self) {
        let Some(membership) = &self.membership else {
            return;
        };
        let ends = membership.credentials.validity().ends;
        let rest = ends.duration_since(membership.clock.now());
        let day = ends.strftime("%Y-%m-%d");
        let advice = "`fleetctl device renew` makes another; without a line, carry it with `fleetctl export`";
        let text = match rest {
            rest if rest.is_negative() => {
                format!("this device's certificate ended on {day}, no broker takes it: {advice}")
            }
            rest if rest < END_IN_SIGHT => {
                format!("this device's certificate ends on {day}: {advice}")
            }
            _ => return self.workshop.board.warn("certificate", Vec::new()),
        };
        self.workshop.board.warn("certificate", vec![text]);
    }
}
