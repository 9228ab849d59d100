//! An operator's side: signing keys, a repository, and an authority that certifies devices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use edgeward_models::fleet::enrolment::{BrokerAddress, EnrolmentBundle, FORMAT};
use edgeward_models::fleet::rollout::{DesiredState, Wish};
use edgeward_models::manifest::FileEntry;
use edgeward_models::name::FileName;
use edgeward_models::sign::{KeyRing, Repository};
use edgeward_models::{Digest, GroupName, Manifest};
use jiff::Timestamp;
use tempfile::TempDir;

pub const FLEET: &str = "ward";
pub const DEVICE: &str = "scanner-1";
pub const GROUP: &str = "radiology";

pub struct Site {
    pub directory: TempDir,
    pub keys: KeyRing,
    pub repository: Repository,
    pub authority: Authority,
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let keys = KeyRing::generate(&directory.path().join("keys")).expect("keys");
        let home = directory.path().join("repository");
        let repository = Repository::create(&home, &keys, Timestamp::now()).expect("repository");
        let mut site = Self {
            directory,
            keys,
            repository,
            authority: Authority::new(),
        };
        site.put_into(&[GROUP]);
        site
    }

    /// Puts the device into exactly these groups.
    pub fn put_into(&mut self, groups: &[&str]) {
        let groups: BTreeSet<GroupName> = groups.iter().map(|g| g.parse().expect("name")).collect();
        let device = DEVICE.parse().expect("name");
        self.repository.set_groups(&device, groups).expect("groups");
        self.commit();
    }

    pub fn commit(&mut self) {
        self.repository
            .commit(&self.keys, Timestamp::now())
            .expect("commit");
    }

    /// Signs a version made from a sample; `change` may spoil it first. Returns its release.
    pub fn add(
        &mut self,
        sample: &str,
        change: impl FnOnce(&mut Manifest, &mut BTreeMap<FileName, Vec<u8>>),
    ) -> u64 {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../models/samples")
            .join(sample);
        let bytes = std::fs::read(package.join("manifest.json")).expect("manifest");
        let mut manifest = Manifest::parse(&bytes).expect("manifest");
        let mut files: BTreeMap<FileName, Vec<u8>> = manifest
            .files
            .keys()
            .map(|name| {
                let bytes = std::fs::read(package.join(name.as_str())).expect("file");
                (name.clone(), bytes)
            })
            .collect();
        change(&mut manifest, &mut files);
        let scratch = tempfile::tempdir().expect("tempdir");
        let mut paths: BTreeMap<FileName, PathBuf> = BTreeMap::new();
        manifest.files.clear();
        for (name, bytes) in &files {
            let path = scratch.path().join(name.as_str());
            std::fs::write(&path, bytes).expect("write");
            paths.insert(name.clone(), path);
            let entry = FileEntry {
                length: bytes.len() as u64,
                sha256: Digest::of(bytes),
            };
            manifest.files.insert(name.clone(), entry);
        }
        let release = self
            .repository
            .next_release(&manifest.model)
            .expect("release");
        manifest.release = release;
        self.repository
            .add_version(&manifest, &paths)
            .expect("add version");
        self.commit();
        release
    }

    /// Has the group run `version` of `model`.
    pub fn wish(&mut self, model: &str, version: &str, release: u64, rollout: &str) {
        self.wish_with(model, version, release, rollout, |_| {});
    }

    pub fn wish_with(
        &mut self,
        model: &str,
        version: &str,
        release: u64,
        rollout: &str,
        change: impl FnOnce(&mut Wish),
    ) {
        let version = version.parse().expect("version");
        let mut wish = Wish::new(version, release, rollout.parse().expect("name"));
        change(&mut wish);
        self.change_desired(|desired| {
            desired.models.insert(model.parse().expect("name"), wish);
        });
    }

    pub fn change_desired(&mut self, change: impl FnOnce(&mut DesiredState)) {
        let group: GroupName = GROUP.parse().expect("name");
        let mut desired = self
            .repository
            .desired(&group)
            .expect("desired")
            .unwrap_or(DesiredState::new(group));
        desired.sequence += 1;
        change(&mut desired);
        self.repository.set_desired(&desired).expect("desired");
        self.commit();
    }

    /// A sample as it is, pushed to the group.
    pub fn push(&mut self, sample: &str, rollout: &str) {
        let release = self.add(sample, |_, _| {});
        let (model, version) = sample.rsplit_once('-').expect("MODEL-VERSION");
        self.wish(model, version, release, rollout);
    }

    /// The repository as a directory that can be carried.
    pub fn export(&self, name: &str) -> PathBuf {
        let to = self.directory.path().join(name);
        self.repository.export(&to).expect("export");
        to
    }
}

/// Certifies devices, operators and brokers.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).expect("authority").pem();
        let issuer = rcgen::Issuer::new(parameters, key);
        Self { issuer, pem }
    }

    /// Certificate and key (PEM) of a server on localhost.
    pub fn server(&self) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("key");
        let parameters =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("sign");
        (certificate.pem(), key.serialize_pem())
    }

    /// Answers a certificate request with a bundle for `name`.
    pub fn enrol(&self, request: &str, name: &str, port: u16, root: &[u8]) -> EnrolmentBundle {
        let mut request =
            rcgen::CertificateSigningRequestParams::from_pem(request).expect("request");
        request.params.distinguished_name = rcgen::DistinguishedName::new();
        request
            .params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = request.signed_by(&self.issuer).expect("sign");
        EnrolmentBundle {
            format: FORMAT,
            fleet: FLEET.parse().expect("name"),
            device: name.parse().expect("name"),
            broker: BrokerAddress {
                host: "localhost".to_owned(),
                port,
            },
            certificate: certificate.pem(),
            broker_ca: self.pem.clone(),
            root: String::from_utf8(root.to_vec()).expect("text"),
        }
    }
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}
