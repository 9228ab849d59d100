//! Topics whose message is larger than this device takes. Such a message ends the connection that receives it,
//! so a topic that did so twice is left alone for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After this many connections lost to an oversize message a topic is left alone for a while.
const STRIKES: u32 = 2;
const POISON_TIME: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Poisoned(Mutex<HashMap<String, (u32, Instant)>>);

impl Poisoned {
    fn topics(&self) -> MutexGuard<'_, HashMap<String, (u32, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was lost to an oversize message of one of these.
    pub(super) fn strike(&self, topics: &[String]) {
        let mut poisoned = self.topics();
        poisoned.retain(|_, (_, since)| since.elapsed() < POISON_TIME);
        for topic in topics {
            let (strikes, since) = poisoned.entry(topic.clone()).or_insert((0, Instant::now()));
            *strikes += 1;
            *since = Instant::now();
        }
    }

    pub(super) fn contains(&self, topic: &str) -> bool {
        self.topics()
            .get(topic)
            .is_some_and(|(strikes, since)| *strikes >= STRIKES && since.elapsed() < POISON_TIME)
    }
}
