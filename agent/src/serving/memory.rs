//! One memory budget for all workers of the device, and versions that nobody asks: unloaded, and loaded again with
//! the first request.
//!
//! Before a worker is started, room is made for it: versions that were not asked for longest go first, pinned ones
//! never, nor any that is answering. What a worker takes is measured (its proportional share of the pages it has
//! mapped); before it is there, what it took the last time counts, or a guess. `supervise` loads what was unloaded.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use edgeward_models::{Manifest, ModelName};
use tracing::warn;

use super::engine::Shared;
use super::loaded::Loaded;

/// How long a load waits until other versions have let go of their memory.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often running workers are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// What a worker takes beside its model: the library, its heap, its stacks.
const WORKER_BYTES: u64 = 8 << 20;

/// What the workers of this device may take together.
#[derive(Debug, Default)]
pub(super) struct MemoryBudget {
    /// 0: no limit.
    bytes: u64,
    /// For workers that are being loaded and are not served yet.
    reserved: Arc<AtomicU64>,
    /// One load at a time looks for room.
    turn: tokio::sync::Mutex<()>,
}

/// Memory set aside for a worker until it is served and counts by itself.
#[derive(Debug)]
pub(super) struct Room {
    bytes: u64,
    reserved: Arc<AtomicU64>,
}

impl Room {
    fn new(bytes: u64, reserved: &Arc<AtomicU64>) -> Self {
        reserved.fetch_add(bytes, Ordering::Relaxed);
        let reserved = reserved.clone();
        Self { bytes, reserved }
    }

