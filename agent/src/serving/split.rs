//! Which version answers a request that names none, where a model's routing splits requests by weight.
//!
//! Weighted rendezvous hashing: every version draws a waiting time from the request's key and its own name, the
//! shorter the more weight it has, and the shortest wins. So equal keys go to the same version on every device, the
//! shares are those of the weights, and when weights change or a version goes, a key moves only to a version that
//! gained or from one that lost. A request without a key gets a random one.

use std::collections::BTreeMap;

use edgeward_models::{Digest, Version};

/// Requests with equal keys go to the same version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StickyKey(u64);

impl StickyKey {
    pub fn of(text: &[u8]) -> Self {
        Self(hash(text))
    }

    /// For one request alone.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// The versions among which requests are split.
#[derive(Debug, Default)]
pub(super) struct Split {
    shares: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    version: Version,
    weight: f64,
    /// Stands for the version in every draw.
    seed: u64,
}

impl Split {
    pub(super) fn new(weights: &BTreeMap<Version, u32>) -> Self {
        let weighty = weights.iter().filter(|(_, weight)| **weight > 0);
        let shares = weighty.map(|(version, weight)| Share {
            version: version.clone(),
            weight: f64::from(*weight),
            seed: hash(version.to_string().as_bytes()),
        });
        Self {
            shares: shares.collect(),
        }
    }

    /// What `find` finds for the version that the key means, of those that it finds at all.
    pub(super) fn choose<T>(
        &self,
        key: StickyKey,
        find: impl Fn(&Version) -> Option<T>,
    ) -> Option<T> {
        let found = self.shares.iter().filter_map(|share| {
            let wait = waiting_time(key, share.seed) / share.weight;
            Some((wait, find(&share.version)?))
        });
        let first = found.min_by(|(a, _), (b, _)| a.total_cmp(b));
        first.map(|(_, found)| found)
    }
}

/// Exponentially distributed over keys: of several, divided by weights, each is the shortest in its weight's share.
fn waiting_time(key: StickyKey, seed: u64) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    // Within 0 and 1, and neither.
    let even = ((mixed(key.0 ^ seed) >> 11) as f64 + 0.5) * UNIT;
    -even.ln()
}

/// The finalizer of SplitMix64: each bit of the result hangs on every bit of the input.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The first eight bytes of SHA-256.
fn hash(text: &[u8]) -> u64 {
    let digest = Digest::of(text);
    u64::from_be_bytes(std::array::from_fn(|i| digest.as_bytes()[i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn weights(weights: &[u32]) -> BTreeMap<Version, u32> {
        let version = |(n, &weight): (usize, &u32)| (Version::new(n as u64, 0, 0), weight);
        weights.iter().enumerate().map(version).collect()
    }

    fn choice(split: &Split, key: StickyKey) -> Option<usize> {
        split.choose(key, |version| Some(version.semver().major as usize))
    }

    /// Counts must be within five standard deviations of the binomial distribution: one in two million is not.
    fn in_bound(split: &[u32], keys: impl Iterator<Item = StickyKey>) {
        let (by, total) = (Split::new(&weights(split)), split.iter().sum::<u32>());
        let mut counts = vec![0u32; split.len()];
        for key in keys {
            counts[choice(&by, key).expect("a version")] += 1;
        }
        let n = f64::from(counts.iter().sum::<u32>());
        for (count, weight) in counts.iter().zip(split) {
            let share = f64::from(*weight) / f64::from(total);
            let bound = 5.0 * (n * share * (1.0 - share)).sqrt();
            let away = (f64::from(*count) - n * share).abs();
            assert!(away <= bound, "{count} of {n} for {weight} of {total}");
        }
    }

    #[test]
    fn shares_are_those_of_the_weights_with_keys_and_without() {
        for split in [&[90, 10][..], &[1, 1], &[1, 999], &[5, 0, 20, 75]] {
            let mut random = StdRng::seed_from_u64(7);
            in_bound(split, (0..50_000).map(|_| StickyKey(random.random())));
            let named = (0..50_000).map(|n| StickyKey::of(format!("patient-{n}").as_bytes()));
            in_bound(split, named);
        }
    }

    #[test]
    fn what_has_no_weight_or_is_not_there_is_not_chosen() {
        let split = Split::new(&weights(&[0, 1, 99]));
        for n in 0..1000u32 {
            let key = StickyKey::of(&n.to_be_bytes());
            assert_ne!(choice(&split, key), Some(0));
            let found = split.choose(key, |version| (version.semver().major == 1).then_some(()));
            assert!(found.is_some(), "the other one takes its place");
        }
        let none = Split::new(&weights(&[0, 0]));
        assert_eq!(choice(&none, StickyKey::of(b"x")), None);
    }

    proptest! {
        #[test]
        fn a_key_moves_only_to_or_from_the_version_whose_weight_changed(
            mut split in proptest::collection::vec(0u32..1000, 1..8),
            which in any::<proptest::sample::Index>(),
            weight in 0u32..1000,
            keys in proptest::collection::vec(any::<u64>(), 1..100),
        ) {
            let which = which.index(split.len());
            let before = Split::new(&weights(&split));
            let grows = weight > split[which];
            split[which] = weight;
            let after = Split::new(&weights(&split));
            for key in keys.into_iter().map(StickyKey) {
                let (was, is) = (choice(&before, key), choice(&after, key));
                if was != is {
                    prop_assert_eq!(if grows { is } else { was }, Some(which));
                }
            }
        }

        #[test]
        fn the_same_text_is_the_same_key_wherever_it_is_asked(text in ".{0,40}") {
            let split = Split::new(&weights(&[3, 4, 5]));
            let key = || StickyKey::of(text.as_bytes());
            prop_assert_eq!(choice(&split, key()), choice(&split, key()));
        }
    }
}
