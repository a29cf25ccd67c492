//! A small seeded random source, so that a run is named by one number.

/// SplitMix64: every seed is good, and it is four lines.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence named by `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed nobody has used: from `SHEEPDOG_TEST_SEED` if that is set, so that a failed run can
    /// be started with the same choices, otherwise from the kernel.
    ///
    /// # Panics
    /// When the variable is no number.
    #[must_use]
    pub fn fresh_seed() -> u64 {
        if let Ok(text) = std::env::var("SHEEPDOG_TEST_SEED") {
            return text.parse().expect("SHEEPDOG_TEST_SEED is a number");
        }
        // Short enough to be typed again.
        Self::from_kernel() % 1_000_000_007
    }

    /// A number nobody can foresee.
    ///
    /// # Panics
    /// When the kernel has none.
    #[must_use]
    pub fn from_kernel() -> u64 {
        let mut bytes = [0; 8];
        let urandom = std::fs::File::open("/dev/urandom");
        urandom
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
            .expect("/dev/urandom");
        u64::from_le_bytes(bytes)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// True in `percent` of 100 cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Fills with bytes that do not compress.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.next_u64().to_le_bytes()[..piece.len()]);
        }
    }
}
