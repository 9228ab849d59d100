//! What a thief of keys can sign: metadata with good signatures and wrong content, in a copied repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use edgeward_models::Digest;
use edgeward_models::chunk::pack_target;
use edgeward_models::repository::{METADATA_DIRECTORY, chunk_path};
use serde::Serialize;
use serde_json::{Value, json};

/// Roles that the snapshot lists.
const LISTED: [&str; 3] = ["releases", "rollouts", "targets"];

/// The newest metadata of a repository directory, to be changed and signed again in place.
pub struct Forgery {
    directory: PathBuf,
    keys: PathBuf,
    /// The `signed` part of each role's file.
    signed: BTreeMap<&'static str, Value>,
    /// By role, as its own file names it.
    key_ids: BTreeMap<&'static str, String>,
    /// The role whose key signs, where it is not the role's own.
    signers: BTreeMap<&'static str, &'static str>,
}

impl Forgery {
    /// `keys` holds a PEM file per role.
    pub fn of(directory: &Path, keys: &Path) -> Self {
        let mut forgery = Self {
            directory: directory.to_owned(),
            keys: keys.to_owned(),
            signed: BTreeMap::new(),
            key_ids: BTreeMap::new(),
            signers: BTreeMap::new(),
        };
        forgery.open("timestamp", "timestamp.json");
        let version = forgery.signed["timestamp"]["meta"]["snapshot.json"]["version"].clone();
        forgery.open("snapshot", &format!("{version}.snapshot.json"));
        for role in LISTED {
            let meta = &forgery.signed["snapshot"]["meta"][format!("{role}.json")];
            let file = format!("{}.{role}.json", meta["version"]);
            forgery.open(role, &file);
        }
        // Whoever can sign at all can sign a newer timestamp and snapshot; rows that mean otherwise say so.
        forgery.newer("timestamp").newer("snapshot")
    }

    fn open(&mut self, role: &'static str, file: &str) {
        let mut value = read(&self.directory, file);
        let id = value["signatures"][0]["keyid"].as_str().expect("a key id");
        self.key_ids.insert(role, id.to_owned());
        self.signed.insert(role, value["signed"].take());
    }

    #[must_use]
    pub fn edit(mut self, role: &'static str, change: impl FnOnce(&mut Value)) -> Self {
        change(self.signed.get_mut(role).expect("a role"));
        self
    }

    #[must_use]
    pub fn version(self, role: &'static str, version: u64) -> Self {
        self.edit(role, |signed| signed["version"] = version.into())
    }

    /// Counts the version of a role up by one.
    #[must_use]
    pub fn newer(self, role: &'static str) -> Self {
        let version = self.signed[role]["version"].as_u64().expect("a version");
        self.version(role, version + 1)
    }

    #[must_use]
    pub fn signed_by(mut self, role: &'static str, signer: &'static str) -> Self {
        self.signers.insert(role, signer);
        self
    }

    /// Puts a target of these bytes (at most one chunk) into a role.
    #[must_use]
    pub fn target(self, role: &'static str, name: &str, bytes: &[u8]) -> Self {
        let packed = pack_target(bytes).expect("pack");
        assert!(packed.list.is_none(), "{name} is larger than a chunk");
        for (digest, bytes) in packed.chunks {
            let path = self.directory.join(chunk_path(&digest));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
            std::fs::write(path, bytes).expect("write a chunk");
        }
        let entry = json!({ "length": bytes.len(), "hashes": { "sha256": Digest::of(bytes) } });
        self.edit(role, |signed| signed["targets"][name] = entry)
    }

    /// Links all roles as they now stand, signs them and writes them.
    pub fn write(mut self) {
        for role in LISTED {
            self.link("snapshot", role);
        }
        self.link("timestamp", "snapshot");
        for role in LISTED.into_iter().chain(["snapshot"]) {
            let file = format!("{}.{role}.json", self.signed[role]["version"]);
            write(&self.directory, &file, &self.sign(role));
        }
        write(&self.directory, "timestamp.json", &self.sign("timestamp"));
    }

    fn link(&mut self, from: &'static str, to: &'static str) {
        let bytes = self.sign(to);
        let link = json!({
            "version": self.signed[to]["version"],
            "length": bytes.len(),
            "hashes": { "sha256": Digest::of(&bytes) },
        });
        self.signed.get_mut(from).expect("a role")["meta"][format!("{to}.json")] = link;
    }

    fn sign(&self, role: &'static str) -> Vec<u8> {
        let signer = self.signers.get(role).copied().unwrap_or(role);
        let text = std::fs::read(self.keys.join(format!("{signer}.pem"))).expect("read a key");
        let key = pem::parse(text).expect("a PEM file");
        let pair = Ed25519KeyPair::from_pkcs8(key.contents()).expect("a key");
        let signed = &self.signed[role];
        let mut form = Vec::new();
        let formatter = olpc_cjson::CanonicalFormatter::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut form, formatter);
        signed.serialize(&mut serializer).expect("canonical JSON");
        let sig = hex::encode(pair.sign(&form).as_ref());
        let signatures = json!([{ "keyid": self.key_ids[signer], "sig": sig }]);
        serde_json::to_vec(&json!({ "signed": signed, "signatures": signatures })).expect("JSON")
    }
}

/// A metadata file of a repository directory.
pub fn read(directory: &Path, file: &str) -> Value {
    let path = directory.join(METADATA_DIRECTORY).join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Replaces a metadata file of a repository directory.
pub fn write(directory: &Path, file: &str, bytes: &[u8]) {
    std::fs::write(directory.join(METADATA_DIRECTORY).join(file), bytes).expect("write metadata");
}
