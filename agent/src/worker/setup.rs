//! What a new worker is told, out of its specification.

use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use edgeward_models::manifest::DelegateChoice;
use edgeward_models::name::DelegateName;
use rustix::fs::MemfdFlags;

use super::slots::Layout;
use super::wire::{self, DelegateSetup, PluginSetup, Setup};
use super::{WorkerError, WorkerSpec, delegate_options};
use crate::config::{DelegateProfile, Sandbox};

/// The set-up, and a refusal of what cannot be served at all.
pub(super) fn setup(spec: &WorkerSpec, layout: Layout) -> Result<Setup, WorkerError> {
    for signature in &spec.manifest.signatures {
        let most = signature.inputs.len().max(signature.outputs.len());
        if most > wire::MAX_TENSORS {
            return Err(WorkerError::Refused(format!(
                "signature {:?} has {most} inputs or outputs; at most {} are served",
                signature.name,
                wire::MAX_TENSORS
            )));
        }
    }
    Ok(Setup {
        library: absolute(&spec.library)?,
        delegate: delegate_setup(&spec.delegate, spec.profile.as_ref())?,
        signatures: spec.manifest.signatures.clone(),
        layout,
        instances: spec.instances.max(1),
        threads: spec.threads.max(1),
        memory_limit_bytes: spec.memory_limit_bytes,
        best_effort: spec.sandbox == Sandbox::BestEffort,
        golden: spec.manifest.golden_file.is_some(),
    })
}

fn delegate_setup(
    choice: &DelegateChoice,
    profile: Option<&DelegateProfile>,
) -> Result<DelegateSetup, WorkerError> {
    match (choice.delegate.as_str(), profile) {
        (DelegateName::BUILTIN, _) => Ok(DelegateSetup::Builtin),
        (DelegateName::XNNPACK, _) => Ok(DelegateSetup::Xnnpack),
        (_, Some(profile)) => Ok(DelegateSetup::Plugin(PluginSetup {
            library: absolute(&profile.library)?,
            options: delegate_options(choice, Some(profile)),
            read: profile.read.clone(),
            devices: profile.devices.clone(),
        })),
        (name, None) => Err(WorkerError::Start(format!(
            "this device has no delegate named {name}: add [delegates.{name}] to its configuration"
        ))),
    }
}

/// The worker has another working directory.
fn absolute(path: &Path) -> Result<PathBuf, WorkerError> {
    std::path::absolute(path)
        .map_err(|error| WorkerError::Start(format!("the path {}: {error}", path.display())))
}

/// The set-up as a file in memory, which has no limit of length as a message has.
pub(super) fn setup_document(setup: &Setup) -> std::io::Result<OwnedFd> {
    let bytes = serde_json::to_vec(setup)?;
    if bytes.len() > wire::MAX_SETUP_BYTES {
        return Err(std::io::Error::other("it is too long"));
    }
    let descriptor = rustix::fs::memfd_create("edgeward-setup", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(descriptor);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file.into())
}
