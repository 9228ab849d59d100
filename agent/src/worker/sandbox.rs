//! What a worker gives up before it touches a model or a plugin.
//!
//! The TFLite library itself is loaded before, like the program it belongs to: both come from the device's
//! owner. So a worker on built-in kernels or XNNPACK may afterwards open nothing but the kernel's description
//! of the processor, and map nothing executable. A plugin's worker may read the system's libraries, the
//! plugin's directory and what its profile lists, work with the profile's device nodes, and keep files in its
//! cache directory, if it has one.
//!
//! Landlock decides which files; seccomp (in `filter`) decides which system calls, the network among them,
//! for which older kernels have no Landlock rules. Capabilities go too, where the agent runs as root.

use std::path::{Path, PathBuf};

use edgeward_models::manifest::MAX_REQUEST_BYTES;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::cache::DriverCache;
use super::filter;
use super::wire::{DelegateSetup, Setup};

/// What the processor-detection libraries inside TFLite and glibc read.
const PROCESSOR: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
];
/// Where a plugin's own dependencies are.
const SYSTEM_LIBRARIES: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
];
/// Descriptors of a worker without and with a driver.
const DESCRIPTORS: u64 = 64;
const DESCRIPTORS_WITH_PLUGIN: u64 = 256;
/// The oldest Landlock that counts as enforced: it covers all opening, creating and removing of files.
/// What newer kernels add (truncation, device ioctl, signals) seccomp and the empty rules cover here.
const LEAST_ABI: ABI = ABI::V1;
const WISHED_ABI: ABI = ABI::V6;

/// Which parts are on.
pub struct Sandbox {
    /// In words; `None`: everything is enforced.
    pub missing: Option<String>,
    filtered: bool,
    plugin: bool,
}

/// Puts the calling thread, and so all that it starts, into the sandbox.
pub fn enter(setup: &Setup) -> Result<Sandbox, String> {
    rustix::thread::set_no_new_privs(true).map_err(|e| format!("no_new_privs: {e}"))?;
    give_up_capabilities().map_err(|e| format!("capabilities: {e}"))?;
    let mut missing = Vec::new();
    if let Err(error) = restrict_files(&setup.delegate) {
        missing.push(format!("Landlock is missing ({error})"));
    }
    let plugin = matches!(setup.delegate, DelegateSetup::Plugin(_));
    let filtered = match filter::first(plugin, cache(setup).is_some()) {
        Ok(()) => true,
        Err(error) => {
            missing.push(format!("seccomp is missing ({error})"));
            false
        }
    };
    let missing = (!missing.is_empty()).then(|| missing.join("; "));
    match &missing {
        Some(missing) if !setup.best_effort => Err(format!(
            "the sandbox cannot be put on: {missing}; set sandbox = \"best-effort\" only if models \
             and drivers are trusted"
        )),
        _ => Ok(Sandbox {
            missing,
            filtered,
            plugin,
        }),
    }
}

/// A service manager's filter may forbid the call: then there must be nothing to give up.
fn give_up_capabilities() -> rustix::io::Result<()> {
    const NOTHING: CapabilitySets = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    match rustix::thread::set_capabilities(None, NOTHING) {
        Err(Errno::PERM) if rustix::thread::capabilities(None)? == NOTHING => Ok(()),
        result => result,
    }
}

impl Sandbox {
    /// Takes the opening of files away as well, from all threads.
    pub fn seal(&self) -> Result<(), String> {
        if self.filtered {
            filter::second(self.plugin)
        } else {
            Ok(())
        }
    }
}

fn cache(setup: &Setup) -> Option<&DriverCache> {
    match &setup.delegate {
        DelegateSetup::Plugin(plugin) => plugin.cache.as_ref(),
        DelegateSetup::Builtin | DelegateSetup::Xnnpack => None,
    }
}

/// Limits that hold for everything the process does from now on.
pub fn limit(setup: &Setup) -> Result<(), String> {
    let plugin = matches!(setup.delegate, DelegateSetup::Plugin(_));
    let files = if plugin {
        DESCRIPTORS_WITH_PLUGIN
    } else {
        DESCRIPTORS
    };
    // A core file would put inputs, which are patients' data, onto the disk.
    // Shared memory counts as files: no answer is larger, and no other file is written.
    let mut limits = vec![
        (Resource::Core, 0),
        (Resource::Nofile, files),
        (Resource::Fsize, 2 * MAX_REQUEST_BYTES),
    ];
    if setup.memory_limit_bytes > 0 {
        // Private writable memory. Not the address space: drivers of GPUs map far more than they use.
        limits.push((Resource::Data, setup.memory_limit_bytes));
    }
    for (resource, limit) in limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        rustix::process::setrlimit(resource, limit).map_err(|e| format!("{resource:?}: {e}"))?;
    }
    Ok(())
}

fn restrict_files(delegate: &DelegateSetup) -> Result<(), String> {
    let text = |error: landlock::RulesetError| error.to_string();
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LEAST_ABI))
        .map_err(text)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WISHED_ABI))
        .map_err(text)?
        .scope(Scope::from_all(WISHED_ABI))
        .map_err(text)?
        .create()
        .map_err(text)?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut paths: Vec<(PathBuf, _)> = Vec::new();
    paths.extend(PROCESSOR.iter().map(|p| (p.into(), read)));
    if let DelegateSetup::Plugin(plugin) = delegate {
        paths.extend(SYSTEM_LIBRARIES.iter().map(|p| (p.into(), read)));
        let directory = plugin.library.parent().unwrap_or(Path::new("/"));
        paths.push((directory.to_owned(), read));
        paths.extend(plugin.read.iter().map(|p| (p.clone(), read)));
        paths.extend(plugin.devices.iter().map(|p| (p.clone(), device)));
        let keep = read
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir;
        let cache = plugin.cache.iter();
        paths.extend(cache.map(|cache| (cache.directory.clone(), keep)));
    }
    for (path, mut access) in paths {
        // What is not there needs no rule: the driver will say what it misses.
        let Ok(target) = PathFd::new(&path) else {
            continue;
        };
        if !path.is_dir() {
            access &= AccessFs::from_file(WISHED_ABI);
        }
        rules = rules
            .add_rule(PathBeneath::new(target, access))
            .map_err(text)?;
    }
    let status = rules.restrict_self().map_err(text)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err("the kernel does not offer it".to_owned());
    }
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::collections::BTreeMap;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

    use super::*;

    /// Forbids capset to this thread.
    fn forbid_capset() {
        let rules = BTreeMap::from([(libc::SYS_capset, Vec::new())]);
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64);
        let program = BpfProgram::try_from(filter.expect("filter")).expect("program");
        seccompiler::apply_filter(&program).expect("put on");
    }

    // Each test has a thread of its own, and capabilities and filters are a thread's.
    #[test]
    fn where_the_call_is_forbidden_having_no_capability_is_enough() {
        give_up_capabilities().expect("allowed");
        forbid_capset();
        give_up_capabilities().expect("nothing to give up");
    }

    #[test]
    fn where_the_call_is_forbidden_a_capability_is_an_error() {
        let sets = rustix::thread::capabilities(None).expect("capabilities");
        forbid_capset();
        let kept = !(sets.effective | sets.permitted | sets.inheritable).is_empty();
        assert_eq!(give_up_capabilities().is_err(), kept);
    }
}
