//! What a VDI occupies, from what its fragments say.

use super::path;
use crate::data::DataPlane;
use sheepdog_types::{Error, ErrorKind, Geometry, Result};
use sheepdog_volume::layout::Objects;
use sheepdog_volume::record::VdiRecord;
use sheepdog_volume::table::Table;
use std::collections::BTreeMap;

/// The counters of one VDI, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Occupied {
    /// Objects in which it owns anything, whole.
    pub used: u64,
    /// Other objects in which it sees anything, whole.
    pub shared: u64,
    /// What it really stores or has reserved, of one copy.
    pub stored: u64,
}

/// Parts of a fragment by owner: of the VDI itself, of its ancestors.
type Parts = BTreeMap<u64, (u64, u64)>;

/// Asks the worker for each vid the VDI sees.
///
/// # Errors
/// Those of the worker.
pub async fn occupied(data: &dyn DataPlane, table: &Table, record: &VdiRecord) -> Result<Occupied> {
    let objects = Objects::new(Geometry::STANDARD, record.object_shift)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "object size"))?;
    let mut parts = Parts::new();
    let mut stored = 0;
    for vid in path(table, record.vid, record.lineage) {
        let own = vid == record.vid;
        for usage in data.usage(record.lineage, vid).await? {
            let mask = fold(usage.occupied, objects.parts());
            let entry = parts.entry(usage.number).or_default();
            if own {
                entry.0 |= mask;
                stored += usage.stored;
            } else {
                entry.1 |= mask;
            }
        }
    }
    let mut sum = objects.usage(record.size);
    for (number, (own, other)) in parts {
        sum.add(number, own, other);
    }
    let (used, shared) = sum.finish();
    Ok(Occupied { used, shared, stored })
}

/// Bits for each MiB of a standard fragment become bits for each of its `parts` (1, 2 or 4).
fn fold(occupied: u64, parts: u32) -> u64 {
    let mebibytes = (Geometry::STANDARD.fragment_bytes() >> 20) as u32;
    let per_part = (mebibytes / parts).max(1);
    (0..mebibytes)
        .filter(|bit| occupied >> bit & 1 == 1)
        .fold(0, |mask, bit| mask | 1 << (bit / per_part))
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn mebibytes_become_parts() {
        assert_eq!(fold(0b1010, 4), 0b1010);
        assert_eq!(fold(0b1010, 2), 0b11);
        assert_eq!(fold(0b1100, 2), 0b10);
        assert_eq!(fold(0b1000, 1), 1);
        assert_eq!(fold(0, 1), 0);
    }
}
