//! `edgeward`: parse the command line, run one verb, say why it failed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use edgeward_agent::config::{self, ConfigError};
use edgeward_agent::{commands, logging::LogError};

/// Serves verified TensorFlow Lite models on this device and keeps all data on it.
///
/// Exit status: 0 done, 1 refused (a wrong configuration, a bundle that does not verify, …), 2 could not be tried.
#[derive(Parser)]
#[command(name = "edgeward", version, max_term_width = 100)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, env = "EDGEWARD_CONFIG", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent (what the systemd service does).
    Serve(commands::serve::Args),
    /// Read the configuration and explain what is wrong with it, line by line.
    CheckConfig(commands::check_config::Args),
    /// Make this device a member of a fleet.
    Enroll(commands::enroll::Args),
    /// Apply a signed repository from a directory, such as a USB stick.
    Import(commands::import::Args),
    /// Read the audit log and check that nobody changed it.
    Audit(commands::audit::Args),
    /// Override on this device how requests for a model find a version, or end the override.
    Route(commands::route::Args),
    /// Say what the running agent serves and how it is.
    Status(commands::status::Args),
    /// Show what this device tells its fleet.
    Telemetry(commands::telemetry::Args),
    /// Say what each caller used in a month.
    Usage(commands::usage::Args),
    /// Make a bearer token for the TLS door.
    Token(commands::token::Args),
    /// The process that runs one model (started by the agent only).
    #[command(hide = true)]
    Worker(commands::worker::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => args.run(&cli.config),
        Command::CheckConfig(args) => args.run(&cli.config),
        Command::Enroll(args) => args.run(&cli.config),
        Command::Import(args) => args.run(&cli.config),
        Command::Audit(args) => args.run(&cli.config),
        Command::Route(args) => args.run(&cli.config),
        Command::Status(args) => args.run(&cli.config),
        Command::Telemetry(args) => args.run(&cli.config),
        Command::Usage(args) => args.run(&cli.config),
        Command::Token(args) => args.run(&cli.config),
        Command::Worker(args) => args.run(&cli.config),
    };
    result.unwrap_or_else(|error| {
        say(&error);
        if error.is::<ConfigError>() || error.is::<LogError>() {
            ExitCode::from(REFUSED)
        } else {
            ExitCode::from(NOT_TRIED)
        }
    })
}

const REFUSED: u8 = 1;
const NOT_TRIED: u8 = 2;

#[allow(clippy::print_stderr)]
fn say(error: &anyhow::Error) {
    eprintln!("edgeward: {error:#}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
