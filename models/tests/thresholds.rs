//! Two of three must sign: offline, over the exact bytes, and devices count.

mod common;

use std::num::NonZeroU64;
use std::path::PathBuf;

use common::forge::Forgery;
use common::{Device, Fleet, day};
use edgeward_models::sign::{
    KeyRing, Proposal, Repository, SignError, SigningRole, make_key, public_key, read_public,
};
use jiff::{SignedDuration, Timestamp};

const TWO: NonZeroU64 = NonZeroU64::new(2).expect("two");

/// Somebody who signs on another machine: keys of their own and a copy of the repository.
struct Signer {
    keys: KeyRing,
    copy: tempfile::TempDir,
}

impl Signer {
    fn new(fleet: &Fleet, role: SigningRole) -> (Self, PathBuf) {
        let copy = tempfile::tempdir().expect("tempdir");
        let keys = copy.path().join("keys");
        make_key(&keys, role, None).expect("key");
        let public = copy.path().join("public.pem");
        std::fs::write(&public, public_key(&keys, role).expect("public")).expect("write");
        let signer = Self {
            keys: KeyRing::open(&keys).expect("keys"),
            copy,
        };
        signer.catch_up(fleet);
        (signer, public)
    }

    fn directory(&self) -> PathBuf {
        self.copy.path().join("repository")
    }

    fn catch_up(&self, fleet: &Fleet) {
        fleet.repository.export(&self.directory()).expect("export");
    }

    /// What signing would allow, and the file with this signature.
    fn sign(&self, file: &[u8]) -> Result<(String, Vec<u8>), SignError> {
        let known = Repository::open(&self.directory()).expect("open");
        let mut proposal = Proposal::read(file)?;
        let before = proposal.verified_before(&known)?;
        let words = proposal.explain(&before, proposal.made)?.join("\n");
        let before_it_was_made = proposal.made - SignedDuration::from_hours(2);
        let early = proposal.explain(&before, before_it_was_made);
        assert_eq!(early.is_err(), words.starts_with("root "), "{words}");
        let mut greedy: serde_json::Value = serde_json::from_slice(file).expect("JSON");
        greedy["documents"]["timestamp"] = greedy["documents"]
            .as_object()
            .and_then(|documents| documents.values().next().cloned())
            .expect("a document");
        let greedy = serde_json::to_vec(&greedy).expect("JSON");
        let refused = Proposal::read(&greedy).expect_err("what nobody is shown");
        assert!(refused.to_string().contains("timestamp"), "{refused}");
        proposal.sign(&before, &self.keys)?;
        Ok((words, proposal.to_bytes()?))
    }
}

/// The file that a change without enough signatures becomes.
fn waits<T: std::fmt::Debug>(result: Result<T, SignError>) -> Vec<u8> {
    match result.expect_err("not enough signatures") {
        SignError::Unsigned { proposal, .. } => proposal.to_bytes().expect("bytes"),
        other => panic!("{other}"),
    }
}

/// A fleet in which two of three keys must sign a role.
fn two_of_three(role: SigningRole) -> (Fleet, [Signer; 2]) {
    let mut fleet = Fleet::new();
    let [first, second] = [(); 2].map(|()| Signer::new(&fleet, role));
    let mut roster = fleet.repository.roster().expect("roster");
    for (_, public) in [&first, &second] {
        roster
            .add(role, read_public(public).expect("public"))
            .expect("add");
    }
    reorganize(&mut fleet, &roster, day(1)).expect("one key suffices");
    let mut roster = fleet.repository.roster().expect("roster");
    roster.set_threshold(role, TWO).expect("threshold");
    for (signer, _) in [&first, &second] {
        signer.catch_up(&fleet);
    }
    // Whoever may sign now says that two must, and two must sign what stands, too.
    let file = waits(reorganize(&mut fleet, &roster, day(1)));
    let (words, file) = first.0.sign(&file).expect("signed");
    assert!(
        words.contains(&format!(
            "2 of 3 keys must sign role {role}, instead of 1 of 3"
        )),
        "{words}"
    );
    complete(&mut fleet, &file, day(1)).expect("complete");
    for (signer, _) in [&first, &second] {
        signer.catch_up(&fleet);
    }
    (fleet, [first.0, second.0])
}

