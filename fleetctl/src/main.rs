//! `fleetctl`: the operator's tool for an Edgeward fleet.
//!
//! Signs model versions, pushes them to groups of devices and shows what each device made of it. The
//! repository directory in the operator's home is the truth; the broker is a copy that may lose everything.

mod authority;
mod carrier;
mod claims;
mod commands;
mod devices;
mod history;
mod home;
mod link;
mod memory;
mod operator;
mod overseer;
mod passphrase;
mod pending;
mod printer;
mod renewal;
mod revocation;
mod rollouts;
mod statuses;
mod watch;

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;

use commands::Cli;
use printer::Printer;

/// The fleet said no.
pub const REFUSED: u8 = 1;
/// We could not ask.
pub const FAILED: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new();
    match run(cli, &printer) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            printer.note(&format!("error: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: Cli, printer: &Printer) -> Result<ExitCode> {
    // Libraries stay silent unless asked: what went wrong is said once, at the end.
    let filter = EnvFilter::try_from_env("FLEETCTL_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("cannot install the TLS library"))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?
        .block_on(cli.run(printer))
}

/// A reader that has seen enough, such as `head`, is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}