    /// The worker is there: it takes so much.
    pub(super) fn becomes(&mut self, bytes: u64) {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One worker as the budget sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resident {
    bytes: u64,
    used: Instant,
    /// It may be unloaded.
    movable: bool,
}

/// Which workers have to go so that all that stay, and `needed` bytes more, are within the budget: those that were
/// used longest ago. `None`: not even if all went that may.
fn victims(residents: &[Resident], budget: u64, needed: u64) -> Option<Vec<usize>> {
    let all = residents.iter().map(|resident| resident.bytes);
    let mut total = all.fold(needed, u64::saturating_add);
    let mut oldest: Vec<usize> = (0..residents.len())
        .filter(|&index| residents[index].movable)
        .collect();
    oldest.sort_by_key(|&index| residents[index].used);
    let mut gone = Vec::new();
    for index in oldest {
        if total <= budget {
            break;
        }
        total -= residents[index].bytes;
        gone.push(index);
    }
    (total <= budget).then_some(gone)
}

impl MemoryBudget {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }

    fn is_limited(&self) -> bool {
        self.bytes > 0
    }
}

/// What the worker of a version will take, before anyone has measured it: weights are packed into a second copy, for
/// each interpreter.
pub(super) fn guess(manifest: &Manifest) -> u64 {
    let model = manifest.files.get(&manifest.model_file);
    let length = model.map_or(0, |entry| entry.length);
    let copies = 1 + u64::from(manifest.instances);
    WORKER_BYTES.saturating_add(length.saturating_mul(copies))
}

impl Shared {
    /// Sets memory aside for a worker of this model, unloading others if it must. No version of the same model goes:
    /// it serves until the new worker does.
    pub(super) async fn room_for(&self, model: &ModelName, bytes: u64) -> Result<Room, String> {
        let memory = &self.memory;
        if !memory.is_limited() {
            return Ok(Room::new(0, &memory.reserved));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let _turn = memory.turn.lock().await;
                if self.fits(Some(model), bytes).await {
                    return Ok(Room::new(bytes, &memory.reserved));
                }
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "its worker would take about {bytes} bytes, and beside the versions that are pinned or answering \
                     there is no room for it in the {} bytes of memory_budget_bytes: raise it, or pin fewer models",
                    memory.bytes
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether so many bytes more are within the budget; unloads what may go for them, if that is enough.
    async fn fits(&self, for_model: Option<&ModelName>, needed: u64) -> bool {
        let versions = self.versions();
        let now = Instant::now();
        let resident = |loaded: &Arc<Loaded>| {
            let movable = Some(&loaded.manifest().model) != for_model && loaded.may_go(now);
            Resident {
                bytes: loaded.measure(),
                used: loaded.used(),
                movable,
            }
        };
        let residents: Vec<_> = versions.iter().map(resident).collect();
        let reserved = self.memory.reserved.load(Ordering::Relaxed);
        let needed = needed.saturating_add(reserved);
        let Some(gone) = victims(&residents, self.memory.bytes, needed) else {
            return false;
        };
        let mut all_went = true;
        for index in gone {
            let why = "its memory was needed for another model";
            match versions[index].unload(why) {
                Some(ended) => drop(tokio::time::timeout(PATIENCE, ended).await),
                // Somebody has asked for it just now.
                None => all_went = false,
            }
        }
        all_went
    }

    /// Looks after one version while it is loaded: unloads it when nobody has asked for it for so long as the
    /// configuration says, and others when they all have outgrown the budget.
    pub(super) async fn look_after(&self, loaded: &Loaded) -> Infallible {
        let idle = loaded.idle_limit;
        let measures = self.memory.is_limited();
        if idle.is_none() && !measures {
            return std::future::pending().await;
        }
        let mut warned = false;
        loop {
            let unused = loaded.used().elapsed();
            let left = idle.map(|limit| limit.saturating_sub(unused));
            if left == Some(Duration::ZERO) && loaded.may_go(Instant::now()) {
                // What follows is the end of its worker, and of this.
                drop(loaded.unload("nobody has asked for it"));
            }
            let measure = measures.then_some(MEASURE_EVERY);
            let next = left.into_iter().chain(measure).min().unwrap_or_default();
            tokio::time::sleep(next.max(LOOK_EVERY)).await;
            if measures {
                let _turn = self.memory.turn.lock().await;
                let fits = self.fits(None, 0).await;
                if !fits && !warned {
                    warn!(
                        budget = self.memory.bytes,
                        "workers take more memory than memory_budget_bytes, and none of them may be unloaded"
                    );
                }
                warned = !fits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: u64 = 100;

    /// Loads and unloads of versions with known sizes.
    #[derive(Debug, Clone)]
    enum Step {
        Load(usize),
        Use(usize),
        Idle(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..3, 0..8usize).prop_map(|(kind, version)| match kind {
            0 => Step::Load(version),
            1 => Step::Use(version),
            _ => Step::Idle(version),
        });
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded_and_what_is_pinned_stays(
            sizes in prop::collection::vec(1..60u64, 8),
            pinned in prop::collection::vec(any::<bool>(), 8),
            steps in steps(),
        ) {
            let start = Instant::now();
            let mut loaded: Vec<(usize, Instant)> = Vec::new();
            for (time, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(time as u64);
                match step {
                    Step::Load(version) if loaded.iter().all(|(v, _)| *v != version) => {
                        let resident = |&(v, used): &(usize, Instant)| Resident {
                            bytes: sizes[v],
                            used,
                            movable: !pinned[v],
                        };
                        let residents: Vec<_> = loaded.iter().map(resident).collect();
                        let Some(gone) = victims(&residents, BUDGET, sizes[version]) else {
                            // Only what may not go is in the way.
                            let fixed = loaded.iter().filter(|(v, _)| pinned[*v]);
                            let fixed: u64 = fixed.map(|(v, _)| sizes[*v]).sum();
                            prop_assert!(fixed + sizes[version] > BUDGET);
                            continue;
                        };
                        let newest_gone = gone.iter().map(|&index| residents[index].used).max();
                        for (index, resident) in residents.iter().enumerate() {
                            let stays = !gone.contains(&index);
                            prop_assert!(stays || resident.movable);
                            if stays && resident.movable {
                                prop_assert!(newest_gone.is_none_or(|gone| gone <= resident.used));
                            }
                        }
                        let mut index = 0;
                        loaded.retain(|_| {
                            index += 1;
                            !gone.contains(&(index - 1))
                        });
                        loaded.push((version, now));
                    }
                    Step::Load(version) | Step::Use(version) => {
                        loaded.iter_mut().filter(|(v, _)| *v == version).for_each(|l| l.1 = now);
                    }
                    Step::Idle(version) => loaded.retain(|(v, _)| *v != version),
                }
                let total: u64 = loaded.iter().map(|(v, _)| sizes[*v]).sum();
                prop_assert!(total <= BUDGET, "{} bytes", total);
            }
        }
    }

    #[test]
    fn nobody_goes_where_there_is_room_and_nobody_in_vain() {
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let resident = |bytes, used, movable| Resident {
            bytes,
            used,
            movable,
        };
        let both = [resident(40, at(2), true), resident(40, at(1), true)];
        assert_eq!(victims(&both, BUDGET, 20), Some(vec![]));
        assert_eq!(victims(&both, BUDGET, 21), Some(vec![1]));
        assert_eq!(victims(&both, BUDGET, 100), Some(vec![1, 0]));
        assert_eq!(victims(&both, BUDGET, 101), None);
        let pinned = [resident(40, at(1), false), resident(40, at(2), true)];
        assert_eq!(victims(&pinned, BUDGET, 60), Some(vec![1]));
        assert_eq!(victims(&pinned, BUDGET, 61), None);
    }

    #[test]
    fn what_is_set_aside_is_given_back() {
        let budget = MemoryBudget::new(BUDGET);
        let mut room = Room::new(30, &budget.reserved);
        let other = Room::new(5, &budget.reserved);
        room.becomes(10);
        assert_eq!(budget.reserved.load(Ordering::Relaxed), 15);
        drop((room, other));
        assert_eq!(budget.reserved.load(Ordering::Relaxed), 0);
    }
}
