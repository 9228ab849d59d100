//! What a new worker is told, out of its specification.

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use edgeward_models::name::DelegateName;
use rustix::fs::MemfdFlags;

use super::cache::PLACEHOLDER;
use super::slots::Layout;
use super::wire::{self, DelegateSetup, PluginSetup, Setup};
use super::{WorkerError, WorkerSpec, delegate_options};
use crate::config::Sandbox;

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
        delegate: delegate_setup(spec)?,
        signatures: spec.manifest.signatures.clone(),
        layout,
        instances: spec.instances.max(1),
        threads: spec.threads.max(1),
        batching: spec.batching.clone(),
        memory_limit_bytes: spec.memory_limit_bytes,
        best_effort: spec.sandbox == Sandbox::BestEffort,
        golden: spec.manifest.golden_file.is_some(),
    })
}

fn delegate_setup(spec: &WorkerSpec) -> Result<DelegateSetup, WorkerError> {
    match (spec.delegate.delegate.as_str(), &spec.profile) {
        (DelegateName::BUILTIN, _) => Ok(DelegateSetup::Builtin),
        (DelegateName::XNNPACK, _) => Ok(DelegateSetup::Xnnpack),
        (_, Some(profile)) => Ok(DelegateSetup::Plugin(PluginSetup {
            library: absolute(&profile.library)?,
            options: options(spec)?,
            read: profile.read.clone(),
            devices: profile.devices.clone(),
            cache: spec.cache.clone(),
        })),
        (name, None) => Err(WorkerError::Start(format!(
            "this device has no delegate named {name}: add [delegates.{name}] to its configuration"
        ))),
    }
}

/// The delegate's options, with the directory of its cache where they ask for it.
fn options(spec: &WorkerSpec) -> Result<BTreeMap<String, String>, WorkerError> {
    let mut options = delegate_options(&spec.delegate, spec.profile.as_ref());
    for (key, value) in &mut options {
        if !value.contains(PLACEHOLDER) {
            continue;
        }
        let name = &spec.delegate.delegate;
        let directory = spec.cache.as_ref().ok_or_else(|| {
            WorkerError::Refused(format!(
                "its option {key} is the place of a cache, which it has none of: add [delegates.{name}.cache]"
            ))
        })?;
        let directory = directory.directory.to_str().ok_or_else(|| {
            WorkerError::Refused(format!("the path of its cache is no text: {directory:?}"))
        })?;
        *value = value.replace(PLACEHOLDER, directory);
    }
    Ok(options)
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
