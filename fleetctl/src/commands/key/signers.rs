//! `fleetctl key generate`, `add`, `revoke` and `threshold`: who may sign for a role, and how many must.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::durable::{self, Access};
use edgeward_models::sign::{self, Roster, SignError, SigningRole};

use super::{Role, change};
use crate::operator::Operator;

/// Make a key for a role and write its public half, for another desk to add
///
/// For a second person, or a second machine, that is to sign: its private key never leaves this directory. Nothing
/// believes the key until `fleetctl key add` is signed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key generate releases --out bob-releases.pem
  fleetctl key generate root --encrypt --out bob-root.pem")]
pub struct Generate {
    role: Role,
    /// Keep the private key behind a passphrase
    #[arg(long)]
    encrypt: bool,
    /// Where to write the public key; absent: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Let one more key sign for a role
///
/// How many must sign stays as it is: `fleetctl key threshold` says that. Keys of root, targets, snapshot and timestamp
/// are named by a new root, those of releases and rollouts by new targets.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key add releases bob-releases.pem")]
pub struct Add {
    role: Role,
    /// The public key, as `fleetctl key generate` wrote it
    #[arg(value_name = "PUBLIC")]
    public: PathBuf,
    /// Do not ask the broker; carry the repository with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

/// Take a key of a role away: what only it signed counts no longer and is signed anew
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key revoke releases 4fe21ab09c55")]
pub struct Revoke {
    role: Role,
    /// The beginning of the key's id, as `fleetctl key list` shows it
    #[arg(value_name = "KEYID")]
    key: String,
    /// Do not ask the broker; carry the repository with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

/// Say how many of a role's keys must sign
///
/// With two or more no single person or machine can tell the fleet's devices what to run. Every change of such a role
/// waits in a file until enough have signed it: see `fleetctl sign --help`. Keep a key more than must sign, so that a
/// lost one can be replaced.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key threshold releases 2")]
pub struct Threshold {
    role: Role,
    count: NonZeroU64,
    /// Do not ask the broker; carry the repository with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

impl Generate {
    pub fn run(self, operator: &Operator) -> Result<ExitCode> {
        let role = SigningRole::from(self.role);
        let directory = operator.home.keys_directory();
        let passphrase = match self.encrypt {
            true => Some(operator.home.passphrases().choose()?),
            false => None,
        };
        sign::make_key(&directory, role, passphrase.as_ref())?;
        let public = sign::public_key(&directory, role)?;
        match &self.out {
            None => operator.printer.data(&public)?,
            Some(path) => {
                durable::write(path, public.as_bytes(), Access::Anyone)?;
                operator.printer.note(&format!(
                    "the key is in {}; take {} to where the fleet's keys are: fleetctl key add {role} {1}",
                    directory.display(),
                    path.display()
                ));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Add {
    pub async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let key = sign::read_public(&self.public)?;
        let note = format!(
            "key {} may sign role {}",
            key.id()?,
            SigningRole::from(self.role)
        );
        let role = self.role.into();
        reorganize(operator, self.offline, |roster| roster.add(role, key)).await?;
        operator.printer.note(&note);
        Ok(ExitCode::SUCCESS)
    }
}

impl Revoke {
    pub async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let role = self.role.into();
        reorganize(operator, self.offline, |roster| {
            roster.revoke(role, &self.key).map(drop)
        })
        .await?;
        operator
            .printer
            .note(&format!("that key may not sign role {role} any more"));
        Ok(ExitCode::SUCCESS)
    }
}

impl Threshold {
    pub async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let role = self.role.into();
        reorganize(operator, self.offline, |roster| {
            roster.set_threshold(role, self.count)
        })
        .await?;
        operator
            .printer
            .note(&format!("{} keys must sign role {role}", self.count));
        Ok(ExitCode::SUCCESS)
    }
}

async fn reorganize(
    operator: &Operator,
    offline: bool,
    apply: impl FnOnce(&mut Roster) -> Result<(), SignError>,
) -> Result<()> {
    change(operator, offline, |repository, now| {
        let mut roster = repository.roster()?;
        apply(&mut roster)?;
        Ok(repository.reorganize(&roster, &[&operator.keys(repository)?], now)?)
    })
    .await
}
