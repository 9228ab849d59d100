//! `fleetctl key`: the keys that sign for the fleet.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Subcommand, ValueEnum};
use edgeward_models::sign::{self, Publication, Repository, SigningRole};
use jiff::Timestamp;
use serde_json::json;

use super::device::day;
use crate::operator::Operator;
use crate::printer::{Printer, table};
use protect::{Decrypt, Encrypt};
use signers::{Add, Generate, Revoke, Threshold};

mod protect;
mod signers;

/// Show the fleet's signing keys, replace and renew them, say how many must sign, put them behind a passphrase
#[derive(Debug, Subcommand)]
pub enum Verb {
    List(List),
    Rotate(Rotate),
    Renew(Renew),
    Generate(Generate),
    Add(Add),
    Revoke(Revoke),
    Threshold(Threshold),
    Encrypt(Encrypt),
    Decrypt(Decrypt),
}

/// Show each role: which key signs it, whether that key is here, until when its metadata holds
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key list
  fleetctl key list --json")]
pub struct List {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Give roles new keys, which every device then follows
///
/// For a key that was lost or that somebody may have read. A new root names the new keys of root, targets, snapshot and
/// timestamp, signed by the root keys before and after; new targets name those of releases and rollouts. What the old
/// keys signed is signed anew. Where keys that must sign are elsewhere, the change waits in a file (see `fleetctl sign
/// --help`), and the new keys beside the old ones. The old keys are kept in keys/retired/. A device that was off
/// meanwhile follows when it is back. Copies of the keys elsewhere (the machine that runs `fleetctl refresh`) must be
/// replaced by hand.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key rotate timestamp snapshot
  fleetctl key rotate root targets releases rollouts snapshot timestamp")]
pub struct Rotate {
    #[arg(required = true, value_name = "ROLE")]
    roles: Vec<Role>,
    /// Do not ask the broker; carry the repository with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

/// Sign the root and everything below it anew with the same keys, so that nothing ends
///
/// The root holds for three years, what releases and rollouts sign for one. Pushing renews the latter two on the way;
/// nothing renews the root by itself, since its key should not lie on a machine that works by itself.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key renew")]
pub struct Renew {
    /// Do not ask the broker; carry the repository with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Root,
    Targets,
    Releases,
    Rollouts,
    Snapshot,
    Timestamp,
}

impl From<Role> for SigningRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Root => Self::Root,
            Role::Targets => Self::Targets,
            Role::Releases => Self::Releases,
            Role::Rollouts => Self::Rollouts,
            Role::Snapshot => Self::Snapshot,
            Role::Timestamp => Self::Timestamp,
        }
    }
}

impl Verb {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        match self {
            Self::List(args) => args.run(&operator),
            Self::Rotate(args) => args.run(&operator).await,
            Self::Renew(args) => args.run(&operator).await,
            Self::Generate(args) => args.run(&operator),
            Self::Add(args) => args.run(&operator).await,
            Self::Revoke(args) => args.run(&operator).await,
            Self::Threshold(args) => args.run(&operator).await,
            Self::Encrypt(args) => args.run(&operator),
            Self::Decrypt(args) => args.run(&operator),
        }
    }
}

impl List {
    fn run(self, operator: &Operator) -> Result<ExitCode> {
        let repository = operator.repository()?;
        let keys = operator.keys(&repository)?;
        let mut rows = vec![
            ["ROLE", "KEYS", "MUST SIGN", "HERE", "VERSION", "UNTIL"]
                .map(str::to_owned)
                .to_vec(),
        ];
        let mut values = Vec::new();
        for role in repository.roles()? {
            let id = keys.id(role.role);
            let here = match &id {
                None => "no",
                Some(id) if role.key_ids.contains(id) => "yes",
                Some(_) => "ANOTHER KEY",
            };
            let short: Vec<&str> = role
                .key_ids
                .iter()
                .map(|id| &id[..id.len().min(12)])
                .collect();
            rows.push(vec![
                role.role.to_string(),
                short.join(", "),
                format!("{} of {}", role.threshold, role.key_ids.len()),
                here.to_owned(),
                role.version.to_string(),
                day(role.expires),
            ]);
            values.push(json!({
                "role": role.role.name(), "keys": role.key_ids, "threshold": role.threshold, "here": here == "yes", "own": id,
                "version": role.version, "until": role.expires,
            }));
        }
        if self.json {
            operator
                .printer
                .json(&json!({ "fleet": operator.home.fleet(), "roles": values }))?;
        } else {
            operator.printer.data(&table(&rows))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Rotate {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let directory = operator.home.keys_directory();
        change(operator, self.offline, |repository, now| {
            let keys = operator.keys(repository)?;
            let roles: Vec<SigningRole> = self.roles.iter().map(|role| (*role).into()).collect();
            for role in &roles {
                ensure!(
                    keys.has(*role),
                    "the key of role {role} is not in {}: rotate it where it is kept, or take it away with `fleetctl \
                     key revoke`",
                    directory.display()
                );
            }
            let next = sign::prepare(&directory, operator.home.unlock(), &roles)?;
            let publication = repository.replace_keys(&roles, &keys, &next, now)?;
            sign::settle(&directory, repository)?;
            Ok(publication)
        })
        .await?;
        operator.printer.note(&format!(
            "the old keys are in {}; replace copies of them elsewhere, and destroy what nobody needs",
            directory.join("retired").display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}

impl Renew {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        change(operator, self.offline, |repository, now| {
            let keys = operator.keys(repository)?;
            Ok(repository.renew(&keys, now)?)
        })
        .await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Signs a new root and publishes it with all that follows from it.
async fn change(
    operator: &Operator,
    offline: bool,
    sign: impl FnOnce(&mut Repository, Timestamp) -> Result<Publication>,
) -> Result<()> {
    let mut repository = operator.repository()?;
    let standing = match offline {
        true => None,
        false => Some(operator.standing(&repository).await?),
    };
    let publication = sign(&mut repository, Timestamp::now())?;
    let version = repository.root_version();
    if let Some(standing) = standing {
        operator
            .publish(&repository, &publication, standing)
            .await?;
    }
    operator.printer.note(&format!(
        "the change is signed{}; root {version} holds",
        if offline {
            ", carry it with `fleetctl export`"
        } else {
            " and published"
        }
    ));
    Ok(())
}
