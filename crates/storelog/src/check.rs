//! The books compared with each other: every unit in use for exactly one purpose.

use crate::store::Store;
use std::collections::BTreeMap;

impl Store {
    /// Compares allocation map, index pages and the homes of all fragments in memory. Units that
    /// nothing names are only an error when every fragment is in memory.
    ///
    /// # Errors
    /// What does not fit.
    pub fn self_check(&self) -> Result<(), String> {
        let mut users: BTreeMap<u32, String> = BTreeMap::new();
        let mut claim = |unit: u32, who: String| match users.insert(unit, who.clone()) {
            Some(other) => Err(format!("unit {unit} is used by {other} and by {who}")),
            None if !self.space.is_used(unit) => {
                Err(format!("unit {unit} of {who} is free in the allocation map"))
            }
            None => Ok(()),
        };
        let per_unit = self.geometry().blocks_per_chunk();
        for unit in 0..3_u32.div_ceil(per_unit) {
            claim(unit, "the superblock".to_owned())?;
        }
        for unit in self.space.recycled() {
            claim(unit, "recycled space".to_owned())?;
        }
        for unit in self.space.spares() {
            claim(unit, "spare pages".to_owned())?;
        }
        for unit in self.space.units_of_pages() {
            claim(unit, "index pages".to_owned())?;
        }
        let mut long_runs = vec![self.root];
        let mut complete = true;
        for (id, entry) in self.index.range(ALL) {
            long_runs.push(entry.page);
            let Some(loaded) = entry.loaded.as_deref() else {
                complete = false;
                continue;
            };
            for (vid, chunk, blocks) in loaded.fragment.chunks() {
                if let Some(unit) = blocks.unit {
                    claim(unit, format!("{id} {vid:?} chunk {chunk}"))?;
                }
            }
        }
        for run in long_runs.into_iter().filter(|run| u32::from(run.count) > per_unit) {
            let first = (run.page / u64::from(per_unit)) as u32;
            for unit in first..first + u32::from(run.count).div_ceil(per_unit) {
                claim(unit, format!("the page at {}", run.page))?;
            }
        }
        if let Some(unit) = self.space.ledger().find(|unit| !self.space.is_used(*unit)) {
            return Err(format!("the host is said to hold blocks of unit {unit}, which is free"));
        }
        if complete && users.len() != self.space.units_in_use() as usize {
            let lost = (0..1 << 20)
                .filter(|unit| self.space.is_used(*unit) && !users.contains_key(unit))
                .take(4);
            return Err(format!(
                "{} units are in use, {} are accounted for; lost among others {:?}",
                self.space.units_in_use(),
                users.len(),
                lost.collect::<Vec<_>>()
            ));
        }
        Ok(())
    }
}

const ALL: std::ops::RangeInclusive<sheepdog_types::FragmentId> = {
    use sheepdog_types::{FragmentId, LineageId};
    FragmentId { lineage: LineageId(0), number: 0 }..=FragmentId {
        lineage: LineageId(u64::MAX),
        number: u64::MAX,
    }
};
