//! Pages of the index: units shared by runs of pages, units of their own for long runs, and spare
//! units whose space is held ready.

use super::Space;
use crate::format::index::{PageRun, UNITS_PER_PAGE};
use crate::fragment::{BlockMask, FreedUnit};
use std::collections::{BTreeMap, BTreeSet};

/// Units with pages that the root lists: many more than the next checkpoint needs, few enough that
/// the root is not long.
const READY_LISTED_MAX: usize = 4096;

impl Space {
    /// Pages that the host holds for the index, spare ones included.
    #[must_use]
    pub const fn index_pages(&self) -> u64 {
        self.index.blocks()
    }

    /// Pages that the host does not hold yet and is being asked for.
    #[must_use]
    pub fn pages_asked(&self) -> u64 {
        let lacking = |unit| u64::from((self.whole_unit() & !self.index.of(unit)).count_ones());
        self.pages_asked + self.preparing.iter().map(|unit| lacking(*unit)).sum::<u64>()
    }

    const fn whole_unit(&self) -> BlockMask {
        run_mask(0, self.pages_per_unit)
    }

    /// The units of a run of pages, and the pages in them.
    fn parts(&self, run: PageRun) -> impl Iterator<Item = (u32, BlockMask)> + use<> {
        let per_unit = u64::from(self.pages_per_unit);
        let end = run.page + u64::from(run.count);
        (run.page / per_unit..end.div_ceil(per_unit)).map(move |unit| {
            let from = run.page.max(unit * per_unit) - unit * per_unit;
            let to = end.min((unit + 1) * per_unit) - unit * per_unit;
            (unit as u32, run_mask(from as u32, (to - from) as u32))
        })
    }

    /// Pages of a run that are not known to have space.
    fn lacking(&self, run: PageRun) -> u64 {
        let lacking =
            |(unit, mask): (u32, BlockMask)| u64::from((mask & !self.index.of(unit)).count_ones());
        self.parts(run).map(lacking).sum()
    }

    /// All pages of a claimed run were written.
    pub fn pages_written(&mut self, run: PageRun) {
        for (unit, mask) in self.parts(run) {
            self.pages_asked -= self.index.add(unit, mask);
            self.sort_in(unit);
        }
    }

    /// Pages that can be written though the host has no space left.
    #[must_use]
    pub fn pages_at_hand(&self) -> u64 {
        self.pages_ready + self.spare.len() as u64 * u64::from(self.pages_per_unit)
    }

    /// Whether the host holds all of a unit for the index.
    fn is_whole(&self, unit: u32) -> bool {
        self.index.of(unit) == self.whole_unit()
    }

    /// Changes which pages of a unit are in use.
    fn use_pages(&mut self, unit: u32, change: impl FnOnce(u16) -> u16) {
        let before = self.page_units.get(&unit).copied().unwrap_or(0);
        if self.page_units_ready.remove(&unit) {
            self.pages_ready -= u64::from((self.whole_unit() & !before).count_ones());
        }
        match change(before) {
            0 => self.page_units.remove(&unit),
            used => self.page_units.insert(unit, used),
        };
        self.sort_in(unit);
    }

    /// Whether a unit has free pages, and whether they have their space.
    fn sort_in(&mut self, unit: u32) {
        let used = self.page_units.get(&unit).copied();
        let free = used.map_or(0, |used| self.whole_unit() & !used);
        if free == 0 {
            self.page_units_open.remove(&unit);
            return;
        }
        self.page_units_open.insert(unit);
        if self.is_whole(unit) && self.page_units_ready.insert(unit) {
            self.pages_ready += u64::from(free.count_ones());
        }
    }

    /// Spare units that are missing.
    #[must_use]
    pub fn spare_missing(&self) -> usize {
        self.spare_wanted.saturating_sub(self.spare.len() + self.preparing.len())
    }

    /// For the root: units held whole that are spare or have free pages, or will once the pages of
    /// `replaced` are free.
    #[must_use]
    pub fn whole_units(&self, replaced: &[PageRun]) -> BTreeSet<u32> {
        let replaced = replaced.iter().flat_map(|run| self.parts(*run)).map(|(unit, _)| unit);
        let ready = self.page_units_ready.iter().take(READY_LISTED_MAX);
        let mut whole: BTreeSet<u32> = self.spare.iter().chain(ready).copied().collect();
        whole.extend(replaced.filter(|unit| self.is_whole(*unit)));
        whole
    }

