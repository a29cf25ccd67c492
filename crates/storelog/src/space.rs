//! Space of the data area: which units are in use, which freed ones may be used again and when,
//! and the pages that the index lives in.
//!
//! Two rules keep replay exact (docs/decisions.md, "Reusing space"):
//! * A unit is used again only when the record that freed it is durable, and when every disk
//!   operation that began before the free has ended.
//! * Since the installed checkpoint replays everything behind its position, such a unit is used
//!   again only by writes that are themselves in the log (fresh extents), until a checkpoint
//!   begins that starts behind the free.

use crate::format::index::{PageRun, UNITS_PER_PAGE};
use crate::fragment::FreedUnit;
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
    backed: u32,
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
    /// Blocks of recycled units that the host holds space for, at most.
    recycled_blocks: u64,
    /// Units without pages, with all their space, so that pages can be written when the host has
    /// none left; and those whose space is being asked for.
    spare: BTreeSet<u32>,
    preparing: BTreeSet<u32>,
    /// Spare units there should be.
    spare_wanted: usize,
    /// Units of pages that have all their space; they were spare.
    whole: BTreeSet<u32>,
    /// Units that hold pages, with the pages in use.
    page_units: BTreeMap<u32, u16>,
    /// Those of `page_units` with a free page.
    page_units_open: BTreeSet<u32>,
    /// Pages of units that are claimed whole for one long run.
    long_run_pages: u64,
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
            recycled_blocks: 0,
            spare: BTreeSet::new(),
            preparing: BTreeSet::new(),
            spare_wanted: spare_pages.div_ceil(pages_per_unit) as usize,
            whole: BTreeSet::new(),
            page_units: BTreeMap::new(),
            page_units_open: BTreeSet::new(),
            long_run_pages: 0,
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

    /// Blocks of recycled units that the host holds space for, at most.
    #[must_use]
    pub const fn recycled_blocks(&self) -> u64 {
        self.recycled_blocks
    }

    /// Pages held for the index, spare ones included.
    #[must_use]
    pub fn index_pages(&self) -> u64 {
        let units = self.page_units.len() + self.spare.len() + self.preparing.len();
        units as u64 * u64::from(self.pages_per_unit) + self.long_run_pages
    }

    /// Pages that can be written though the host has no space left.
    #[must_use]
    pub fn pages_at_hand(&self) -> u64 {
        let open = self.page_units_open.intersection(&self.whole);
        let open: u32 =
            open.map(|unit| self.pages_per_unit - self.page_units[unit].count_ones()).sum();
        u64::from(open) + self.spare.len() as u64 * u64::from(self.pages_per_unit)
    }

    /// Spare units that are missing.
    #[must_use]
    pub fn spare_missing(&self) -> usize {
        self.spare_wanted.saturating_sub(self.spare.len() + self.preparing.len())
    }

    /// Spare units, those being prepared included.
    pub fn spares(&self) -> impl Iterator<Item = u32> {
        self.spare.iter().chain(&self.preparing).copied()
    }

    /// A claimed unit, or one taken from the recycled ones, is to become spare: its space is being
    /// asked for.
    pub fn prepare_spare(&mut self, unit: u32) {
        assert!(self.is_used(unit), "a spare unit is claimed first");
        self.preparing.insert(unit);
    }

    /// The host has given its space, or has none.
    pub fn spare_prepared(&mut self, unit: u32, given: bool) {
        self.preparing.remove(&unit);
        if given {
            self.spare.insert(unit);
        } else {
            self.recycle(FreedUnit { unit, backed: self.pages_per_unit }, 0, 0);
        }
    }

    /// Units that hold short runs of pages.
    pub fn units_of_pages(&self) -> impl Iterator<Item = u32> {
        self.page_units.keys().copied()
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
        let popped = self.recycled.pop_front()?;
        self.recycled_blocks -= u64::from(popped.backed);
        Some(popped.unit)
    }

    /// A durable record of batch `seq` freed a unit; `ticket` is the next one to be given out.
    pub fn recycle(&mut self, freed: FreedUnit, seq: u64, ticket: u64) {
        assert!(self.is_used(freed.unit), "unit {} was freed twice", freed.unit);
        self.dirty.insert(freed.unit / UNITS_PER_PAGE);
        let FreedUnit { unit, backed } = freed;
        self.recycled_blocks += u64::from(backed);
        self.recycled.push_back(Recycled { unit, backed, freed_by: seq, ticket });
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
                // How much of it the host holds is not known. Counted as nothing, it promises
                // nothing when it is given back.
                self.recycle(FreedUnit { unit, backed: 0 }, 0, 0);
            }
        }
    }

    /// Recycled units, for the root.
    pub fn recycled(&self) -> impl Iterator<Item = u32> {
        self.recycled.iter().map(|r| r.unit)
    }

    // ---- pages of the index -------------------------------------------------------------------

    /// Contiguous pages for the index.
    pub fn claim_pages(&mut self, count: u32) -> Option<PageRun> {
        let per_unit = self.pages_per_unit;
        let length = u16::try_from(count).ok()?;
        if count > per_unit {
            let units = count.div_ceil(per_unit);
            let unit = self.find_long(units)?;
            self.claim_run(unit, units);
            self.long_run_pages += u64::from(units * per_unit);
            return Some(PageRun { page: u64::from(unit) * u64::from(per_unit), count: length });
        }
        let fits = |mask: u16| (0..=per_unit - count).find(|at| mask & run_mask(*at, count) == 0);
        // A few tries keep this quick; a new unit is cheap.
        let found = self
            .page_units_open
            .iter()
            .take(8)
            .find_map(|unit| fits(self.page_units[unit]).map(|at| (*unit, at)));
        let (unit, at) = match found {
            Some(found) => found,
            None => match self.spare.pop_first() {
                Some(unit) => {
                    self.whole.insert(unit);
                    self.dirty.insert(unit / UNITS_PER_PAGE);
                    (unit, 0)
                }
                None => (self.claim(1)?.unit, 0),
            },
        };
        let mask = self.page_units.entry(unit).or_default();
        *mask |= run_mask(at, count);
        if *mask == run_mask(0, per_unit) {
            self.page_units_open.remove(&unit);
        } else {
            self.page_units_open.insert(unit);
        }
        Some(PageRun { page: u64::from(unit) * u64::from(per_unit) + u64::from(at), count: length })
    }

    fn find_long(&self, units: u32) -> Option<u32> {
        let mut from = 0;
        loop {
            let (unit, count) = self.find_free_from(from, self.units_max, units)?;
            if count == units {
                return Some(unit);
            }
            from = unit + count + 1;
        }
    }

    /// While opening: the index on disk uses these pages.
    pub fn adopt_pages(&mut self, run: PageRun) {
        let per_unit = u64::from(self.pages_per_unit);
        if u64::from(run.count) > per_unit {
            let units = u64::from(run.count).div_ceil(per_unit);
            self.long_run_pages += units * per_unit;
            return;
        }
        let unit = (run.page / per_unit) as u32;
        let mask = self.page_units.entry(unit).or_default();
        *mask |= run_mask((run.page % per_unit) as u32, u32::from(run.count));
        if *mask == run_mask(0, per_unit as u32) {
            self.page_units_open.remove(&unit);
        } else {
            self.page_units_open.insert(unit);
        }
    }

    /// Pages are free again. Gives the units that hold no page any more, still in use; those that
    /// are wanted as spare ones stay.
    pub fn free_pages(&mut self, run: PageRun) -> Vec<u32> {
        let per_unit = u64::from(self.pages_per_unit);
        let first = (run.page / per_unit) as u32;
        if u64::from(run.count) > per_unit {
            let units = u64::from(run.count).div_ceil(per_unit);
            self.long_run_pages -= units * per_unit;
            return (first..first + units as u32).collect();
        }
        let mask = self.page_units.get_mut(&first).expect("freed pages lie in a unit of pages");
        let freed = run_mask((run.page % per_unit) as u32, u32::from(run.count));
        assert!(*mask & freed == freed, "pages were freed twice");
        *mask &= !freed;
        if *mask == 0 {
            self.page_units.remove(&first);
            self.page_units_open.remove(&first);
            if self.whole.remove(&first) && self.spare_missing() > 0 {
                self.spare.insert(first);
                return Vec::new();
            }
            vec![first]
        } else {
            self.page_units_open.insert(first);
            Vec::new()
        }
    }

    /// Units that will hold no page once `runs` are freed.
    #[must_use]
    pub fn units_emptied_by(&self, runs: &[PageRun]) -> Vec<u32> {
        let per_unit = u64::from(self.pages_per_unit);
        let mut masks: BTreeMap<u32, u16> = BTreeMap::new();
        let mut emptied = Vec::new();
        for run in runs {
            let first = (run.page / per_unit) as u32;
            if u64::from(run.count) > per_unit {
                emptied.extend(first..first + u64::from(run.count).div_ceil(per_unit) as u32);
            } else {
                let freed = run_mask((run.page % per_unit) as u32, u32::from(run.count));
                *masks.entry(first).or_insert_with(|| self.page_units[&first]) &= !freed;
            }
        }
        emptied.extend(masks.into_iter().filter(|(_, mask)| *mask == 0).map(|(unit, _)| unit));
        emptied
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

const fn run_mask(at: u32, count: u32) -> u16 {
    (((1u32 << count) - 1) << at) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freed(unit: u32) -> FreedUnit {
        FreedUnit { unit, backed: 4 }
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
    fn pages_share_units_and_empty_units_are_found() {
        let mut space = Space::new(1000, 4, 1, 0);
        let a = space.claim_pages(3).expect("space");
        let b = space.claim_pages(1).expect("space");
        let c = space.claim_pages(2).expect("space");
        let long = space.claim_pages(9).expect("space");
        assert_eq!((a.page, b.page, c.page, long.page), (4, 7, 8, 12));
        assert_eq!(space.index_pages(), 4 + 4 + 12);
        assert_eq!(space.units_emptied_by(&[a, long]), [3, 4, 5]);
        assert_eq!(space.units_emptied_by(&[a, b]), [1]);
        assert_eq!(space.free_pages(a), []);
        assert_eq!(space.claim_pages(2).map(|run| run.page), Some(4));
        assert_eq!(space.free_pages(c), [2]);
        assert_eq!(space.free_pages(long), [3, 4, 5]);
    }

    #[test]
    fn spare_units_serve_pages_and_come_back() {
        let mut space = Space::new(100, 4, 1, 4);
        let unit = space.claim(1).expect("space").unit;
        space.prepare_spare(unit);
        assert_eq!((space.pages_at_hand(), space.spare_missing(), space.index_pages()), (0, 0, 4));
        space.spare_prepared(unit, true);
        assert_eq!(space.pages_at_hand(), 4);
        let run = space.claim_pages(3).expect("space");
        assert_eq!((run.page, space.pages_at_hand(), space.spare_missing()), (4, 1, 1));
        assert_eq!(space.free_pages(run), [], "it is spare again");
        assert_eq!((space.pages_at_hand(), space.spare_missing()), (4, 0));
        // One more than wanted is given away.
        let run = space.claim_pages(4).expect("space");
        let other = space.claim(1).expect("space").unit;
        space.prepare_spare(other);
        assert_eq!(space.free_pages(run), [unit]);
        space.spare_prepared(other, false);
        assert_eq!(
            (space.recycled().collect::<Vec<_>>(), space.recycled_blocks()),
            (vec![other], 4)
        );
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
