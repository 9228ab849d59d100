//! `edgeward route`: an override of a model's routing on this device, and its end.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::ArgGroup;
use edgeward_models::fleet::routing::{Routing, parse_label, parse_weight};
use edgeward_models::name::LabelName;
use edgeward_models::{ModelName, Version};

use crate::config::Config;
use crate::fleet::admin::{Client, Routed};

const HELP: &str = "\
The override takes the place of the routing that the fleet's desired state says for this model, until --end; it holds \
over restarts and is a record in the audit log, and the device's status says that it is one. Only versions that the \
fleet's keys signed can be named, and which version is the active one stays the fleet's. Exit status: 0 done, 1 \
refused, 2 could not be tried.";

/// Arguments of `edgeward route`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP, group = ArgGroup::new("what").required(true).multiple(true))]
pub struct Args {
    model: ModelName,
    /// A name that requests may use instead of the version.
    #[arg(long = "label", value_name = "NAME=VERSION", value_parser = parse_label, group = "what")]
    labels: Vec<(LabelName, Version)>,
    /// How requests that name no version are split, by weight.
    #[arg(long, value_name = "VERSION=WEIGHT,…", value_delimiter = ',', value_parser = parse_weight, group = "what")]
    split: Vec<(Version, u32)>,
    /// A version that gets a copy of the requests that name none, for comparison.
    #[arg(long, value_name = "VERSION", group = "what")]
    shadow: Option<Version>,
    /// A version to be served that nothing else here names.
    #[arg(long = "also", value_name = "VERSION", group = "what")]
    versions: Vec<Version>,
    /// The active version alone, whatever the fleet says.
    #[arg(long, group = "what", conflicts_with_all = ["labels", "split", "shadow", "versions"])]
    clear: bool,
    /// End the override: what the fleet says holds again.
    #[arg(long, group = "what", conflicts_with_all = ["labels", "split", "shadow", "versions", "clear"])]
    end: bool,
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        let agent = Client::connect(&config)
            .context("cannot talk to the running agent; be root, the agent's own user, or in the group of its admin_socket")?
            .with_context(|| {
                format!(
                    "no agent runs on {} (systemctl start edgeward)",
                    config.state_directory.display()
                )
            })?;
        let routing = (!self.end).then(|| Routing {
            rollout: None,
            versions: self.versions.into_iter().collect(),
            labels: self.labels.into_iter().collect(),
            split: self.split.into_iter().collect(),
            shadow: self.shadow,
        });
        let routed = agent.route(self.model, routing);
        let (text, code) = match routed.context("the agent did not answer")? {
            Routed::Done(text) => (text, ExitCode::SUCCESS),
            Routed::Refused(reason) => (format!("refused: {reason}"), ExitCode::from(1)),
        };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(code)
    }
}
