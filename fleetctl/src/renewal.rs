//! Certificates of devices made anew before they end.
//!
//! A device keeps its key; only the certificate is new, for the very key that was certified before, so nothing has to
//! come from the device. It travels in the signed repository, over whatever carrier, and the device takes it while it
//! serves. `fleetctl refresh` renews what is past two thirds of its life, `fleetctl device renew` what it is told to.

use anyhow::Result;
use edgeward_models::sign::{KeyRing, Publication, Repository, SigningRole};
use jiff::Timestamp;

use crate::devices::Device;
use crate::operator::Operator;

/// The devices whose certificates are past two thirds of their lives.
pub fn due(devices: Vec<Device>, now: Timestamp) -> Vec<Device> {
    let mut due = devices;
    due.retain(|device| {
        let life = device.not_after.duration_since(device.not_before);
        let rest = device.not_after.duration_since(now);
        rest.as_secs() * 3 < life.as_secs()
    });
    due
}

/// Makes sure that the keys that a renewal needs can be used, which may ask for a passphrase.
pub fn unlock(operator: &Operator, keys: &KeyRing) -> Result<()> {
    keys.ready(SigningRole::Rollouts)?;
    operator.home.authority().map(drop)
}

/// Certifies these devices' keys anew and signs the certificates into the repository.
pub fn renew(
    operator: &Operator,
    repository: &mut Repository,
    keys: &KeyRing,
    devices: &[Device],
) -> Result<Publication> {
    let authority = operator.home.authority()?;
    let mut renewed = Vec::new();
    for device in devices {
        let certificate = authority.renew(&device.public_key, &device.id)?;
        repository.set_certificate(&device.id, &certificate)?;
        renewed.push((&device.id, certificate));
    }
    let publication = repository.commit(keys, Timestamp::now())?;
    for (id, certificate) in renewed {
        operator.home.devices().put(id, &certificate)?;
    }
    Ok(publication)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statuses::tests::Speaker;

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life() {
        let mut device = Speaker::new("ct-1").device;
        let at = |day: i64| Timestamp::from_second(day * 86_400).expect("time");
        (device.not_before, device.not_after) = (at(0), at(300));
        let due = |day| due(vec![device.clone()], at(day)).len();
        assert_eq!((due(0), due(199), due(201), due(400)), (0, 0, 1, 1));
    }
}
