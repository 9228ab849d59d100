//! Arbitrary install, rollback, freeze, mix and match, fast-forward, endless data, key compromise.

use edgeward_models::chunk::MAX_CHUNK_BYTES;
use edgeward_models::sign::{KeyRing, Repository};
use edgeward_tests::{Fleet, forge};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::Verdict::{Believed, Older, Refused};
use crate::past::{GROUP, any_chunk, change_text, new_chunks, newest, past_rollouts, rotated};
use crate::{Attack, attack};

pub fn attacks() -> Vec<Attack> {
    vec![
        attack(
            "arbitrary install: everything signed with a stranger's keys",
            |past| {
                let stranger = Fleet::without_broker();
                for sample in ["digits-1.0.0", "digits-2.0.0", "breast-cancer-1.0.0"] {
                    stranger.push_sample(sample, GROUP);
                }
                let directory = past.copy(&stranger.export("stick"));
                let third = stranger.package("digits-1.0.0").version("9.9.9");
                stranger.push(third.path(), GROUP).expect_success();
                directory
            },
            Refused(&["timestamp.json", "not signed by the keys"]),
        ),
        attack(
            "arbitrary install: a signed file with one entry changed",
            |past| {
                let directory = past.copy(&past.next);
                change_text(&directory, "releases", "\"length\":", "\"length\":1");
                directory
            },
            Refused(&["releases.json is refused", "content"]),
        ),
        attack(
            "arbitrary install: another genuine chunk under a signed name",
            |past| {
                let directory = past.copy(&past.next);
                let chunks = new_chunks(&past.current, &directory);
                let other = std::fs::read(any_chunk(&past.old)).expect("read");
                for chunk in chunks {
                    std::fs::write(chunk, &other).expect("write");
                }
                directory
            },
            Refused(&["chunk", "tampered"]),
        ),
        attack(
            "arbitrary install: the list of releases signed by a thief of the online keys",
            |past| {
                let (directory, forgery) = past.forge(&past.next);
                forgery
                    .newer("releases")
                    .signed_by("releases", "timestamp")
                    .write();
                directory
            },
            Refused(&["releases", "not signed by the keys"]),
        ),
        attack(
            "arbitrary install: a role that speaks for another's paths",
            |past| {
                let (directory, forgery) = past.forge(&past.next);
                let name = "models/digits/9.9.9/model.tflite";
                forgery
                    .newer("rollouts")
                    .target("rollouts", name, b"evil")
                    .write();
                directory
            },
            Refused(&["models/digits/9.9.9/model.tflite"]),
        ),
        attack(
            "rollback: the whole older repository",
            |past| past.copy(&past.old),
            Older,
        ),
        attack(
            "rollback: one role taken back under a fresh timestamp",
            |past| {
                let (directory, forgery) = past.forge(&past.current);
                let old = forge::read(&past.old, &newest(&past.old, "rollouts"));
                forgery
                    .edit("rollouts", |signed| *signed = old["signed"].clone())
                    .write();
                directory
            },
            Refused(&["rollouts", "already trusts version"]),
        ),
        attack(
            "freeze: nothing newer than forty days is let through",
            |past| {
                let directory = past.copy(&past.next);
                let keys = KeyRing::open(&past.keys).expect("keys");
                let mut repository = Repository::open(&directory).expect("open");
                repository.accept_earlier_clock();
                let then = Timestamp::now() - SignedDuration::from_hours(40 * 24);
                repository.refresh(&keys, then).expect("sign");
                directory
            },
            Refused(&["the newest word from the fleet is 40 days old"]),
        )
        .and_then_published(|past| {
            // The refresh above counted the timestamp up.
            let directory = past.copy(&past.next);
            let keys = KeyRing::open(&past.keys).expect("keys");
            let mut repository = Repository::open(&directory).expect("open");
            for _ in 0..2 {
                repository.refresh(&keys, Timestamp::now()).expect("sign");
            }
            directory
        }),
        attack(
            "mix and match: an older list of releases under the newer name",
            |past| {
                let directory = past.copy(&past.next);
                let old = forge::read(&past.old, &newest(&past.old, "releases"));
                let bytes = serde_json::to_vec(&old).expect("JSON");
                forge::write(&directory, &newest(&directory, "releases"), &bytes);
                directory
            },
            Refused(&["releases.json is refused", "content"]),
        ),
        attack(
            "mix and match: the timestamp of one moment with the snapshot of another",
            |past| {
                let directory = past.copy(&past.next);
                let old = forge::read(&past.current, &newest(&past.current, "snapshot"));
                let bytes = serde_json::to_vec(&old).expect("JSON");
                forge::write(&directory, &newest(&directory, "snapshot"), &bytes);
                directory
            },
            Refused(&["snapshot.json is refused", "content"]),
        ),
        attack(
            "mix and match: the wish of one group under the name of another",
            |past| {
                let (directory, forgery) = past.forge(&past.next);
                let wish = json!({"format": 1, "group": "lab", "sequence": 90, "models": {}});
                let bytes = serde_json::to_vec(&wish).expect("JSON");
                forgery
                    .newer("rollouts")
                    .target("rollouts", "groups/radiology.json", &bytes)
                    .write();
                directory
            },
            Refused(&["groups/radiology.json is refused", "group lab"]),
        )
        .and_then_published(past_rollouts),
        Attack {
            // Only a change of keys helps: until then what the operator signs looks old.
            honest: rotated,
            ..attack(
                "fast-forward: versions run up by a thief of the online keys",
                |past| {
                    let (directory, forgery) = past.forge(&past.current);
                    let last = u64::MAX - 1;
                    forgery
                        .version("timestamp", last)
                        .version("snapshot", last)
                        .write();
                    directory
                },
                Believed,
            )
        },
        attack(
            "endless data: a timestamp padded beyond every limit",
            |past| {
                let directory = past.copy(&past.next);
                let mut bytes =
                    serde_json::to_vec(&forge::read(&directory, "timestamp.json")).expect("JSON");
                bytes.resize(bytes.len() + (9 << 20), b' ');
                forge::write(&directory, "timestamp.json", &bytes);
                directory
            },
            Refused(&["timestamp.json", "larger than the"]),
        ),
        attack(
            "endless data: chunks that never end",
            |past| {
                let directory = past.copy(&past.next);
                for chunk in new_chunks(&past.current, &directory) {
                    std::fs::write(chunk, vec![7; 2 * MAX_CHUNK_BYTES]).expect("write");
                }
                directory
            },
            Refused(&["chunk", "61440"]),
        ),
        Attack {
            before: Some(rotated),
            honest: |past| {
                let directory = past.copy(&past.rotated);
                let keys = KeyRing::open(&past.fleet.directory().join("new-keys")).expect("keys");
                let mut repository = Repository::open(&directory).expect("open");
                repository.refresh(&keys, Timestamp::now()).expect("sign");
                directory
            },
            ..attack(
                "key compromise: all keys from before the rotation, its root hidden",
                |past| {
                    let (directory, forgery) = past.forge(&past.next);
                    forgery
                        .version("timestamp", 900)
                        .version("snapshot", 900)
                        .write();
                    directory
                },
                Refused(&["timestamp.json", "not signed by the keys"]),
            )
        },
    ]
}
