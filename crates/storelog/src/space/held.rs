//! Which blocks the host holds of units that are nobody's home: a ledger that never says more than
//! is true.
//!
//! What the host has left is not asked before each write; it is computed from its last report and
//! from what changed in the books since. A block written in the books that the host does not hold
//! would come back in that sum as space that never was. So a block is entered when the operation
//! that gave it its space has ended well, and what may have its space or not stays out.

use crate::fragment::BlockMask;
use std::collections::BTreeMap;

/// See the module.
#[derive(Default)]
pub struct Held {
    units: BTreeMap<u32, BlockMask>,
    blocks: u64,
}

impl Held {
    /// Blocks in all.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Those of a unit.
    #[must_use]
    pub fn of(&self, unit: u32) -> BlockMask {
        self.units.get(&unit).copied().unwrap_or(0)
    }

    /// The host holds these blocks of a unit too. Gives how many of them were not known of.
    pub fn add(&mut self, unit: u32, mask: BlockMask) -> u64 {
        let new = u64::from((mask & !self.of(unit)).count_ones());
        if new > 0 {
            *self.units.entry(unit).or_default() |= mask;
            self.blocks += new;
        }
        new
    }

    /// The unit is somebody else's business, or holds nothing any more. Gives what it held.
    pub fn take(&mut self, unit: u32) -> BlockMask {
        let mask = self.units.remove(&unit).unwrap_or(0);
        self.blocks -= u64::from(mask.count_ones());
        mask
    }

    /// Units with any.
    pub fn units(&self) -> impl Iterator<Item = u32> {
        self.units.keys().copied()
    }
}
