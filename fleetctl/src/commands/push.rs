//! `fleetctl push`: a model version for a group.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use edgeward_models::Manifest;
use edgeward_models::fleet::rollout::DesiredState;
use edgeward_models::name::{GroupName, LabelName, ModelName, Version};
use edgeward_models::package::{Package, TfliteOptions};
use edgeward_models::sign::Repository;

use super::change::{self, Asked, Pace};
use super::diff;
use super::plan::Plan;
use super::route;
use crate::operator::Operator;
use crate::printer::Printer;

/// Sign a model version and have a group run it
///
/// PATH is a .tflite file or a package directory (see `fleetctl package`). The version is signed, carried
/// to the broker, and each device of the group fetches, verifies and proves it before it serves it; until
/// then, and if anything is wrong with the new version, the device serves what it has. fleetctl watches
/// until every device has said what it made of it.
///
/// A version is immutable: another file under a pushed name and version is refused. Pushing the same
/// version again with a larger --percent widens its rollout; otherwise it is tried anew.
///
/// With --waves the rollout widens by itself: canaries first, then wave by wave, each as soon as every device of
/// the one before serves the version and has watched it for the soak. Too many failures halt it, and the devices
/// that had moved go back to what the group ran before. fleetctl must run for that, here or as `fleetctl rollout
/// watch` or `fleetctl controller`; without it no further wave moves.
///
/// Exit status: 0 every device serves the version; 1 a device refused it, or the rollout was halted; 2 a device
/// was silent, or the broker could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl push digits-2.0.0.tflite --group radiology
  fleetctl push digits-2.0.0.tflite --group radiology --waves 1,10%,50%,100% --soak 3600
  fleetctl push digits-2.0.0.tflite --group radiology --canary ct-1,ct-2 --waves 50% --approve
  fleetctl push ./digits-package --group radiology --percent 10 --jitter 600
  fleetctl push digits-2.0.0.tflite --group radiology --label canary
  fleetctl push net.tflite --name digits --version 2.0.0 --group radiology --no-wait")]
pub struct Args {
    /// A .tflite file, best named NAME-VERSION.tflite, or a package directory
    path: PathBuf,
    /// The group that is to run it
    #[arg(long)]
    group: GroupName,
    /// The model's name, if a .tflite file's name does not say it
    #[arg(long)]
    name: Option<ModelName>,
    /// The version, if a .tflite file's name does not say it
    #[arg(long)]
    version: Option<Version>,
    /// Have the group serve the version under this label beside the active one, which stays
    #[arg(long, value_name = "NAME", conflicts_with_all = ["percent", "jitter", "soak"])]
    label: Option<LabelName>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    waiting: change::Waiting,
    /// Sign and publish nothing; show which devices would run something else
    #[arg(long, conflicts_with_all = ["label", "offline"])]
    dry_run: bool,
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let package = self.package()?;
        for doubt in package.doubts() {
            printer.warn(&doubt);
        }
        let mut repository = operator.repository()?;
        let standing = match self.waiting.offline {
            true => None,
            false => Some(operator.standing(&repository).await?),
        };
        let (manifest, new) = numbered(&repository, &package)?;
        let before = repository.desired(&self.group)?;
        warn_of_changes(printer, &repository, before.as_ref(), &manifest)?;
        if new && !self.dry_run {
            repository
                .add_version(&manifest, package.files())
                .with_context(|| format!("cannot add {} {}", manifest.model, manifest.version))?;
        }
        if let Some(label) = self.label {
            let label = (label, manifest.version);
            let group = &self.group;
            let desired = route::labelled(&repository, before, group, &manifest.model, label)?;
            let (model, waiting) = (&manifest.model, &self.waiting);
            return route::carry_out(&operator, repository, desired, model, standing, waiting)
                .await;
        }
        let asked = Asked {
            verb: "push",
            model: &manifest.model,
            version: &manifest.version,
            release: manifest.release,
            pace: &self.pace,
            health: self.plan.health(),
            waves: self.plan.waves(&repository, &self.group, &self.pace)?,
        };
        let desired = change::wish(before, &self.group, asked)?;
        if self.dry_run {
            return diff::show(&operator, repository, &desired, self.waiting.json).await;
        }
        change::carry_out(
            &operator,
            repository,
            desired,
            &manifest.model,
            standing,
            &self.waiting,
        )
        .await
    }

    fn package(&self) -> Result<Package> {
        if self.path.is_dir() {
            let package = Package::open(&self.path)?;
            let manifest = package.manifest();
            if self
                .name
                .as_ref()
                .is_some_and(|name| *name != manifest.model)
                || self
                    .version
                    .as_ref()
                    .is_some_and(|version| *version != manifest.version)
            {
                bail!(
                    "the manifest in {} says {} {}; change it there rather than by --name or --version",
                    self.path.display(),
                    manifest.model,
                    manifest.version
                );
            }
            return Ok(package);
        }
        let options = TfliteOptions {
            model: self.name.clone(),
            version: self.version.clone(),
            ..TfliteOptions::default()
        };
        Ok(Package::from_tflite(&self.path, options)?)
    }
}

/// The manifest as it is or will be signed, with its release; whether the version is new.
fn numbered(repository: &Repository, package: &Package) -> Result<(Manifest, bool)> {
    let mut manifest = package.manifest().clone();
    if let Some(signed) = repository.manifest(&manifest.model, &manifest.version)? {
        manifest.release = signed.release;
        if manifest != signed {
            bail!(
                "{} {} was pushed with other content, and versions are immutable; give this one a new version",
                manifest.model,
                manifest.version
            );
        }
        return Ok((signed, false));
    }
    manifest.release = repository.next_release(&manifest.model)?;
    Ok((manifest, true))
}

/// Callers notice when a version takes other tensors than the one before; a device that proves it does not.
fn warn_of_changes(
    printer: &Printer,
    repository: &Repository,
    before: Option<&DesiredState>,
    manifest: &Manifest,
) -> Result<()> {
    let wish = before.and_then(|before| before.models.get(&manifest.model));
    let Some(wish) = wish.filter(|wish| wish.version != manifest.version) else {
        return Ok(());
    };
    let former = repository.manifest(&manifest.model, &wish.version)?;
    if former.is_some_and(|former| former.signatures != manifest.signatures) {
        printer.warn(&format!(
            "{} {} takes or gives other tensors than {}: whoever asks it must know both",
            manifest.model, manifest.version, wish.version
        ));
    }
    Ok(())
}
