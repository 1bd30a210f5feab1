//! The one source of randomness: seeded by the driver, so that a run can be replayed.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// A cryptographic generator (ChaCha20) seeded with 32 octets by the driver.
pub struct Random(ChaCha20Rng);

impl Random {
    /// A generator whose output depends on `seed` alone; the daemon draws it from the operating
    /// system, a test chooses it.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Random(ChaCha20Rng::from_seed(seed))
    }

    /// Overwrites all of `out` with random octets.
    pub fn fill(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
    }

    /// `N` random octets.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A random number, uniform over all of `u32`.
    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    /// A random number, uniform over all of `u64`.
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random")
    }
}