    /// Spare units, those being prepared included.
    pub fn spares(&self) -> impl Iterator<Item = u32> {
        self.spare.iter().chain(&self.preparing).copied()
    }

    /// Units whose space is to be asked for.
    #[must_use]
    pub const fn preparing(&self) -> &BTreeSet<u32> {
        &self.preparing
    }

    /// A claimed unit, or one taken from the recycled ones, is to become spare: its space is being
    /// asked for.
    pub fn prepare_spare(&mut self, unit: u32) {
        assert!(self.is_used(unit), "a spare unit is claimed first");
        let held = self.loose.take(unit);
        self.index.add(unit, held);
        self.preparing.insert(unit);
    }

    /// The host has given its space, or has none.
    pub fn spare_prepared(&mut self, unit: u32, given: bool) {
        self.preparing.remove(&unit);
        if given {
            self.index.add(unit, self.whole_unit());
            self.spare.insert(unit);
        } else {
            let backed = self.index.take(unit);
            self.recycle(FreedUnit { unit, backed }, 0, 0);
        }
    }

    /// Units that hold short runs of pages.
    pub fn units_of_pages(&self) -> impl Iterator<Item = u32> {
        self.page_units.keys().copied()
    }

    /// Contiguous pages for the index, to be written whole: [`Space::pages_written`].
    pub fn claim_pages(&mut self, count: u32) -> Option<PageRun> {
        let run = self.find_pages(count)?;
        self.pages_asked += self.lacking(run);
        Some(run)
    }

    fn find_pages(&mut self, count: u32) -> Option<PageRun> {
        let per_unit = self.pages_per_unit;
        let length = u16::try_from(count).ok()?;
        if count > per_unit {
            let units = count.div_ceil(per_unit);
            let unit = self.find_long(units)?;
            self.claim_run(unit, units);
            return Some(PageRun { page: u64::from(unit) * u64::from(per_unit), count: length });
        }
        // What the host holds comes first: it may have nothing else.
        let (unit, at) = if let Some(found) = self.find_within(&self.page_units_ready, count) {
            found
        } else if let Some(unit) = self.spare.pop_first() {
            self.dirty.insert(unit / UNITS_PER_PAGE);
            (unit, 0)
        } else if let Some(found) = self.find_within(&self.page_units_open, count) {
            found
        } else {
            (self.claim(1)?.unit, 0)
        };
        self.use_pages(unit, |used| used | run_mask(at, count));
        Some(PageRun { page: u64::from(unit) * u64::from(per_unit) + u64::from(at), count: length })
    }

    /// The first of some units where so many pages fit, and where in it.
    fn find_within(&self, units: &BTreeSet<u32>, count: u32) -> Option<(u32, u32)> {
        let fits = |used: u16| {
            (0..=self.pages_per_unit - count).find(|at| used & run_mask(*at, count) == 0)
        };
        // A few tries keep this quick; a new unit is cheap.
        units.iter().take(8).find_map(|unit| Some((*unit, fits(self.page_units[unit])?)))
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
        for (unit, mask) in self.parts(run) {
            self.index.add(unit, mask);
        }
        if u64::from(run.count) > per_unit {
            return;
        }
        for (unit, mask) in self.parts(run) {
            self.use_pages(unit, |used| used | mask);
        }
    }

    /// After replay: the installed root says that the host held these units whole for pages. Gives
    /// those that are free and not wanted.
    ///
    /// In units with pages nothing can have changed: they were in use since. A spare one may have
    /// been used otherwise and given back, so it is to be asked for once more.
    pub fn adopt_whole(&mut self, units: Vec<u32>) -> Vec<u32> {
        let mut unwanted = Vec::new();
        for unit in units {
            if self.page_units.contains_key(&unit) {
                self.index.add(unit, self.whole_unit());
                self.sort_in(unit);
            } else if !self.is_used(unit) && self.spare_missing() > 0 {
                self.set(unit, true);
                self.prepare_spare(unit);
            } else if !self.is_used(unit) {
                unwanted.push(unit);
            }
        }
        unwanted
    }

