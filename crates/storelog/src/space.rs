//! Space of the data area: which units are in use, which freed ones may be used again and when,
//! and the pages that the index lives in.
//!
//! Two rules keep replay exact (docs/decisions.md, "Reusing space"):
//! * A unit is used again only when the record that freed it is durable, and when every disk
//!   operation that began before the free has ended.
//! * Since the installed checkpoint replays everything behind its position, such a unit is used
//!   again only by writes that are themselves in the log (fresh extents), until a checkpoint
//!   begins that starts behind the free.
//!
//! `pages` says where the index lives, `held` what the host holds of all units but homes.

mod held;
mod pages;

use crate::format::index::UNITS_PER_PAGE;
use crate::fragment::{BlockMask, FreedUnit};
use held::Held;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Consecutive units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitRun {
    /// First.
    pub unit: u32,
    /// How many.
    pub count: u32,
}

#[derive(Clone, Copy, Debug)]
struct Recycled {
    unit: u32,
    freed_by: u64,
    ticket: u64,
}

/// See the module.
pub struct Space {
    /// A set bit is a unit in use, recycled ones included.
    words: Vec<u64>,
    units_max: u32,
    pages_per_unit: u32,
    /// Where the next search begins.
    cursor: u32,
    in_use: u32,
    dirty: BTreeSet<u32>,
    recycled: VecDeque<Recycled>,
    /// What the host holds of units in use that are neither homes nor the index's: recycled ones,
    /// those on their way back to the host, those claimed by writes that are not applied yet.
    loose: Held,
    /// What it holds of units of pages and spare ones.
    index: Held,
    /// Pages claimed that the host may still be asked for.
    pages_asked: u64,
    /// Units without pages, with all their space, so that pages can be written when the host has
    /// none left; and those whose space is being asked for.
    spare: BTreeSet<u32>,
    preparing: BTreeSet<u32>,
    /// Spare units there should be.
    spare_wanted: usize,
    /// Units that hold pages, with the pages in use.
    page_units: BTreeMap<u32, u16>,
    /// Those of `page_units` with a free page.
    page_units_open: BTreeSet<u32>,
    /// Those of them that the host holds whole, and how many pages are free in all of these.
    page_units_ready: BTreeSet<u32>,
    pages_ready: u64,
}

impl Space {
    /// Nothing in use but `reserved` units at the start.
    #[must_use]
    pub fn new(units_max: u32, pages_per_unit: u32, reserved: u32, spare_pages: u32) -> Self {
        let mut space = Self {
            words: Vec::new(),
            units_max,
            pages_per_unit,
            cursor: reserved,
            in_use: 0,
            dirty: BTreeSet::new(),
            recycled: VecDeque::new(),
            loose: Held::default(),
            index: Held::default(),
            pages_asked: 0,
            spare: BTreeSet::new(),
            preparing: BTreeSet::new(),
            spare_wanted: spare_pages.div_ceil(pages_per_unit) as usize,
            page_units: BTreeMap::new(),
            page_units_open: BTreeSet::new(),
            page_units_ready: BTreeSet::new(),
            pages_ready: 0,
        };
        for unit in 0..reserved {
            space.set(unit, true);
        }
        space
    }

    /// Units in use, recycled ones and those of pages included.
    #[must_use]
    pub const fn units_in_use(&self) -> u32 {
        self.in_use
    }

    /// Units that no chunk uses but the host still holds space for.
    #[must_use]
    pub fn recycled_units(&self) -> usize {
        self.recycled.len()
    }

    /// Blocks that the host holds for nobody, and will get back or see used again.
    #[must_use]
    pub const fn loose_blocks(&self) -> u64 {
        self.loose.blocks()
    }

    /// Those of one unit.
    #[must_use]
    pub fn loose_of(&self, unit: u32) -> BlockMask {
        self.loose.of(unit)
    }

    /// The host holds these blocks of a unit that is nobody's home. Gives how many of them were
    /// not known of.
    pub fn given(&mut self, unit: u32, mask: BlockMask) -> u64 {
        assert!(self.is_used(unit), "unit {unit} got space although it is free");
        self.loose.add(unit, mask)
    }

    /// A claimed unit is a chunk's home now. Gives the blocks of it that the host holds.
    pub fn becomes_home(&mut self, unit: u32) -> BlockMask {
        self.loose.take(unit)
    }

    /// All units that the ledger knows anything of.
    pub fn ledger(&self) -> impl Iterator<Item = u32> {
        self.loose.units().chain(self.index.units())
    }

    /// Whether a unit is in use.
    #[must_use]
    pub fn is_used(&self, unit: u32) -> bool {
        self.words.get(unit as usize / 64).is_some_and(|word| word & (1 << (unit % 64)) != 0)
    }

