//! `edgeward telemetry preview`: exactly what this device would send to its fleet.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use crate::config::Config;
use crate::fleet::admin::Client;

const HELP: &str = "\
Three messages leave a device and no other: \"online\" on connecting, as last will and on stopping; \"status\" when \
something in it changes, and once a day; \"telemetry\" each interval (null where [telemetry] level is \"off\"; \
\"models\" is filled by level \"metrics\" only). They travel as CBOR, the last two signed; numbers of messages and \
sessions begin with 1 here. What did leave: `edgeward audit show --log departures`.";

/// Arguments of `edgeward telemetry`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print each message that the running agent would send now, whole, as JSON.
    #[command(after_help = HELP)]
    Preview,
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let Verb::Preview = self.verb;
        let config = Config::load(config)?;
        let preview = Client::running(&config)?
            .preview()
            .context("the agent did not answer")?;
        let mut output = io::stdout();
        serde_json::to_writer_pretty(&mut output, &preview)?;
        writeln!(output)?;
        Ok(ExitCode::SUCCESS)
    }
}
