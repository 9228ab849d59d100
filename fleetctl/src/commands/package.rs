//! `fleetctl package`: an editable package from a `.tflite` file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::name::{DelegateName, ModelName, Version};
use edgeward_models::package::{Package, TfliteOptions};

use crate::printer::Printer;

/// Make an editable package directory from a .tflite file
///
/// The manifest is written from the file's own tensors and signatures. Edit it where the file does not say
/// enough (free dimensions are -1, delegates are tried in their order, tolerances are per delegate), add
/// golden vectors, and push the directory. Lengths and digests need no editing: they are taken from the
/// files when the package is pushed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl package digits-2.0.0.tflite
  fleetctl package net.tflite --name digits --version 2.0.0 --golden vectors.json --out digits")]
pub struct Args {
    /// The model file, best named NAME-VERSION.tflite
    #[arg(value_name = "FILE")]
    model: PathBuf,
    /// The model's name, if the file's name does not say it
    #[arg(long)]
    name: Option<ModelName>,
    /// The version, if the file's name does not say it
    #[arg(long)]
    version: Option<Version>,
    /// Known inputs with their answers; absent: NAME-VERSION.golden.json beside the file, if there
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Where to run, best first (may be repeated); absent: xnnpack, then builtin
    #[arg(long, value_name = "DELEGATE")]
    delegate: Vec<DelegateName>,
    /// The model's licence
    #[arg(long)]
    licence: Option<String>,
    /// Anything that operators should know
    #[arg(long)]
    notes: Option<String>,
    /// The directory to make; absent: NAME-VERSION
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    pub fn run(self, printer: &Printer) -> Result<ExitCode> {
        let options = TfliteOptions {
            model: self.name,
            version: self.version,
            golden: self.golden,
            delegates: self.delegate,
            licence: self.licence,
            notes: self.notes,
        };
        let package = Package::from_tflite(&self.model, options)?;
        let manifest = package.manifest();
        let directory = self
            .out
            .unwrap_or_else(|| format!("{}-{}", manifest.model, manifest.version).into());
        package.write(&directory)?;
        if manifest.golden_file.is_none() {
            printer.note(
                "it has no golden vectors: devices cannot prove that a delegate computes right",
            );
        }
        printer.data(&directory.display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
