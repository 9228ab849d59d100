//! One CPU budget for all workers of the device.
//!
//! XNNPACK with more threads than free cores falls from milliseconds to a second per call, so an interpreter
//! gets only threads that the other models have left, and never more than there are cores. One thread is
//! always granted: a model that runs slower is better than one that does not run.

use edgeward_models::Manifest;

/// What one version may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) instances: usize,
    /// Of each interpreter.
    pub(super) threads: usize,
}

impl Grant {
    pub(super) fn total(self) -> usize {
        self.instances * self.threads
    }
}

/// Grants a version its share of `cores`, of which other models hold `taken` threads.
pub(super) fn grant(manifest: &Manifest, cores: usize, taken: usize) -> Grant {
    let free = cores.saturating_sub(taken).max(1);
    let threads = (manifest.threads as usize).clamp(1, free);
    let instances = (manifest.instances as usize).clamp(1, (free / threads).max(1));
    Grant { instances, threads }
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
                    let grant = grant(&manifest(instances, threads), cores, taken);
                    assert!(grant.total() >= 1);
                    assert!(grant.total() <= cores.saturating_sub(taken).max(1));
                    assert!(grant.threads <= threads as usize);
                    assert!(grant.instances <= instances as usize);
                }
            }
        }
    }
}
