//! The verbs, one file each.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::home::Home;
use crate::pending;
use crate::printer::Printer;

#[cfg(feature = "broker")]
mod broker;
mod broker_config;
pub mod change;
mod claim;
mod controller;
mod device;
mod diff;
mod doctor;
mod export;
mod group;
mod history;
mod init;
mod key;
mod package;
mod plan;
mod publish;
mod pull;
mod push;
mod refresh;
mod rollback;
mod rollout;
mod route;
mod sign;
mod status;
mod sync;

/// The operator's tool for an Edgeward fleet.
///
/// fleetctl signs TensorFlow Lite model versions, pushes them to groups of devices over an MQTT broker, and
/// shows what each device made of them. Everything that a device obeys is signed with the keys in the
/// operator's home; the broker only carries it.
///
/// Results go to standard output, everything else to standard error. Exit status: 0 done; 1 the fleet said
/// no, or other machines must sign first; 2 the fleet could not be asked.
///
/// Private keys may be kept behind a passphrase (`fleetctl key encrypt`). It is asked on the terminal; a service names
/// a file whose first line it is, or a descriptor such as /dev/fd/3, in the variable FLEETCTL_PASSPHRASE_FILE.
#[derive(Debug, Parser)]
#[command(
    name = "fleetctl",
    version,
    max_term_width = 100,
    after_long_help = "\
A first fleet:
  fleetctl init hospital --broker broker.example.org:8883
  fleetctl device enroll ct-1.csr.pem --id ct-1 --group radiology --out ct-1.bundle.json
  fleetctl push digits-1.0.0.tflite --group radiology
  fleetctl status"
)]
pub struct Cli {
    /// The operator's directory: keys, authority, repository [default: ~/.config/fleetctl]
    #[arg(
        long,
        value_name = "DIR",
        env = "FLEETCTL_HOME",
        hide_env_values = true,
        global = true
    )]
    home: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(init::Args),
    #[command(subcommand)]
    Device(device::Verb),
    #[command(subcommand)]
    Claim(claim::Verb),
    #[command(subcommand)]
    Group(group::Verb),
    Package(package::Args),
    Push(push::Args),
    Rollback(rollback::Args),
    Route(route::Args),
    #[command(subcommand)]
    Rollout(rollout::Verb),
    Controller(controller::Args),
    Diff(diff::Args),
    History(history::Args),
    Status(status::Args),
    Sync(sync::Args),
    Refresh(refresh::Args),
    Export(export::Args),
    Pull(pull::Args),
    Sign(sign::Args),
    Publish(publish::Args),
    #[command(subcommand)]
    Key(key::Verb),
    Doctor(doctor::Args),
    BrokerConfig(broker_config::Args),
    #[cfg(feature = "broker")]
    Broker(broker::Args),
}

impl Cli {
    pub async fn run(self, printer: &Printer) -> Result<ExitCode> {
        let home = self
            .home
            .or_else(Home::default_directory)
            .context("there is no home directory; name one with --home")?;
        let result = match self.verb {
            Verb::Init(args) => args.run(&home, printer).await,
            Verb::Device(verb) => verb.run(&home, printer).await,
            Verb::Claim(verb) => verb.run(&home, printer).await,
            Verb::Group(verb) => verb.run(&home, printer).await,
            Verb::Package(args) => args.run(printer),
            Verb::Push(args) => args.run(&home, printer).await,
            Verb::Rollback(args) => args.run(&home, printer).await,
            Verb::Route(args) => args.run(&home, printer).await,
            Verb::Rollout(verb) => verb.run(&home, printer).await,
            Verb::Controller(args) => args.run(&home, printer).await,
            Verb::Diff(args) => args.run(&home, printer).await,
            Verb::History(args) => args.run(&home, printer),
            Verb::Status(args) => args.run(&home, printer).await,
            Verb::Sync(args) => args.run(&home, printer).await,
            Verb::Refresh(args) => args.run(&home, printer).await,
            Verb::Export(args) => args.run(&home, printer),
            Verb::Pull(args) => args.run(&home, printer).await,
            Verb::Sign(args) => args.run(&home, printer),
            Verb::Publish(args) => args.run(&home, printer).await,
            Verb::Key(verb) => verb.run(&home, printer).await,
            Verb::Doctor(args) => args.run(&home, printer).await,
            Verb::BrokerConfig(args) => args.run(&home, printer),
            #[cfg(feature = "broker")]
            Verb::Broker(args) => args.run(&home, printer).await,
        };
        result.or_else(|error| pending::keep(&home, printer, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_a_manual() {
        Cli::command().debug_assert();
        let mut command = Cli::command();
        command.build();
        for verb in command.get_subcommands().filter(|v| v.get_name() != "help") {
            let leaves: Vec<_> = verb
                .get_subcommands()
                .filter(|v| v.get_name() != "help")
                .collect();
            for leaf in if leaves.is_empty() {
                vec![verb]
            } else {
                leaves
            } {
                let after = leaf
                    .get_after_long_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    after.contains("  fleetctl "),
                    "{} shows no example",
                    leaf.get_name()
                );
            }
        }
    }
}
