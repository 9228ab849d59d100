//! `fleetctl device enroll`: a device becomes a member of the fleet.
//!
//! `claim accept` ends here too, with what its token says instead of what the operator types.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::enrolment::{EnrolmentBundle, FORMAT};
use edgeward_models::name::{DeviceId, GroupName};
use edgeward_models::sign::Repository;
use fleetctl::request::MAX_REQUEST_BYTES;

use super::names;
use crate::commands::group::publish_membership;
use crate::devices::Device;
use crate::operator::Operator;
use crate::revocation;

/// Certify a device's key and hand back what makes it a member
///
/// The device makes its key and a certificate request with `edgeward enroll`; the private key never leaves
/// it. Of the request only the public key is used: the certificate's name is --id, whatever the request
/// says. The bundle that comes out holds nothing secret; take it back to the device.
///
/// Enrolling the same key again renews its certificate. Another key under an id that is taken, as after the loss of a
/// device's disk, needs --replace: the certificates of the key before are revoked (`fleetctl device remove --help` says
/// how the broker learns of it).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl device enroll ct-1.csr.pem --id ct-1 --group radiology --out ct-1.bundle.json")]
pub struct Enroll {
    /// The device's certificate request (PEM)
    #[arg(value_name = "CSR")]
    request: PathBuf,
    /// The name that the device gets
    #[arg(long)]
    id: DeviceId,
    /// Put the device into this group (may be repeated); absent: its groups stay as they are
    #[arg(long, value_name = "GROUP")]
    group: Vec<GroupName>,
    /// Where to write the bundle; absent: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Give an id that is taken to another key
    #[arg(long)]
    replace: bool,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

/// What a device gets, whatever its request says.
pub struct Member {
    pub id: DeviceId,
    /// Beside those that it is in.
    pub groups: BTreeSet<GroupName>,
    /// The id may be another key's.
    pub replace: bool,
    pub offline: bool,
}

impl Enroll {
    pub async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let request = durable::read(&self.request, MAX_REQUEST_BYTES)?
            .with_context(|| format!("there is no file {}", self.request.display()))?;
        let request = String::from_utf8(request)
            .map_err(|_| anyhow::anyhow!("{} is not a PEM file", self.request.display()))?;
        let mut repository = operator.repository()?;
        let member = Member {
            id: self.id,
            groups: self.group.into_iter().collect(),
            replace: self.replace,
            offline: self.offline,
        };
        member
            .enroll(operator, &mut repository, &request, self.out.as_deref())
            .await
    }
}

impl Member {
    /// Certifies the key of a request (PEM) and writes the bundle for the device.
    pub async fn enroll(
        &self,
        operator: &Operator,
        repository: &mut Repository,
        request: &str,
        out: Option<&Path>,
    ) -> Result<ExitCode> {
        let devices = operator.home.devices();
        let authority = operator.home.authority()?;
        let before = devices.get(&self.id)?;
        let certificate = authority
            .device(request, &self.id)
            .with_context(|| format!("cannot enrol {}", self.id))?;
        let made = Device::from_pem(self.id.clone(), certificate.as_bytes())?;
        let replaced = before.is_some_and(|before| before.public_key != made.public_key);
        if replaced && !self.replace {
            bail!(
                "device {} is enrolled with another key; give this one another --id, or --replace if the \
                 device has got a new key",
                self.id
            );
        }
        if repository.removed(&self.id)? == Some(Digest::of(&made.public_key)) {
            bail!(
                "this key of device {} was taken out of the fleet for good; have the device make another with `edgeward \
                 enroll --request FILE --new-key`",
                self.id
            );
        }
        let mut groups = repository.groups_of(&self.id)?;
        let joins = !self.groups.is_subset(&groups);
        groups.extend(self.groups.iter().cloned());
        let bundle = EnrolmentBundle {
            format: FORMAT,
            fleet: operator.home.fleet().clone(),
            device: self.id.clone(),
            broker: operator.home.broker().clone(),
            certificate: certificate.clone(),
            broker_ca: operator.home.ca_certificate()?,
            root: String::from_utf8(repository.root()?)
                .context("the repository's root is not text")?,
        };
        if replaced {
            let serials = devices.serials(&self.id)?;
            revocation::revoke(&operator.home, &authority, &self.id, serials)?;
        }
        devices.put(&self.id, &certificate)?;
        if joins {
            let changes = [(self.id.clone(), groups.clone())];
            publish_membership(operator, repository, &changes, self.offline, true).await?;
        }
        let text = serde_json::to_string_pretty(&bundle).context("cannot write the bundle")? + "\n";
        match out {
            Some(path) => durable::write(path, text.as_bytes(), Access::Anyone)?,
            None => operator.printer.data(&text)?,
        }
        let place = match out {
            Some(path) => format!("; take {} to the device", path.display()),
            None => String::new(),
        };
        operator.printer.note(&format!(
            "device {} is enrolled in {}{place}",
            self.id,
            in_groups(&groups)
        ));
        Ok(ExitCode::SUCCESS)
    }
}

fn in_groups(groups: &BTreeSet<GroupName>) -> String {
    match groups.len() {
        0 => "no group".to_owned(),
        1 => format!("group {}", names(groups)),
        _ => format!("groups {}", names(groups)),
    }
}
