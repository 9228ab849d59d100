//! Certificates that count no longer before they end: what the broker is told, and turns away.
//!
//! `device remove` and `device enroll --replace` revoke. The list lies beside the authority; signed by it, it lies in
//! `broker/crl.pem`, where mosquitto reads it when it starts. It never ends: a broker turns everybody away once its
//! list is out of date, and no list may end a fleet's link.

use std::path::PathBuf;

use anyhow::{Context, Result};
use edgeward_models::durable::{self, Access};
use edgeward_models::name::DeviceId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::home::Home;

const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// In the broker's directory.
pub const CRL_FILE: &str = "crl.pem";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    revoked: Vec<Revoked>,
}

/// One certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// In hexadecimal.
    pub serial: String,
    pub device: DeviceId,
    pub at: Timestamp,
}

/// Revokes certificates and writes the broker's list.
pub fn revoke(
    home: &Home,
    authority: &Authority,
    device: &DeviceId,
    serials: impl IntoIterator<Item = String>,
) -> Result<()> {
    let mut revoked = read(home)?;
    for serial in serials {
        if !revoked.iter().any(|known| known.serial == serial) {
            revoked.push(Revoked {
                serial,
                device: device.clone(),
                at: Timestamp::now(),
            });
        }
    }
    let document = Document {
        format: FORMAT,
        revoked,
    };
    let bytes = serde_json::to_vec_pretty(&document).context("cannot write the list")?;
    durable::write(&path(home), &bytes, Access::Owner)?;
    write_list(home, authority).map(drop)
}

/// Signs the list of revoked certificates for the broker; returns its file.
pub fn write_list(home: &Home, authority: &Authority) -> Result<PathBuf> {
    let directory = home.broker_directory();
    durable::create_directory(&directory)?;
    let file = directory.join(CRL_FILE);
    let list = authority.revocation_list(&read(home)?)?;
    durable::write(&file, list.as_bytes(), Access::Anyone)?;
    Ok(file)
}

fn read(home: &Home) -> Result<Vec<Revoked>> {
    let path = path(home);
    let Some(bytes) = durable::read(&path, MAX_BYTES)? else {
        return Ok(Vec::new());
    };
    let document: Document = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is damaged; restore it from a copy", path.display()))?;
    anyhow::ensure!(
        document.format == FORMAT,
        "{} has format {}, this fleetctl reads {FORMAT}",
        path.display(),
        document.format
    );
    Ok(document.revoked)
}

fn path(home: &Home) -> PathBuf {
    home.ca_directory().join("revoked.json")
}
