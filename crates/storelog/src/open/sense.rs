//! Whether what the index on disk says can be: a right checksum does not make sense of it.

use super::Opening;
use crate::format::codec::Malformed;
use crate::format::index::{PageRun, Root, Slot, UNITS_PER_PAGE};
use sheepdog_types::{Error, ErrorKind, Result};
use std::collections::BTreeSet;

impl Opening {
    /// Whether pages lie where there can be units.
    pub(super) fn is_inside(&self, run: PageRun) -> Result<bool> {
        let per_unit = self.superblock()?.geometry.blocks_per_chunk();
        let pages = u64::from(self.limits.units_max) * u64::from(per_unit);
        Ok(run.page.checked_add(u64::from(run.count)).is_some_and(|end| end <= pages))
    }

    /// A root with a right checksum that makes no sense would have this program look outside of
    /// the disk, or keep books of units that cannot be.
    pub(super) fn check_root(&self, root: &Root) -> std::result::Result<(), Malformed> {
        const WHAT: &str = "root";
        let missing = root.missing_pages.iter().map(|(_, page)| page);
        let pages = root.entry_pages.iter().chain(&root.space_pages).chain(missing);
        let runs = pages.map(|page| PageRun { page: *page, count: 1 });
        let mut runs = runs.chain(root.shards.iter().flat_map(|(_, parts)| parts).copied());
        let units_max = self.limits.units_max;
        if runs.any(|run| !self.is_inside(run).unwrap_or_default())
            || root.space_pages.len() > units_max.div_ceil(UNITS_PER_PAGE) as usize
            || root.unpunched.iter().chain(&root.whole).any(|unit| *unit >= units_max)
        {
            return Err(Malformed::new(WHAT, "it names what is outside of the disk"));
        }
        let entry_pages = root.entry_pages.len();
        if !root.missing_pages.is_sorted_by(|a, b| a.0 < b.0)
            || !root.shards.is_sorted_by(|a, b| a.0 < b.0)
            || root.missing_pages.iter().any(|(page, _)| *page as usize >= entry_pages)
            || root.shards.iter().any(|(_, parts)| parts.is_empty())
            || root.shards.iter().flat_map(|(_, parts)| parts).any(|run| run.count == 0)
        {
            return Err(Malformed::new(WHAT, "missing pages or shards that cannot be"));
        }
        let unpunched: BTreeSet<u32> = root.unpunched.iter().copied().collect();
        let mut whole = BTreeSet::new();
        if root.whole.iter().any(|unit| unpunched.contains(unit) || !whole.insert(*unit)) {
            return Err(Malformed::new(WHAT, "it names a unit twice"));
        }
        Ok(())
    }

    /// Whether units in use are on the disk, as an allocation page has them. One that became smaller
    /// is not written to: it may be grown again, and then holds what it held.
    pub(super) fn check_words(&self, page: u32, words: &[u64]) -> Result<()> {
        let last = words.iter().rposition(|word| *word != 0).map(|at| {
            u64::from(page) * u64::from(UNITS_PER_PAGE)
                + at as u64 * 64
                + u64::from(63 - words[at].leading_zeros())
        });
        match last.filter(|unit| *unit >= u64::from(self.units_there)) {
            Some(unit) => Err(outside(unit)),
            None => Ok(()),
        }
    }

    /// As [`Opening::check_words`], for what the log names. Who only looks goes on without batches
    /// that name what no disk has.
    pub(super) fn check_records(&mut self) -> Result<()> {
        if let Some((_, unit)) = self.named_behind(self.units_there) {
            self.damage(outside(unit.into()))?;
        }
        if let Some((seq, _)) = self.named_behind(self.limits.units_max) {
            self.records.retain(|replayed| replayed.seq < seq);
        }
        Ok(())
    }

    /// The first batch of the log that names a unit at or behind that one, and the unit.
    fn named_behind(&self, units: u32) -> Option<(u64, u32)> {
        self.records.iter().find_map(|replayed| {
            let homes = replayed.record.fragment()?.homes();
            let mut named = homes.iter().map(|(_, placed)| placed.unit);
            Some((replayed.seq, named.find(|unit| *unit >= units)?))
        })
    }

    /// As [`Opening::check_root`], for an entry page.
    pub(super) fn check_slots(&self, slots: &[Option<Slot>]) -> std::result::Result<(), Malformed> {
        const WHAT: &str = "entry page";
        let mut ids = BTreeSet::new();
        for slot in slots.iter().flatten() {
            if !self.is_inside(slot.page).unwrap_or_default() {
                return Err(Malformed::new(WHAT, "it names what is outside of the disk"));
            }
            if !ids.insert(slot.id) || self.index.get(slot.id).is_some() {
                return Err(Malformed::new(WHAT, "it names a fragment twice"));
            }
        }
        Ok(())
    }
}

fn outside(unit: u64) -> Error {
    let what = format!("unit {unit} is in use and outside of the disk, which may have been larger");
    Error::new(ErrorKind::Io, what)
}
