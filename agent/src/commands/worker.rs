//! `edgeward worker`. (To be written.)

/// Arguments of `edgeward worker`.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self, _config: &std::path::Path) -> anyhow::Result<std::process::ExitCode> {
        todo!()
    }
}
