//! `fleetctl device remove`: a device that belongs to the fleet no longer.

use std::process::ExitCode;

use anyhow::{Context, Result};
use edgeward_models::digest::Digest;
use edgeward_models::name::DeviceId;
use jiff::Timestamp;

use crate::operator::Operator;
use crate::revocation;

/// Take devices out of the fleet: sold, stolen, broken
///
/// Signed and published, so that the device knows it too: it is in no group any more, takes nothing new, and what it
/// says of itself counts for nothing. What it serves it goes on serving; nobody is cut off in the middle. Its
/// certificates are revoked in broker/crl.pem, which mosquitto reads when it starts: give the file to the broker and
/// restart it, which also ends the device's connection. Other brokers take the list by means of their own.
///
/// The same device may come back with a new key (`edgeward enroll --request FILE --new-key`).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device remove ct-1")]
pub struct Remove {
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<DeviceId>,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

impl Remove {
    pub async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let registry = operator.home.devices();
        let mut devices = Vec::new();
        for id in &self.devices {
            devices.push(registry.get(id)?.with_context(|| {
                format!("device {id} is not enrolled; `fleetctl device list` shows who is")
            })?);
        }
        // Asked for before anything is signed.
        let authority = operator.home.authority()?;
        let mut repository = operator.repository()?;
        let standing = match self.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        for device in &devices {
            repository.remove_device(&device.id, Digest::of(&device.public_key))?;
        }
        let publication = repository.commit(&operator.keys(&repository)?, Timestamp::now())?;
        for device in &devices {
            let serials = registry.serials(&device.id)?;
            revocation::revoke(&operator.home, &authority, &device.id, serials)?;
            registry.remove(device)?;
        }
        if let Some(standing) = standing {
            operator
                .publish(&repository, &publication, standing)
                .await?;
        }
        let ids: Vec<_> = self.devices.iter().map(DeviceId::as_str).collect();
        operator.printer.note(&format!(
            "out of the fleet: {}. Their certificates are revoked in {}: give it to the broker and restart that",
            ids.join(", "),
            operator.home.broker_directory().join(revocation::CRL_FILE).display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}
