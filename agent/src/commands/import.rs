//! `edgeward import`: applies a signed repository from a directory, with or without a running agent.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use edgeward_models::repository::DirectorySource;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::fleet::admin::Client;
use crate::fleet::reconcile::{ImportEvent, ImportOutcome, ImportRequest};
use crate::fleet::state::act_as_owner;
use crate::serving::Engine;
use crate::watch::audit::Audit;
use crate::worker::{Spawner, turns};

/// The running program, whatever a package update puts at its path meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

const HELP: &str = "\
The directory is what `fleetctl export` wrote, for instance on a USB stick. It is verified exactly as what \
comes over the network; who copied it does not matter. A repository older than what this device already \
has is nothing to do, not an error. Exit status: 0 done, 1 something is refused (it says what and why), 2 \
could not be tried.";

/// Arguments of `edgeward import`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The repository directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        turns::give_way(turns::NICENESS);
        let config = Config::load(config)?;
        // Opened with the caller's rights; from here on only the descriptor is used.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory: OwnedFd = rustix::fs::open(&self.directory, flags, Mode::empty())
            .with_context(|| format!("cannot open the directory {}", self.directory.display()))?;
        let hear = |text: String| {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        let agent = Client::connect(&config)
            .context("cannot talk to the running agent; be root, the agent's own user, or in the group of its admin_socket")?;
        let (outcome, lines) = match agent {
            Some(agent) => agent
                .import(&directory, hear)
                .context("the running agent did not finish the import")?,
            None => alone(config, directory, hear)?,
        };
        let mut output = std::io::stdout();
        for line in lines {
            writeln!(output, "{line}")?;
        }
        Ok(match outcome {
            ImportOutcome::Applied | ImportOutcome::Older => ExitCode::SUCCESS,
            ImportOutcome::Refused => ExitCode::from(1),
            ImportOutcome::Failed => ExitCode::from(2),
        })
    }
}

/// Without a running agent this process is the agent for as long as the import takes: same checks, same
/// proof on this device's own delegates.
fn alone(
    config: Config,
    directory: OwnedFd,
    hear: impl Fn(String),
) -> anyhow::Result<(ImportOutcome, Vec<String>)> {
    act_as_owner(&config.state_directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = Arc::new(config);
    runtime.block_on(async move {
        let audit = Audit::open(&config.state_directory)?;
        let engine = Engine::new(config.clone(), Spawner::new(OWN_PROGRAM.into())?);
        let fleet = crate::fleet::start_offline(config, engine.clone(), audit).await?;
        let (progress, mut events) = mpsc::channel(16);
        let source = Arc::new(DirectorySource::from_fd(directory)?);
        fleet.import(ImportRequest { source, progress }).await?;
        let mut result = None;
        while let Some(event) = events.recv().await {
            match event {
                ImportEvent::Progress(text) => hear(text),
                ImportEvent::Done { outcome, lines } => result = Some((outcome, lines)),
            }
        }
        fleet.stop().await;
        engine.shutdown().await;
        result.context("the import ended without a result")
    })
}
