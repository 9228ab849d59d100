//! One CPU budget for all workers of the device.
//!
//! XNNPACK with more threads than free cores falls from milliseconds to a second per call, so an interpreter
//! gets only threads that the other models have left, and never more than there are cores. One thread is
//! always granted: a model that runs slower is better than one that does not run. What a model is granted beyond
//! its least interpreters it gets while it needs them and the cores are free (`scale`).

use edgeward_models::Manifest;

use crate::config::ModelSettings;

/// What one version may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    /// Interpreters that it always has.
    pub(super) instances: usize,
    /// Interpreters that it may grow to.
    pub(super) most: usize,
    /// Of each interpreter.
    pub(super) threads: usize,
}

/// Grants a version its share of `cores`, of which other models hold `taken` threads. The device's settings go before
/// the manifest.
pub(super) fn grant(
    manifest: &Manifest,
    settings: Option<&ModelSettings>,
    cores: usize,
    taken: usize,
) -> Grant {
    let free = cores.saturating_sub(taken).max(1);
    let own = |wanted: Option<u32>, manifest: u32| wanted.unwrap_or(manifest) as usize;
    let threads = own(settings.and_then(|s| s.threads), manifest.threads).clamp(1, free);
    let least = own(settings.and_then(|s| s.min_instances), manifest.instances);
    let most = own(settings.and_then(|s| s.max_instances), manifest.instances);
    let instances = least.clamp(1, (free / threads).max(1));
    Grant {
        instances,
        most: most.min(cores / threads).max(instances),
        threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(instances: u32, threads: u32) -> Manifest {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../models/samples/digits-1.0.0/manifest.json"
        );
        let mut manifest =
            Manifest::parse(&std::fs::read(path).expect("sample")).expect("manifest");
        manifest.instances = instances;
        manifest.threads = threads;
        manifest
    }

    #[test]
    fn never_more_threads_than_cores_and_never_less_than_one() {
        for cores in 1..6 {
            for taken in 0..8 {
                for (instances, threads) in [(1, 1), (1, 8), (8, 1), (3, 2), (64, 256)] {
                    let grant = grant(&manifest(instances, threads), None, cores, taken);
                    let total = grant.instances * grant.threads;
                    assert!(total >= 1);
                    assert!(total <= cores.saturating_sub(taken).max(1));
                    assert!(grant.threads <= threads as usize);
                    assert!(grant.instances <= instances as usize);
                    assert!(grant.most >= grant.instances);
                    assert!(grant.most * grant.threads <= cores.max(1));
                }
            }
        }
    }

    #[test]
    fn the_devices_own_settings_go_before_the_manifest() {
        let settings = ModelSettings {
            min_instances: Some(2),
            max_instances: Some(4),
            threads: Some(2),
            ..ModelSettings::default()
        };
        let of = |cores, taken| {
            let grant = grant(&manifest(1, 1), Some(&settings), cores, taken);
            (grant.instances, grant.most, grant.threads)
        };
        assert_eq!(of(16, 0), (2, 4, 2));
        assert_eq!(of(6, 0), (2, 3, 2), "no more than there are cores");
        assert_eq!(of(16, 13), (1, 4, 2), "at first what others have left");
    }
}
