//! What devices say of themselves, as far as it can be believed.
//!
//! A status counts only if the certified key of that very device signed it, and if it is not older than what
//! that device has said before (`memory`). What is not believed is shown as such and changes nothing, so neither
//! the broker nor a rogue device can speak for another.

use std::time::Duration;

use anyhow::Result;
use edgeward_models::codec;
use edgeward_models::fleet::signed::{self, Purpose};
use edgeward_models::fleet::status::{FORMAT, Online, Status};
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::{DeviceId, FleetName};

use crate::devices::Device;
use crate::link::Link;
use crate::operator::Operator;
use crate::printer::plain;

/// Topics asked for at once. An embedded rumqttd drops retained messages beyond 100 on their way.
const TOPICS_AT_ONCE: usize = 80;
/// A topic that stays silent this long is empty.
const QUIET: Duration = Duration::from_millis(500);

/// One device as it was heard.
#[derive(Debug, Clone)]
pub struct Report {
    pub device: DeviceId,
    /// Not signed (the last will cannot be): a hint for people, never counted.
    pub online: Option<Online>,
    pub status: Heard,
}

/// The retained status of one device.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Nothing,
    /// And why not: forged, or older than what was heard before.
    NotBelieved(String),
    Status(Box<Status>),
}

/// Reads a status message; an error says why it is not believed.
pub fn read(device: &Device, message: &[u8]) -> Result<Status, String> {
    let payload = signed::open(Purpose::Status, &device.id, &device.public_key, message)
        .map_err(|e| e.to_string())?;
    // From here on the device itself has said it; it may still be wrong.
    let status: Status = codec::decode("status", &payload).map_err(|e| e.to_string())?;
    if status.format != FORMAT {
        return Err(format!(
            "the status has format {}; this fleetctl reads {FORMAT}",
            status.format
        ));
    }
    if status.device != device.id {
        return Err(format!("the status is about device {}", status.device));
    }
    Ok(status)
}

/// Asks for the retained statuses of these devices, and judges them by what is remembered.
pub async fn hear(operator: &Operator, devices: &[Device]) -> Result<Vec<Report>> {
    let fleet = operator.home.fleet();
    let mut reports = operator
        .ask(async |link| fetch(link, fleet, devices).await)
        .await?;
    let mut memory = operator.home.memory()?;
    for (report, device) in reports.iter_mut().zip(devices) {
        if let Heard::Status(status) = &report.status
            && let Err(why) = memory.judge(device, status)
        {
            report.status = Heard::NotBelieved(why);
        }
        if let Heard::NotBelieved(why) = &report.status {
            let warning = format!("{}: a status is not believed: {}", device.id, plain(why));
            operator.printer.warn(&warning);
        }
    }
    memory.save()?;
    Ok(reports)
}

/// One report per device, in their order.
async fn fetch(link: &Link, fleet: &FleetName, devices: &[Device]) -> Result<Vec<Report>> {
    let mut reports = Vec::with_capacity(devices.len());
    for part in devices.chunks(TOPICS_AT_ONCE / 2) {
        let topics: Vec<_> = part
            .iter()
            .flat_map(|device| {
                [
                    Topic::Status(device.id.clone()),
                    Topic::Online(device.id.clone()),
                ]
            })
            .map(|topic| topic.in_fleet(fleet))
            .collect();
        let found = link.fetch(&topics, QUIET).await?;
        for device in part {
            let message = |topic: Topic| found.get(&topic.in_fleet(fleet));
            let status = match message(Topic::Status(device.id.clone())) {
                None => Heard::Nothing,
                Some(bytes) => match read(device, bytes) {
                    Ok(status) => Heard::Status(Box::new(status)),
                    Err(why) => Heard::NotBelieved(why),
                },
            };
            let online = message(Topic::Online(device.id.clone()))
                .and_then(|bytes| codec::decode("online", bytes).ok());
            reports.push(Report {
                device: device.id.clone(),
                online,
                status,
            });
        }
    }
    Ok(reports)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
    use edgeward_models::digest::Digest;

    /// A device that signs what it says.
    pub struct Speaker {
        pub device: Device,
        key: EcdsaKeyPair,
    }

    impl Speaker {
        pub fn new(id: &str) -> Self {
            let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key");
            let device = Device {
                id: id.parse().expect("name"),
                public_key: key.public_key().as_der().expect("der").as_ref().to_vec(),
                fingerprint: Digest::of(b""),
                serial: "01".to_owned(),
                not_before: jiff::Timestamp::MIN,
                not_after: jiff::Timestamp::MAX,
            };
            Self { device, key }
        }

        pub fn says(&self, status: &Status) -> Vec<u8> {
            let payload = codec::encode("status", status).expect("encode");
            let envelope = signed::seal(Purpose::Status, &self.device.id, payload, |bytes| {
                self.key
                    .sign(&SystemRandom::new(), bytes)
                    .map(|s| s.as_ref().to_vec())
            })
            .expect("sign");
            codec::encode("envelope", &envelope).expect("encode")
        }
    }

    pub fn status(device: &DeviceId, boot: &str, sequence: u64) -> Status {
        Status {
            format: FORMAT,
            device: device.clone(),
            boot_id: boot.to_owned(),
            sequence,
            at: 0,
            agent_version: "0.1.0".to_owned(),
            groups: Vec::new(),
            models: Vec::new(),
            timestamp_version: 1,
            stale: false,
            sandbox: "enforced".to_owned(),
            audit_length: 0,
            audit_head: Digest::of(b""),
            disk_free_bytes: 0,
            last_error: None,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn only_the_device_itself_is_believed() {
        let speaker = Speaker::new("ct-1");
        let rogue = Speaker::new("ct-1");
        let said = status(&speaker.device.id, "b", 1);
        assert_eq!(
            read(&speaker.device, &speaker.says(&said)),
            Ok(said.clone())
        );
        let error = read(&speaker.device, &rogue.says(&said)).expect_err("forged");
        assert!(error.contains("signature"), "{error}");
        // Its own signature on a status about somebody else.
        let other = status(&"ct-2".parse().expect("name"), "b", 1);
        assert!(read(&speaker.device, &speaker.says(&other)).is_err());
        assert!(read(&speaker.device, b"junk").is_err());
    }
}
