//! The fleet's certificate authority: who may connect to the broker, under which name.
//!
//! Used by `init` (operator and broker certificates) and `device enroll`. Of a device's request only the
//! public key is taken, after its self-signature was verified: subject, names, usages and lifetime are
//! decided here, whatever the request asks for. The private key of a device is never seen.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edgeward_models::durable::{self, Access};
use edgeward_models::name::{DeviceId, FleetName};
use fleetctl::request::requested_key;
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo,
};

use crate::revocation::Revoked;

/// The operator's common name. No device can have it: a device id holds no capital letter.
pub const OPERATOR: &str = "Operator";
/// How long each certificate lasts.
const CA_YEARS: i32 = 10;
const OPERATOR_YEARS: i32 = 2;
const BROKER_YEARS: i32 = 2;
const DEVICE_YEARS: i32 = 1;

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// Writes both files, the key for its owner only; returns their paths.
    pub fn write(&self, directory: &Path, names: [&str; 2]) -> Result<[PathBuf; 2]> {
        let [certificate, key] = names.map(|name| directory.join(name));
        durable::write(&key, self.key.as_bytes(), Access::Owner)?;
        durable::write(&certificate, self.certificate.as_bytes(), Access::Anyone)?;
        Ok([certificate, key])
    }
}

/// The authority with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority; returns it as files.
    pub fn generate(fleet: &FleetName) -> Result<Identity> {
        let key = KeyPair::generate().context("cannot make the authority's key")?;
        let mut params = params(&format!("Edgeward fleet {fleet}"), CA_YEARS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .context("cannot sign the authority's certificate")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).context("cannot read the authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key)
            .context("cannot read the authority's certificate")?;
        Ok(Self { issuer })
    }

    /// The certificate that fleetctl shows the broker.
    pub fn operator(&self) -> Result<Identity> {
        let mut params = params(OPERATOR, OPERATOR_YEARS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.identity(params)
    }

    /// A certificate for a broker reachable under `hosts` (names or addresses).
    pub fn broker(&self, hosts: &[String]) -> Result<Identity> {
        let first = hosts
            .first()
            .context("a broker certificate needs at least one host")?;
        let mut params = params(first, BROKER_YEARS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    SanType::DnsName(host.as_str().try_into().with_context(|| {
                        format!("{host:?} is neither a host name nor an address")
                    })?)
                }
            });
        }
        self.identity(params)
    }

    /// Certifies the key of a device's request (PEM) under `device`. Nothing else of the request is used.
    pub fn device(&self, request: &str, device: &DeviceId) -> Result<String> {
        self.certify(&requested_key(request)?, device)
    }

    /// A new certificate for a key that was certified before (SubjectPublicKeyInfo, DER).
    pub fn renew(&self, public_key: &[u8], device: &DeviceId) -> Result<String> {
        let key = SubjectPublicKeyInfo::from_der(public_key)
            .with_context(|| format!("the key of device {device} cannot be read"))?;
        self.certify(&key, device)
    }

    /// The list of certificates that the broker is to turn away, PEM. It lasts as long as the authority.
    pub fn revocation_list(&self, revoked: &[Revoked]) -> Result<String> {
        let [(year, month, day), end] = validity(CA_YEARS)?;
        let mut revoked_certs = Vec::new();
        for entry in revoked {
            let serial = hex_bytes(&entry.serial)
                .with_context(|| format!("{:?} is no serial", entry.serial))?;
            let at = ymd(entry.at.to_zoned(TimeZone::UTC).date())?;
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: rcgen::date_time_ymd(at.0, at.1, at.2),
                reason_code: None,
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(year, month, day),
            next_update: rcgen::date_time_ymd(end.0, end.1, end.2),
            crl_number: SerialNumber::from(revoked.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list
            .signed_by(&self.issuer)
            .context("cannot sign the list of revoked certificates")?;
        list.pem()
            .context("cannot write the list of revoked certificates")
    }

    fn certify(&self, key: &SubjectPublicKeyInfo, device: &DeviceId) -> Result<String> {
        let mut params = params(device.as_str(), DEVICE_YEARS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(key, &self.issuer)
            .with_context(|| format!("cannot certify device {device}"))?;
        Ok(certificate.pem())
    }

    fn identity(&self, params: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign a certificate")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// A leaf's parameters. There is no organisation in the subject: rumqttd takes one for a tenant's name.
fn params(common_name: &str, years: i32) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let mut serial: [u8; 16] = rand::rng().random();
    // A serial is a positive number (RFC 5280, 4.1.2.2), and ours never begins with a zero byte.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let [(year, month, day), end] = validity(years)?;
    params.not_before = rcgen::date_time_ymd(year, month, day);
    params.not_after = rcgen::date_time_ymd(end.0, end.1, end.2);
    Ok(params)
}

/// Year, month and day.
type Ymd = (i32, u8, u8);

/// From yesterday, since a device's clock may be a little behind, for so many years.
fn validity(years: i32) -> Result<[Ymd; 2]> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    Ok([
        ymd(today.saturating_sub(1.day()))?,
        ymd(today.saturating_add(years.years()))?,
    ])
}

fn ymd(date: Date) -> Result<Ymd> {
    let part = |value: i8| u8::try_from(value).context("the clock is wrong");
    Ok((date.year().into(), part(date.month())?, part(date.day())?))
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests;
