//! Every MQTT topic of a fleet, built and parsed here and nowhere else.
//!
//! ```
//! use edgeward_models::fleet::topic::Topic;
//! let fleet = "hospital".parse()?;
//! let topic = Topic::Metadata("timestamp.json".parse()?);
//! assert_eq!(topic.in_fleet(&fleet), "edgeward/v1/hospital/repo/metadata/timestamp.json");
//! assert_eq!(Topic::parse(&fleet, "edgeward/v1/hospital/repo/metadata/timestamp.json"), Some(topic));
//! # Ok::<(), edgeward_models::name::NameError>(())
//! ```
//!
//! Six slashes at most: AWS IoT Core passes no more than seven.

use crate::digest::Digest;
use crate::name::{DeviceId, FileName, FleetName};

/// One topic; the doc lines say who writes it, whether it is retained, and what it carries. All are QoS 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// fleetctl → agents, retained: one TUF metadata file, as `chunk::pack_metadata` makes it.
    Metadata(FileName),
    /// fleetctl → agents, retained: one chunk, zstd, named by the digest of its uncompressed bytes.
    Chunk(Digest),
    /// Agent and its last will → fleetctl, retained: [`Online`](super::status::Online).
    Online(DeviceId),
    /// Agent → fleetctl, retained: a signed [`Status`](super::status::Status).
    Status(DeviceId),
    /// Agent → fleetctl, not retained: a signed [`TelemetryBatch`](super::telemetry::TelemetryBatch), zstd.
    Telemetry(DeviceId),
}

impl Topic {
    pub fn in_fleet(&self, fleet: &FleetName) -> String {
        let tail = match self {
            Self::Metadata(file) => format!("repo/metadata/{file}"),
            Self::Chunk(digest) => format!("repo/chunk/{digest}"),
            Self::Online(device) => format!("device/{device}/online"),
            Self::Status(device) => format!("device/{device}/status"),
            Self::Telemetry(device) => format!("device/{device}/telemetry"),
        };
        format!("edgeward/v1/{fleet}/{tail}")
    }

    /// `None` for a topic that is not one of this fleet's.
    pub fn parse(fleet: &FleetName, topic: &str) -> Option<Self> {
        let tail = topic
            .strip_prefix("edgeward/v1/")?
            .strip_prefix(fleet.as_str())?
            .strip_prefix('/')?;
        let mut parts = tail.split('/');
        let parsed = match (parts.next()?, parts.next()?, parts.next()?) {
            ("repo", "metadata", file) => Self::Metadata(file.parse().ok()?),
            ("repo", "chunk", digest) => Self::Chunk(digest.parse().ok()?),
            ("device", device, "online") => Self::Online(device.parse().ok()?),
            ("device", device, "status") => Self::Status(device.parse().ok()?),
            ("device", device, "telemetry") => Self::Telemetry(device.parse().ok()?),
            _ => return None,
        };
        parts.next().is_none().then_some(parsed)
    }

    /// The subscription that hears every device's `online`.
    pub fn all_online(fleet: &FleetName) -> String {
        format!("edgeward/v1/{fleet}/device/+/online")
    }

    /// The subscription that hears every device's `status`.
    pub fn all_statuses(fleet: &FleetName) -> String {
        format!("edgeward/v1/{fleet}/device/+/status")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_topic_comes_back_and_has_at_most_seven_slashes() {
        let fleet: FleetName = "ward.7".parse().expect("name");
        let device: DeviceId = "ct-scanner-1".parse().expect("name");
        for topic in [
            Topic::Metadata("2.root.json".parse().expect("name")),
            Topic::Chunk(Digest::of(b"x")),
            Topic::Online(device.clone()),
            Topic::Status(device.clone()),
            Topic::Telemetry(device),
        ] {
            let text = topic.in_fleet(&fleet);
            assert!(text.matches('/').count() <= 7);
            assert_eq!(Topic::parse(&fleet, &text), Some(topic));
        }
        assert_eq!(
            Topic::parse(&fleet, "edgeward/v1/ward.7x/device/a/online"),
            None
        );
        assert_eq!(
            Topic::parse(&fleet, "edgeward/v1/ward.7/device/a/online/b"),
            None
        );
    }

    proptest! {
        #[test]
        fn foreign_topics_never_panic(text in "\\PC{0,120}") {
            let fleet: FleetName = "f".parse().expect("name");
            let _ = Topic::parse(&fleet, &format!("edgeward/v1/f/{text}"));
            let _ = Topic::parse(&fleet, &text);
        }
    }
}
