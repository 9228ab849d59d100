//! `fleetctl key encrypt` and `key decrypt`: private keys behind a passphrase, or not.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use edgeward_models::sign::{self, SigningRole, key_path};

use super::Role;
use crate::operator::Operator;

/// Put private keys behind a passphrase
///
/// Without names: every signing key that is here, and the authority's. The passphrase is asked on the terminal, or is
/// the first line of the file that FLEETCTL_PASSPHRASE_FILE names; every command that signs then needs it. Leave the
/// keys of snapshot and timestamp as they are where `fleetctl refresh` runs by timer, or give that service the file.
/// What was there before is replaced; where the disk or a backup kept the old bytes, they are as good as the key.
///
/// The operator's certificate for the broker stays as it is: its key can connect and can sign nothing.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key encrypt
  fleetctl key encrypt root targets authority")]
pub struct Encrypt {
    #[arg(value_name = "KEY")]
    keys: Vec<KeyName>,
}

/// Take the passphrase of private keys away
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl key decrypt snapshot timestamp")]
pub struct Decrypt {
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<KeyName>,
}

/// A private key of the operator's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyName {
    Role(Role),
    /// The fleet's certificate authority.
    Authority,
}

impl ValueEnum for KeyName {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Role(Role::Root),
            Self::Role(Role::Targets),
            Self::Role(Role::Releases),
            Self::Role(Role::Rollouts),
            Self::Role(Role::Snapshot),
            Self::Role(Role::Timestamp),
            Self::Authority,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::Role(role) => role.to_possible_value(),
            Self::Authority => Some(clap::builder::PossibleValue::new("authority")),
        }
    }
}

impl KeyName {
    fn name(self) -> &'static str {
        match self {
            Self::Role(role) => SigningRole::from(role).name(),
            Self::Authority => "authority",
        }
    }

    fn is_here(self, operator: &Operator) -> bool {
        match self {
            Self::Role(role) => key_path(&operator.home.keys_directory(), role.into()).exists(),
            Self::Authority => operator.home.has_authority(),
        }
    }
}

impl Encrypt {
    pub fn run(self, operator: &Operator) -> Result<ExitCode> {
        // Held so that nobody rotates keys meanwhile.
        let _repository = operator.repository()?;
        let mut keys = self.keys;
        if keys.is_empty() {
            keys = KeyName::value_variants().to_vec();
            keys.retain(|key| key.is_here(operator));
        }
        check(operator, &keys)?;
        let passphrase = operator.home.passphrases().choose()?;
        let directory = operator.home.keys_directory();
        for key in keys {
            let changed = match key {
                KeyName::Role(role) => sign::encrypt(&directory, role.into(), &passphrase)?,
                KeyName::Authority => operator.home.encrypt_authority(&passphrase)?,
            };
            operator.printer.note(&match changed {
                true => format!("the key {} is encrypted", key.name()),
                false => format!(
                    "the key {} was encrypted before and keeps its passphrase; to change that, decrypt it first",
                    key.name()
                ),
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Decrypt {
    pub fn run(self, operator: &Operator) -> Result<ExitCode> {
        let _repository = operator.repository()?;
        check(operator, &self.keys)?;
        let directory = operator.home.keys_directory();
        for key in self.keys {
            let changed = match key {
                KeyName::Role(role) => {
                    sign::decrypt(&directory, role.into(), &operator.home.unlock())?
                }
                KeyName::Authority => operator.home.decrypt_authority()?,
            };
            operator.printer.note(&match changed {
                true => format!(
                    "the key {} lies open: its file is all that it takes",
                    key.name()
                ),
                false => format!("the key {} is not encrypted", key.name()),
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn check(operator: &Operator, keys: &[KeyName]) -> Result<()> {
    for key in keys {
        ensure!(
            key.is_here(operator),
            "the key {} is not in this directory",
            key.name()
        );
    }
    ensure!(
        !keys.is_empty(),
        "there is no private key in this directory"
    );
    Ok(())
}
