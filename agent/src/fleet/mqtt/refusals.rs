//! What the broker refuses this device at present, in words for people.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::LinkError;

/// What was asked of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Request {
    Publish,
    Read,
}

/// Refusals by request and place. A success at the same place takes one back.
pub(super) struct Refusals(watch::Sender<BTreeMap<(Request, String), String>>);

impl Refusals {
    /// Notes what became of a request, and hands it on.
    pub(super) fn noted<T>(
        &self,
        request: Request,
        topic: &str,
        outcome: Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        let place = (request, place(request, topic));
        match &outcome {
            Ok(_) => drop(self.0.send_if_modified(|all| all.remove(&place).is_some())),
            Err(problem @ LinkError::Refused { .. }) => {
                let text = problem.to_string();
                let known = self.0.borrow().get(&place).is_some_and(|old| *old == text);
                if !known {
                    self.0.send_modify(|all| drop(all.insert(place, text)));
                }
            }
            // Says nothing of what is permitted.
            Err(_) => {}
        }
        outcome
    }

    pub(super) fn forget(&self) {
        self.0
            .send_if_modified(|all| !std::mem::take(all).is_empty());
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<BTreeMap<(Request, String), String>> {
        self.0.subscribe()
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

/// The thousands of topics of a repository are one place.
fn place(request: Request, topic: &str) -> String {
    let directory = topic.rsplit_once('/').map(|(directory, _)| directory);
    match (request, directory) {
        (Request::Read, Some(directory)) => directory.to_owned(),
        _ => topic.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stands_until_the_same_is_permitted() {
        let refusals = Refusals::default();
        let refused = || LinkError::Refused {
            action: "let this device read",
            topic: "repo/chunk/a".to_owned(),
            reason: "NotAuthorized".to_owned(),
        };
        let texts = || refusals.subscribe().borrow().len();
        let read = |topic: &str, outcome: Result<(), LinkError>| {
            let _ = refusals.noted(Request::Read, topic, outcome);
        };
        read("repo/chunk/a", Err(refused()));
        read("repo/chunk/b", Err(refused()));
        assert_eq!(texts(), 1);
        read("repo/chunk/c", Err(LinkError::Lost));
        read("repo/metadata/x", Ok(()));
        assert_eq!(texts(), 1);
        read("repo/chunk/c", Ok(()));
        assert_eq!(texts(), 0);
    }
}