    /// Pages are free again. Gives the units that hold no page any more, still in use; those that
    /// are wanted as spare ones stay.
    pub fn free_pages(&mut self, run: PageRun) -> Vec<u32> {
        self.pages_asked -= self.lacking(run);
        let parts: Vec<_> = self.parts(run).collect();
        if run.count <= self.pages_per_unit as u16 {
            for (unit, freed) in &parts {
                self.use_pages(*unit, |used| {
                    assert!(used & freed == *freed, "pages were freed twice");
                    used & !freed
                });
            }
        }
        let mut emptied = Vec::new();
        for (unit, _) in parts {
            if self.page_units.contains_key(&unit) {
                continue;
            }
            if self.is_whole(unit) && self.spare_missing() > 0 {
                self.spare.insert(unit);
            } else {
                let held = self.index.take(unit);
                self.loose.add(unit, held);
                emptied.push(unit);
            }
        }
        emptied
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
}

pub(super) const fn run_mask(at: u32, count: u32) -> u16 {
    (((1u32 << count) - 1) << at) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_share_units_and_empty_units_are_found() {
        let mut space = Space::new(1000, 4, 1, 0);
        let a = space.claim_pages(3).expect("space");
        let b = space.claim_pages(1).expect("space");
        let c = space.claim_pages(2).expect("space");
        let long = space.claim_pages(9).expect("space");
        assert_eq!((a.page, b.page, c.page, long.page), (4, 7, 8, 12));
        assert_eq!((space.index_pages(), space.pages_asked()), (0, 3 + 1 + 2 + 9));
        [a, b, c, long].into_iter().for_each(|run| space.pages_written(run));
        assert_eq!((space.index_pages(), space.pages_asked()), (3 + 1 + 2 + 9, 0));
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
        assert_eq!((space.pages_at_hand(), space.spare_missing()), (0, 0));
        assert_eq!((space.index_pages(), space.pages_asked()), (0, 4));
        space.spare_prepared(unit, true);
        assert_eq!(space.pages_at_hand(), 4);
        assert_eq!((space.index_pages(), space.pages_asked()), (4, 0));
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
        assert_eq!((space.recycled().collect::<Vec<_>>(), space.loose_blocks()), (vec![other], 4));
    }

    #[test]
    fn pages_go_where_the_host_holds_space() {
        let mut space = Space::new(100, 4, 1, 4);
        // One page of a unit was written; of the rest nobody knows.
        let first = space.claim_pages(1).expect("space");
        space.pages_written(first);
        assert_eq!(space.pages_at_hand(), 0);
        let unit = space.claim(1).expect("space").unit;
        space.prepare_spare(unit);
        space.spare_prepared(unit, true);
        let second = space.claim_pages(3).expect("space");
        assert_eq!((first.page, second.page, space.pages_at_hand()), (4, 8, 1));
        // Once all of it was written its pages are as good as spare ones.
        let (last, rest) = (space.claim_pages(1), space.claim_pages(3).expect("space"));
        assert_eq!((last.map(|run| run.page), rest.page), (Some(11), 5));
        space.pages_written(rest);
        assert_eq!((space.free_pages(rest), space.pages_at_hand()), (vec![], 3));
        assert_eq!(space.free_pages(first), [], "a unit that the host holds whole becomes spare");
        assert_eq!((space.pages_at_hand(), space.spare_missing()), (4, 0));
    }

    #[test]
    fn what_was_held_for_pages_is_held_after_a_start() {
        let mut space = Space::new(100, 4, 1, 8);
        // A unit with a page, one that a write has got since, and three that are free.
        space.claim(2);
        space.adopt_pages(PageRun { page: 4, count: 1 });
        assert_eq!(space.adopt_whole(vec![1, 2, 7, 8, 9]), [9], "two are wanted");
        assert_eq!((space.pages_at_hand(), space.index_pages(), space.pages_asked()), (3, 4, 8));
        assert_eq!(space.preparing().iter().copied().collect::<Vec<_>>(), [7, 8]);
        assert!(space.is_used(7) && !space.is_used(9));
        space.spare_prepared(7, true);
        space.spare_prepared(8, false);
        assert_eq!((space.pages_at_hand(), space.spare_missing()), (3 + 4, 1));
        assert_eq!(space.recycled().collect::<Vec<_>>(), [8]);
        // Pages to be free again count as well: the installed root will be the one without them.
        let last = space.claim_pages(3).expect("space");
        assert_eq!(space.whole_units(&[]), BTreeSet::from([7]));
        assert_eq!(space.whole_units(&[last]), BTreeSet::from([1, 7]));
    }
}