fn reorganize(
    fleet: &mut Fleet,
    roster: &edgeward_models::sign::Roster,
    now: Timestamp,
) -> Result<(), SignError> {
    let publication = fleet.repository.reorganize(roster, &[&fleet.keys], now)?;
    fleet.publish(&publication);
    Ok(())
}

fn complete(fleet: &mut Fleet, file: &[u8], now: Timestamp) -> Result<(), SignError> {
    let proposal = Proposal::read(file)?;
    let publication = fleet.repository.complete(proposal, &fleet.keys, now)?;
    fleet.publish(&publication);
    Ok(())
}

#[tokio::test]
async fn a_release_needs_two_signatures_from_two_machines_and_devices_take_it_then() {
    let (mut fleet, signers) = two_of_three(SigningRole::Releases);
    let device = Device::enrolled(&fleet);
    device.follows(&fleet.carrier, day(1)).await;
    fleet.stage("digits", "1.0.0", b"model");
    let file = waits(fleet.repository.commit(&fleet.keys, day(2)));
    // Not yet.
    let lacks = complete(&mut fleet, &file, day(2)).expect_err("one signature");
    assert!(
        lacks.to_string().contains("role releases has 1 of 2"),
        "{lacks}"
    );
    let (words, file) = signers[1].sign(&file).expect("signed");
    for said in [
        "+ models/digits/1.0.0/model.tflite: 5 bytes, sha256",
        "release 1",
    ] {
        assert!(words.contains(said), "no {said:?} in {words}");
    }
    complete(&mut fleet, &file, day(3)).expect("complete");
    let repository = device.follows(&fleet.carrier, day(3)).await;
    let target = repository.target("models/digits/1.0.0/model.tflite");
    assert!(target.is_some());
}

#[tokio::test]
async fn a_device_counts_signatures_itself() {
    for role in [SigningRole::Releases, SigningRole::Root] {
        let (mut fleet, _) = two_of_three(role);
        let device = Device::enrolled(&fleet);
        device.follows(&fleet.carrier, day(1)).await;
        // A thief of one key, and of the keys of snapshot and timestamp.
        let carrier = fleet.carrier.copy();
        if role == SigningRole::Root {
            let root: serde_json::Value =
                serde_json::from_slice(&fleet.repository.root().expect("root")).expect("json");
            let mut root = root["signed"].clone();
            let next = fleet.repository.root_version() + 1;
            root["version"] = next.into();
            let bytes = common::forge::sign(&fleet, "root", &root);
            carrier.put(&format!("{next}.root.json"), &bytes);
        } else {
            let version = |name: &str| {
                let roles = fleet.repository.roles().expect("roles");
                let role = roles.iter().find(|r| r.role.name() == name);
                role.expect("a role").version + 1
            };
            Forgery::of(&fleet)
                .version("releases", version("releases"))
                .version("snapshot", version("snapshot"))
                .version("timestamp", version("timestamp"))
                .publish(&carrier);
        }
        let error = device.refuses(&carrier, day(2)).await;
        assert!(
            error.contains(role.name()) && error.contains("signed"),
            "{error}"
        );
        fleet.refresh(day(2));
        device.follows(&fleet.carrier, day(2)).await;
    }
}

