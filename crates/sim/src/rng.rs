//! The one source of chance: a small seeded generator (splitmix64), and the shapes of delays.
//!
//! Each part of a run draws from a stream of its own, forked by a label: a draw more in one part
//! leaves the others as they were, which is what makes a shrunk run resemble the one that failed.

/// A stream of numbers named by one seed.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    state: u64,
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of a seed; every seed is good.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// The stream of that label. Depends on this one's seed and not on what was drawn from it.
    #[must_use]
    pub fn fork(&self, label: &str) -> Self {
        let hashed = label.bytes().fold(mix(self.seed ^ STEP), |hash, byte| {
            mix(hash.wrapping_add(STEP) ^ u64::from(byte))
        });
        Self::new(hashed)
    }

    /// As [`Rng::fork`], for one of several of a kind.
    #[must_use]
    pub fn fork_nth(&self, label: &str, number: u64) -> Self {
        let family = self.fork(label);
        Self::new(mix(family.seed ^ mix(number.wrapping_add(STEP))))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// An index into something of that length, which must not be 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True that often, in hundredths.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// True that often, in thousandths. Draws nothing for 0, so that a fault that is switched off
    /// does not move the stream.
    pub fn rare(&mut self, thousandths: u64) -> bool {
        thousandths > 0 && self.below(1000) < thousandths
    }

    /// One of them; the slice must not be empty.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// Any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// How long something takes, in nanoseconds: mostly around `typical`, now and then much longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delay {
    /// Never less.
    pub least: u64,
    /// What comes on top: evenly from nothing to twice this.
    pub typical: u64,
    /// How often it takes much longer, in thousandths.
    pub rare: u64,
    /// Then up to this much comes on top instead.
    pub longest: u64,
}

impl Delay {
    /// Always the same.
    #[must_use]
    pub const fn exactly(nanos: u64) -> Self {
        Self { least: nanos, typical: 0, rare: 0, longest: 0 }
    }

    /// One of them.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        let most = if rng.rare(self.rare) { self.longest } else { self.typical.saturating_mul(2) };
        self.least.saturating_add(if most == 0 { 0 } else { rng.below(most) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_does_not_depend_on_draws_and_differs_by_label() {
        let mut rng = Rng::new(7);
        let early = rng.fork("net").next_u64();
        rng.next_u64();
        assert_eq!(early, rng.fork("net").next_u64());
        assert_ne!(early, rng.fork("ten").next_u64());
        assert_ne!(rng.fork_nth("disk", 0).next_u64(), rng.fork_nth("disk", 1).next_u64());
        assert_ne!(early, Rng::new(8).fork("net").next_u64());
    }

    #[test]
    fn a_delay_stays_within_its_limits() {
        let delay = Delay { least: 10, typical: 50, rare: 100, longest: 1000 };
        let mut rng = Rng::new(1);
        let drawn: Vec<u64> = (0..2000).map(|_| delay.draw(&mut rng)).collect();
        assert!(drawn.iter().all(|nanos| (10..1010).contains(nanos)));
        let long = drawn.iter().filter(|nanos| **nanos >= 110).count();
        assert!((100..300).contains(&long), "{long} of 2000 took long");
        assert_eq!(Delay::exactly(5).draw(&mut rng), 5);
    }
}
