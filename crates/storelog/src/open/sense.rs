//! Whether what the index on disk says can be: a right checksum does not make sense of it.

use super::Opening;
use crate::format::codec::Malformed;
use crate::format::index::{PageRun, Root, Slot, UNITS_PER_PAGE};
use sheepdog_types::Result;
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
        let pages = root.entry_pages.iter().chain(&root.space_pages);
        let mut runs = pages.map(|page| PageRun { page: *page, count: 1 });
        let units_max = self.limits.units_max;
        if runs.any(|run| !self.is_inside(run).unwrap_or_default())
            || root.space_pages.len() > units_max.div_ceil(UNITS_PER_PAGE) as usize
            || root.unpunched.iter().any(|unit| *unit >= units_max)
        {
            return Err(Malformed::new(WHAT, "it names what is outside of the disk"));
        }
        Ok(())
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
