//! `edgeward token`. (To be written.)

/// Arguments of `edgeward token`.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, _config: &std::path::Path) -> anyhow::Result<std::process::ExitCode> {
        todo!()
    }
}