#[test]
fn a_revoked_keys_signature_counts_for_nothing() {
    let (mut fleet, signers) = two_of_three(SigningRole::Releases);
    fleet.stage("digits", "1.0.0", b"model");
    let file = waits(fleet.repository.commit(&fleet.keys, day(2)));
    let (_, signed) = signers[0].sign(&file).expect("signed");
    // Before it is published that key is revoked, with the signatures of the two others.
    let mut roster = fleet.repository.roster().expect("roster");
    let id = signers[0].keys.id(SigningRole::Releases).expect("id");
    roster
        .revoke(SigningRole::Releases, &id[..12])
        .expect("revoke");
    let revocation = waits(fleet.repository.reorganize(&roster, &[&fleet.keys], day(3)));
    let (words, revocation) = signers[1].sign(&revocation).expect("signed");
    assert!(
        words.contains(&format!("- key {id} may not sign role releases any more")),
        "{words}"
    );
    complete(&mut fleet, &revocation, day(3)).expect("revoked");
    let error = complete(&mut fleet, &signed, day(4)).expect_err("moved on");
    assert!(
        error.to_string().contains("the repository moved on"),
        "{error}"
    );
    // What is made anew lacks a signature, and the revoked key cannot give it.
    fleet.stage("digits", "2.0.0", b"model");
    let file = waits(fleet.repository.commit(&fleet.keys, day(4)));
    signers[0].catch_up(&fleet);
    let (_, again) = signers[0].sign(&file).expect("nothing to add");
    assert_eq!(again, file);
    let error = complete(&mut fleet, &again, day(4)).expect_err("one signature");
    assert!(
        error.to_string().contains("role releases has 1 of 2"),
        "{error}"
    );
    signers[1].catch_up(&fleet);
    let (_, good) = signers[1].sign(&file).expect("signed");
    complete(&mut fleet, &good, day(4)).expect("complete");
}

#[test]
fn nobody_signs_what_was_changed_on_its_way_or_is_not_shown() {
    let (mut fleet, signers) = two_of_three(SigningRole::Rollouts);
    fleet
        .repository
        .set_desired(&common::desired("radiology", 1))
        .expect("desired");
    let file = waits(fleet.repository.commit(&fleet.keys, day(2)));
    let (words, _) = signers[0].sign(&file).expect("signed");
    for said in [
        "+ groups/radiology.json",
        "models.digits.version: \"1.0.0\"",
    ] {
        assert!(words.contains(said), "no {said:?} in {words}");
    }
    let text = String::from_utf8(file).expect("text");
    // The document that is shown is not the one that is signed.
    let other = text.replace("1.0.0", "9.0.0");
    let error = signers[0]
        .sign(other.as_bytes())
        .expect_err("another document");
    assert!(
        error
            .to_string()
            .contains("nobody could know what they sign"),
        "{error}"
    );
    // Metadata of another fleet.
    let stranger = Fleet::new();
    stranger
        .repository
        .export(&signers[1].copy.path().join("stranger"))
        .expect("export");
    let known = Repository::open(&signers[1].copy.path().join("stranger")).expect("open");
    let proposal = Proposal::read(text.as_bytes()).expect("read");
    proposal
        .verified_before(&known)
        .err()
        .expect("another fleet");
    // What is signed was changed: signatures made before count no longer.
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("json");
    let signed = value["documents"]["rollouts"]["signed"]
        .as_str()
        .expect("text");
    let changed = signed.replace("\"length\":", "\"length\": ");
    value["documents"]["rollouts"]["signed"] = changed.into();
    let error = signers[0]
        .sign(value.to_string().as_bytes())
        .expect_err("not canonical");
    assert!(
        error
            .to_string()
            .contains("not TUF metadata as this program writes it"),
        "{error}"
    );
}

#[test]
fn a_threshold_cannot_shut_everybody_out() {
    let mut fleet = Fleet::new();
    let mut roster = fleet.repository.roster().expect("roster");
    let error = roster
        .set_threshold(SigningRole::Root, TWO)
        .expect_err("one key");
    assert!(error.to_string().contains("has 1 keys"), "{error}");
    let error = roster
        .set_threshold(SigningRole::Timestamp, TWO)
        .expect_err("online");
    assert!(
        error.to_string().contains("whichever machine publishes"),
        "{error}"
    );
    let id = fleet.keys.id(SigningRole::Root).expect("id");
    let error = roster
        .revoke(SigningRole::Root, &id)
        .expect_err("the last key");
    assert!(
        error.to_string().contains("add another key first"),
        "{error}"
    );
    let error = roster
        .revoke(SigningRole::Root, "00")
        .expect_err("no such key");
    assert!(
        error.to_string().contains("not the beginning of the id"),
        "{error}"
    );
    let error = fleet
        .repository
        .reorganize(&roster, &[&fleet.keys], day(1))
        .expect_err("same");
    assert!(error.to_string().contains("nothing changes"), "{error}");
}
