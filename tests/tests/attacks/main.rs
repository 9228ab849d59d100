//! Every known attack on the update of versions, replayed against a real agent over both carriers.
//!
//! Each row makes a hostile repository from an honest one, with the keys that such an attacker would hold. The
//! device that is offered it serves on, takes no version from it, says why, and takes the next honest version
//! when the operator publishes it, from before and after a restart alike.

mod names;
mod past;
mod scene;
mod tuf;

use std::path::PathBuf;

use edgeward_tests::BrokerKind;

use past::Past;
use scene::{Carrier, Scene};

/// What the device must make of a hostile repository.
pub enum Verdict {
    /// Refuses it with these words.
    Refused(&'static [&'static str]),
    /// Sees that it is older than what it has, which is no offence.
    Older,
    /// Has nothing to refuse: what is signed is taken, and no version with it.
    Believed,
}

pub struct Attack {
    pub name: &'static str,
    /// What the device has seen before, beside the current repository.
    pub before: Option<fn(&Past) -> PathBuf>,
    pub hostile: fn(&Past) -> PathBuf,
    pub verdict: Verdict,
    /// What the operator publishes at last.
    pub honest: fn(&Past) -> PathBuf,
}

pub fn attack(name: &'static str, hostile: fn(&Past) -> PathBuf, verdict: Verdict) -> Attack {
    Attack {
        name,
        before: None,
        hostile,
        verdict,
        honest: past::next,
    }
}

impl Attack {
    pub fn and_then_published(self, honest: fn(&Past) -> PathBuf) -> Self {
        Self { honest, ..self }
    }
}

fn replay(carrier: Carrier) {
    let mut past = Past::new(BrokerKind::Mosquitto);
    for (number, attack) in tuf::attacks()
        .into_iter()
        .chain(names::attacks())
        .enumerate()
    {
        note(attack.name);
        if carrier == Carrier::Broker {
            // Nothing of the row before is left on it.
            past.fleet.broker().restart();
        }
        let mut device = past.device.clone_as(&format!("row-{number}"));
        if carrier == Carrier::Directory {
            device.without_fleet();
        }
        device.start();
        let mut scene = Scene {
            past: &past,
            device,
            carrier,
        };
        let (mut sample, mut version) = ("digits-2.0.0", "2.0.0");
        if let Some(before) = attack.before {
            scene.offer(&before(&past));
            scene.device.wait_active("digits", "3.0.0");
            (sample, version) = ("digits-1.0.0", "3.0.0");
        }
        let hostile = (attack.hostile)(&past);
        let offered = scene.offer(&hostile);
        scene.judged(offered, &attack.verdict);
        scene.serves(sample, version);
        scene.device.kill();
        scene.device.start();
        scene.serves(sample, version);
        scene.offer(&(attack.honest)(&past));
        scene.device.wait_active("digits", "3.0.0");
        scene.serves("digits-1.0.0", "3.0.0");
        scene.device.kill();
    }
}

/// Shown when the row fails.
#[allow(clippy::print_stderr)]
fn note(row: &str) {
    eprintln!("row: {row}");
}

#[test]
fn no_attack_over_the_broker_changes_what_serves_or_lasts() {
    replay(Carrier::Broker);
}

#[test]
fn no_attack_from_a_directory_changes_what_serves_or_lasts() {
    replay(Carrier::Directory);
}
