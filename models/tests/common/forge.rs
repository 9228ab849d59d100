//! What a thief of single keys can make: metadata with good signatures and wrong content.

use std::collections::BTreeMap;

use aws_lc_rs::signature::Ed25519KeyPair;
use edgeward_models::digest::Digest;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Carrier, Fleet};

/// The newest metadata of a fleet, to be changed and signed again with the fleet's own keys.
pub struct Forgery<'a> {
    fleet: &'a Fleet,
    /// The `signed` part of each role's file.
    pub signed: BTreeMap<&'static str, Value>,
    /// The role whose key signs, where it is not the role's own.
    pub signers: BTreeMap<&'static str, &'static str>,
}

const DELEGATED: [&str; 3] = ["releases", "rollouts", "targets"];

impl<'a> Forgery<'a> {
    pub fn of(fleet: &'a Fleet) -> Self {
        let open = |file: String| -> Value {
            let mut value: Value = serde_json::from_slice(&fleet.file(&file)).expect("json");
            value["signed"].take()
        };
        let timestamp = open("timestamp.json".to_owned());
        let version = &timestamp["meta"]["snapshot.json"]["version"];
        let snapshot = open(format!("{version}.snapshot.json"));
        let mut signed = BTreeMap::new();
        for role in DELEGATED {
            let version = &snapshot["meta"][format!("{role}.json")]["version"];
            signed.insert(role, open(format!("{version}.{role}.json")));
        }
        signed.insert("timestamp", timestamp);
        signed.insert("snapshot", snapshot);
        Self {
            fleet,
            signed,
            signers: BTreeMap::new(),
        }
    }

    /// Changes a role's content.
    pub fn edit(mut self, role: &'static str, change: impl FnOnce(&mut Value)) -> Self {
        change(self.signed.get_mut(role).expect("role"));
        self
    }

    pub fn version(self, role: &'static str, version: u64) -> Self {
        self.edit(role, |signed| signed["version"] = version.into())
    }

    pub fn signed_by(mut self, role: &'static str, signer: &'static str) -> Self {
        self.signers.insert(role, signer);
        self
    }

    /// Signs a role as it stands.
    pub fn sign(&self, role: &str) -> Vec<u8> {
        let signer = self.signers.get(role).copied().unwrap_or(role);
        sign(self.fleet, signer, &self.signed[role])
    }

    /// Links and signs all roles and offers them.
    pub fn publish(mut self, carrier: &Carrier) {
        for role in DELEGATED {
            self.link("snapshot", role);
        }
        self.link("timestamp", "snapshot");
        self.publish_unlinked(carrier);
    }

    /// Signs and offers all roles, leaving what they say of each other as it was edited.
    pub fn publish_unlinked(self, carrier: &Carrier) {
        for role in DELEGATED.into_iter().chain(["snapshot"]) {
            let file = format!("{}.{role}.json", self.signed[role]["version"]);
            carrier.put(&file, &self.sign(role));
        }
        carrier.put("timestamp.json", &self.sign("timestamp"));
    }

    pub fn link(&mut self, from: &'static str, to: &str) {
        let bytes = self.sign(to);
        let version = self.signed[to]["version"].clone();
        let link = json!({
            "version": version,
            "length": bytes.len(),
            "hashes": { "sha256": Digest::of(&bytes) },
        });
        self.signed.get_mut(from).expect("role")["meta"][format!("{to}.json")] = link;
    }
}

/// A metadata file with the signature of one role's key.
pub fn sign(fleet: &Fleet, signer: &str, signed: &Value) -> Vec<u8> {
    let text = std::fs::read(fleet.key_directory.join(format!("{signer}.pem"))).expect("key");
    let key = pem::parse(text).expect("pem");
    let pair = Ed25519KeyPair::from_pkcs8(key.contents()).expect("key");
    let mut form = Vec::new();
    let formatter = olpc_cjson::CanonicalFormatter::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut form, formatter);
    signed.serialize(&mut serializer).expect("canonical");
    let id = key_id(&pair);
    let sig = hex::encode(pair.sign(&form).as_ref());
    let signatures = json!([{ "keyid": id, "sig": sig }]);
    serde_json::to_vec(&json!({ "signed": signed, "signatures": signatures })).expect("json")
}

fn key_id(pair: &Ed25519KeyPair) -> String {
    use tough::sign::Sign;
    let id = pair.tuf_key().key_id().expect("key id");
    hex::encode(&*id)
}
