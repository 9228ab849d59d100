//! The two files that make a device a member of a fleet.
//!
//! The device makes its key and a certificate request (`edgeward enroll`); the private key never leaves it.
//! The operator's CA decides the subject and answers with an [`EnrolmentBundle`]
//! (`fleetctl device enroll`); the device checks that the certificate is for its own key and keeps the rest.

use serde::{Deserialize, Serialize};

use crate::name::{DeviceId, FleetName};

pub const FORMAT: u32 = 1;
/// A bundle larger than this many bytes is refused unread.
pub const MAX_BUNDLE_BYTES: u64 = 1024 * 1024;

/// What the operator hands back to a device. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentBundle {
    pub format: u32,
    pub fleet: FleetName,
    pub device: DeviceId,
    pub broker: BrokerAddress,
    /// PEM: the device's certificate; its common name is the device id.
    pub certificate: String,
    /// PEM: the authority that the broker's certificate must come from.
    pub broker_ca: String,
    /// The root of trust: TUF root metadata, exact text.
    pub root: String,
}

/// Where the broker listens. Always TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerAddress {
    pub host: String,
    pub port: u16,
}