    fn set(&mut self, unit: u32, used: bool) {
        let index = unit as usize / 64;
        if index >= self.words.len() {
            // Whole allocation pages, so that each page on disk is full.
            let pages = unit / UNITS_PER_PAGE + 1;
            self.words.resize((pages * UNITS_PER_PAGE / 64) as usize, 0);
        }
        let bit = 1u64 << (unit % 64);
        let was = self.words[index] & bit != 0;
        if was != used {
            self.words[index] ^= bit;
            self.in_use = if used { self.in_use + 1 } else { self.in_use - 1 };
        }
        self.dirty.insert(unit / UNITS_PER_PAGE);
    }

    /// First run of free units at or after the cursor, at most `want` long.
    fn find_free(&self, want: u32) -> Option<(u32, u32)> {
        let start = self.cursor;
        self.find_free_from(start, self.units_max, want)
            .or_else(|| self.find_free_from(0, start, want))
    }

    fn find_free_from(&self, from: u32, to: u32, want: u32) -> Option<(u32, u32)> {
        let mut unit = from;
        while unit < to {
            let Some(word) = self.words.get(unit as usize / 64) else {
                break;
            };
            if *word == u64::MAX {
                unit = (unit / 64 + 1) * 64;
            } else if self.is_used(unit) {
                unit += 1;
            } else {
                break;
            }
        }
        if unit >= to {
            return None;
        }
        let mut count = 1;
        while count < want && unit + count < to && !self.is_used(unit + count) {
            count += 1;
        }
        Some((unit, count))
    }

    /// Takes free units from `from` on, at most `max` and never the most of them, as if they were in
    /// use, and says where to go
    /// on; they are free again with [`Space::release`].
    pub fn take_free(&mut self, from: u32, max: u32) -> (Vec<u32>, Option<u32>) {
        let end = (self.words.len() as u32 * 64).min(self.units_max);
        // Writes and pages need some meanwhile.
        let max = max.min((self.units_max - self.in_use) / 4);
        let (mut at, mut taken) = (from, Vec::new());
        if max == 0 {
            return (taken, None);
        }
        while (taken.len() as u32) < max {
            let Some((unit, count)) = self.find_free_from(at, end, max - taken.len() as u32) else {
                return (taken, None);
            };
            let cursor = self.cursor;
            self.claim_run(unit, count);
            self.cursor = cursor;
            taken.extend(unit..unit + count);
            at = unit + count;
        }
        (taken, Some(at))
    }

    fn claim_run(&mut self, unit: u32, count: u32) {
        for claimed in unit..unit + count {
            assert!(!self.is_used(claimed), "unit {claimed} was claimed twice");
            self.set(claimed, true);
        }
        self.cursor = unit + count;
    }

    /// Free units for anything, at most `want` in a row; `None` when the address space is full.
    pub fn claim(&mut self, want: u32) -> Option<UnitRun> {
        let (unit, count) = self.find_free(want)?;
        self.claim_run(unit, count);
        Some(UnitRun { unit, count })
    }

    /// Units for a fresh extent: freed ones first when the rules allow it. `oldest_ticket` is
    /// that of the oldest disk operation in flight.
    pub fn claim_for_log(&mut self, want: u32, oldest_ticket: u64) -> Option<UnitRun> {
        let usable = |r: &Recycled| r.ticket <= oldest_ticket;
        let Some(first) = self.recycled.front().copied().filter(usable) else {
            return self.claim(want);
        };
        self.pop_recycled();
        self.dirty.insert(first.unit / UNITS_PER_PAGE);
        let mut count = 1;
        while count < want
            && let Some(next) = self.recycled.front()
            && usable(next)
            && next.unit == first.unit + count
        {
            self.dirty.insert(next.unit / UNITS_PER_PAGE);
            self.pop_recycled();
            count += 1;
        }
        Some(UnitRun { unit: first.unit, count })
    }

    fn pop_recycled(&mut self) -> Option<u32> {
        self.recycled.pop_front().map(|popped| popped.unit)
    }

    /// A durable record of batch `seq` freed a unit; `ticket` is the next one to be given out.
    pub fn recycle(&mut self, freed: FreedUnit, seq: u64, ticket: u64) {
        assert!(self.is_used(freed.unit), "unit {} was freed twice", freed.unit);
        self.dirty.insert(freed.unit / UNITS_PER_PAGE);
        let FreedUnit { unit, backed } = freed;
        self.loose.add(unit, backed);
        self.recycled.push_back(Recycled { unit, freed_by: seq, ticket });
    }

    /// Takes out the recycled units that a checkpoint starting behind batch `replayed` may give
    /// back to the host, but leaves the `keep` newest for fresh extents. They stay in use until
    /// [`Space::release`].
    pub fn take_recycled(&mut self, replayed: u64, keep: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        while self.recycled.len() > keep
            && self.recycled.front().is_some_and(|r| r.freed_by <= replayed)
        {
            taken.extend(self.pop_recycled());
        }
        taken.sort_unstable();
        taken
    }

    /// A unit is free for anything.
    pub fn release(&mut self, unit: u32) {
        assert!(self.is_used(unit), "unit {unit} was released twice");
        self.loose.take(unit);
        self.set(unit, false);
        self.cursor = self.cursor.min(unit);
    }

