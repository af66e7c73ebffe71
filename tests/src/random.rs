//! Randomness that can be had again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// splitmix64. `IMDS_TEST_SEED` sets the seed, which failures print.
pub struct Random {
    seed: u64,
    state: AtomicU64,
}

impl Random {
    /// The same every time, for tests whose outcome depends on nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self::from_seed(20_240_411)
    }

    /// Another one every time, for tests that try what cannot be tried in full.
    #[must_use]
    pub fn by_time() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::from_seed(since.map_or(0, |since| since.as_secs()))
    }

    fn from_seed(otherwise: u64) -> Self {
        let seed = std::env::var("IMDS_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise);
        Self::of(seed)
    }

    /// That of one seed, whatever the environment says.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            state: seed.into(),
        }
    }

    /// What it began with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let mut z = self
            .state
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below a bound.
    pub fn below(&self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// These, in an order of chance.
    pub fn shuffled<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let mut order = all.to_vec();
        for at in (1..order.len()).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }

    /// The next number from 0 up to 1.
    pub fn fraction(&self) -> f64 {
        self.below(10_000) as f64 / 10_000.0
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
