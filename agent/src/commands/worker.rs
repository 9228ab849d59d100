//! `edgeward worker`: the process that runs one model. The agent starts it; see `worker`.

use std::path::Path;

/// Arguments of `edgeward worker`: none, everything comes over its standard input.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, _config: &Path) -> anyhow::Result<std::process::ExitCode> {
        crate::worker::run_child()
    }
}