    /// Replay: a record says that the unit is (not) in use. Unlike elsewhere it may be so already.
    pub fn replay(&mut self, unit: u32, used: bool) {
        self.set(unit, used);
    }

    /// After replay: free units whose space the host still holds.
    pub fn adopt_unpunched(&mut self, units: impl IntoIterator<Item = u32>) {
        for unit in units {
            if !self.is_used(unit) {
                self.set(unit, true);
                // How much of it the host holds is not known.
                self.recycle(FreedUnit { unit, backed: 0 }, 0, 0);
            }
        }
    }

    /// Recycled units, for the root.
    pub fn recycled(&self) -> impl Iterator<Item = u32> {
        self.recycled.iter().map(|r| r.unit)
    }

    // ---- allocation pages ---------------------------------------------------------------------

    /// Allocation pages there are.
    #[must_use]
    pub fn allocation_pages(&self) -> usize {
        self.words.len() / (UNITS_PER_PAGE as usize / 64)
    }

    /// Allocation pages that differ from those on disk.
    #[must_use]
    pub const fn dirty_pages(&self) -> &BTreeSet<u32> {
        &self.dirty
    }

    /// They are on their way to the disk.
    pub fn take_dirty_pages(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.dirty)
    }

    /// They did not get there.
    pub fn mark_dirty(&mut self, pages: impl IntoIterator<Item = u32>) {
        self.dirty.extend(pages);
    }

    /// The words of one allocation page as the disk is to have them: `also_free` are not in use.
    #[must_use]
    pub fn page_words(&self, page: u32, also_free: &BTreeSet<u32>) -> Vec<u64> {
        let per_page = UNITS_PER_PAGE as usize / 64;
        let first_word = page as usize * per_page;
        let mut words = self.words[first_word..first_word + per_page].to_vec();
        let first = page * UNITS_PER_PAGE;
        for unit in also_free.range(first..first + UNITS_PER_PAGE) {
            let local = (unit - first) as usize;
            words[local / 64] &= !(1 << (local % 64));
        }
        words
    }

    /// While opening: the words of the next allocation page.
    pub fn adopt_words(&mut self, page: u32, words: &[u64]) {
        let per_page = UNITS_PER_PAGE as usize / 64;
        let first = page as usize * per_page;
        if self.words.len() < first + per_page {
            self.words.resize(first + per_page, 0);
        }
        self.words[first..first + per_page].copy_from_slice(words);
        self.in_use = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freed(unit: u32) -> FreedUnit {
        FreedUnit { unit, backed: 0b1111 }
    }

    #[test]
    fn freed_units_wait_for_readers() {
        let mut space = Space::new(1000, 16, 1, 0);
        assert_eq!(space.claim(4), Some(UnitRun { unit: 1, count: 4 }));
        space.recycle(freed(2), 7, 50);
        space.recycle(freed(3), 7, 50);
        let fresh = space.claim_for_log(1, 49).expect("space");
        assert_eq!(fresh.unit, 5, "a reader from before the free is still there");
        let reused = space.claim_for_log(8, 50).expect("space");
        assert_eq!(reused, UnitRun { unit: 2, count: 2 });
    }

    #[test]
    fn only_frees_before_the_checkpoint_return_to_the_host() {
        let mut space = Space::new(1000, 16, 1, 0);
        space.claim(6);
        space.recycle(freed(5), 1, 0);
        space.recycle(freed(1), 2, 0);
        space.recycle(freed(3), 3, 0);
        assert_eq!(space.take_recycled(2, 0), [1, 5]);
        assert!(space.is_used(1));
        space.release(1);
        space.release(5);
        assert_eq!(space.units_in_use(), 5);
        assert_eq!(space.claim(9), Some(UnitRun { unit: 1, count: 1 }));
    }

    #[test]
    fn free_units_are_taken_in_slices() {
        let mut space = Space::new(70, 4, 1, 0);
        space.claim(3);
        space.release(2);
        assert_eq!(space.take_free(0, 4), (vec![2, 4, 5, 6], Some(7)));
        let (taken, next) = space.take_free(7, 1000);
        assert_eq!((taken.len(), next), (15, Some(22)), "a quarter of what is free");
        let (taken, next) = space.take_free(69, 1000);
        assert_eq!((taken, next), (vec![69], None));
        space.release(4);
        assert_eq!(space.claim(1).map(|run| run.unit), Some(4));
    }

    #[test]
    fn the_address_space_has_an_end() {
        let mut space = Space::new(10, 4, 2, 0);
        assert_eq!(space.claim(100), Some(UnitRun { unit: 2, count: 8 }));
        assert_eq!(space.claim(1), None);
        assert_eq!(space.claim_pages(1), None);
        space.release(4);
        assert_eq!(space.claim(2), Some(UnitRun { unit: 4, count: 1 }));
    }
}
