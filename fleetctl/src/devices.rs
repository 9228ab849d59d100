//! The devices that this fleet has certified: one certificate file each.
//!
//! `device` adds and shows them; `status` and `push` take the public keys from here, so that only the
//! device itself can speak for itself.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::name::DeviceId;
use jiff::Timestamp;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

const MAX_CERTIFICATE_BYTES: u64 = 64 * 1024;
const MAX_SERIALS_BYTES: u64 = 64 * 1024;

/// The directory of device certificates.
#[derive(Debug, Clone)]
pub struct Devices {
    directory: PathBuf,
}

/// One certified device.
#[derive(Debug, Clone)]
pub struct Device {
    pub id: DeviceId,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// SHA-256 of the certificate (DER).
    pub fingerprint: Digest,
    /// Of the certificate, in hexadecimal.
    pub serial: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Devices {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// All of them, by id.
    pub fn all(&self) -> Result<Vec<Device>> {
        let mut ids = Vec::new();
        let entries = std::fs::read_dir(&self.directory)
            .with_context(|| format!("cannot list {}", self.directory.display()))?;
        for entry in entries {
            let entry =
                entry.with_context(|| format!("cannot list {}", self.directory.display()))?;
            let name = entry.file_name();
            // Names that are no device's (temporary files, an editor's backups) are not ours to read.
            if let Some(id) = name
                .to_str()
                .and_then(|n| n.strip_suffix(".pem"))
                .and_then(|n| n.parse().ok())
            {
                ids.push(id);
            }
        }
        ids.sort();
        ids.into_iter().map(|id: DeviceId| self.read(id)).collect()
    }

    pub fn get(&self, id: &DeviceId) -> Result<Option<Device>> {
        if self.path(id).exists() {
            self.read(id.clone()).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Keeps a device's certificate, replacing the one before, whose serial is remembered: it counts until it ends.
    pub fn put(&self, id: &DeviceId, certificate: &str) -> Result<()> {
        let serials = self.serials(id)?;
        if !serials.is_empty() {
            let bytes = serde_json::to_vec(&serials).context("cannot write serials")?;
            durable::write(&self.earlier_path(id), &bytes, Access::Anyone)?;
        }
        Ok(durable::write(
            &self.path(id),
            certificate.as_bytes(),
            Access::Anyone,
        )?)
    }

    /// The serials of all certificates that a device was given under this id, in hexadecimal.
    pub fn serials(&self, id: &DeviceId) -> Result<BTreeSet<String>> {
        let path = self.earlier_path(id);
        let mut serials: BTreeSet<String> = match durable::read(&path, MAX_SERIALS_BYTES)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", path.display()))?,
            None => BTreeSet::new(),
        };
        serials.extend(self.get(id)?.map(|device| device.serial));
        Ok(serials)
    }

    /// Forgets a device; its certificate is kept aside.
    pub fn remove(&self, device: &Device) -> Result<()> {
        let aside = self.directory.join("removed");
        durable::create_directory(&aside)?;
        let name = format!("{}-{}.pem", device.id, device.serial);
        durable::rename(&self.path(&device.id), &aside.join(name))?;
        let earlier = self.earlier_path(&device.id);
        if earlier.exists() {
            durable::remove_file(&earlier)?;
        }
        Ok(())
    }

    fn earlier_path(&self, id: &DeviceId) -> PathBuf {
        self.directory.join(format!("{id}.serials.json"))
    }

    fn path(&self, id: &DeviceId) -> PathBuf {
        self.directory.join(format!("{id}.pem"))
    }

    fn read(&self, id: DeviceId) -> Result<Device> {
        let path = self.path(&id);
        let bytes = durable::read(&path, MAX_CERTIFICATE_BYTES)?
            .with_context(|| format!("{} is missing", path.display()))?;
        Device::from_pem(id, &bytes).with_context(|| format!("cannot use {}", path.display()))
    }
}

impl Device {
    pub fn from_pem(id: DeviceId, pem: &[u8]) -> Result<Self> {
        let (_, block) = parse_x509_pem(pem).ok().context(NO_CERTIFICATE)?;
        let certificate = block.parse_x509().ok().context(NO_CERTIFICATE)?;
        Ok(Self {
            public_key: certificate.public_key().raw.to_vec(),
            fingerprint: Digest::of(&block.contents),
            serial: hex(certificate.raw_serial()),
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
            id,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const NO_CERTIFICATE: &str = "it is not a certificate";

/// When a certificate (PEM) ends.
pub fn not_after(pem: &[u8]) -> Result<Timestamp> {
    let (_, block) = parse_x509_pem(pem).ok().context(NO_CERTIFICATE)?;
    der_not_after(&block.contents)
}

/// When a certificate (DER) ends.
pub fn der_not_after(der: &[u8]) -> Result<Timestamp> {
    let parsed = X509Certificate::from_der(der);
    let (_, certificate) = parsed.ok().context(NO_CERTIFICATE)?;
    time(certificate.validity().not_after)
}

fn time(time: ASN1Time) -> Result<Timestamp> {
    Timestamp::from_second(time.timestamp()).context(NO_CERTIFICATE)
}
