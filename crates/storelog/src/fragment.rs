//! What a fragment holds: per vid and chunk which blocks are owned, where they are, their
//! checksums; per chunk the version that last touched it. Pure bookkeeping: it is changed only by
//! records that are durable, and by destaging.

use crate::format::record::FilledVid;
use crate::write::chunk_masks;
use sheepdog_types::{Geometry, Version, Vid};
use std::collections::BTreeMap;

/// One bit per block of a chunk.
pub type BlockMask = u16;

/// Pieces of a fragment whose occupancy is counted apart: objects can be as small as 1 MiB.
pub const PARTS: usize = 4;

/// The blocks of one vid in one chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chunk {
    /// Its home in the data area; none while nothing has one.
    pub unit: Option<u32>,
    /// Blocks with bytes (at home, or still in the log).
    pub data: BlockMask,
    /// Blocks that are owned zeros. Never overlaps `data`.
    pub zero: BlockMask,
    /// Blocks of `unit` with space on the host that is meant to be there: bytes that were
    /// destaged, or a reservation.
    pub backed: BlockMask,
    /// Blocks of `unit` with space on the host that is to be given back. Never overlaps `backed`.
    pub stale: BlockMask,
    /// Blocks of `unit` that may have space on the host or not; if so it is to be given back. No
    /// sum counts them. Never overlaps `data`, `backed` or `stale`.
    pub doubtful: BlockMask,
    /// Checksums of the newest bytes of the blocks in `data`.
    pub crcs: [u32; 16],
}

impl Chunk {
    const fn owned(&self) -> BlockMask {
        self.data | self.zero
    }

    /// Blocks that hold space, now or once destaged.
    const fn stored(&self) -> BlockMask {
        self.data | (self.zero & self.backed)
    }

    /// Blocks whose bytes have no space of their own yet: they are in the log only.
    const fn unbacked(&self) -> BlockMask {
        self.data & !self.backed
    }

    /// Whether it will need a unit.
    const fn is_homeless(&self) -> bool {
        self.unit.is_none() && self.data != 0
    }

    /// Its unit, once nothing in it is needed any more.
    fn freed(&self) -> Option<FreedUnit> {
        let backed = self.backed | self.stale;
        self.unit.map(|unit| FreedUnit { unit, backed })
    }

    const fn is_void(&self) -> bool {
        self.owned() == 0 && self.unit.is_none()
    }
}

/// A unit of the data area that no chunk uses any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreedUnit {
    /// Index in the data area.
    pub unit: u32,
    /// Blocks of it that the host holds space for, as far as is certain.
    pub backed: BlockMask,
}

/// All blocks of one vid in a fragment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VidBlocks {
    /// In order. An array, as most of a cache of fragments is this, and a map is half empty.
    chunks: Vec<(u8, Chunk)>,
    owned_in_part: [u16; PARTS],
    stored: u32,
    unbacked: u32,
    stale: u32,
    doubtful: u32,
    homeless: u32,
}

/// Blocks of a fragment by what the host knows of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostBlocks {
    /// They will need space when they are brought home.
    pub unbacked: u64,
    /// They hold space that nobody wants.
    pub stale: u64,
    /// They may hold such space.
    pub doubtful: u64,
    /// Chunks, not blocks: they will need a unit when their blocks are brought home.
    pub homeless: u64,
}

/// What the index knows of a vid in a fragment without reading its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerSummary {
    /// Whose.
    pub vid: Vid,
    /// Blocks that hold space.
    pub stored_blocks: u16,
    /// One bit per quarter of the fragment where the vid owns anything.
    pub occupancy: u8,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fragment {
    geometry: Geometry,
    chunk_versions: Vec<Version>,
    vids: BTreeMap<Vid, VidBlocks>,
}

impl Fragment {
    /// One that was never written.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let chunk_versions = vec![Version::ZERO; geometry.chunks_per_fragment() as usize];
        Self { geometry, chunk_versions, vids: BTreeMap::new() }
    }

    /// Version that last touched each chunk.
    #[must_use]
    pub fn chunk_versions(&self) -> &[Version] {
        &self.chunk_versions
    }

    /// Marks a chunk as touched by `version`.
    pub fn touch(&mut self, chunk: u8, version: Version) {
        self.chunk_versions[usize::from(chunk)] = version;
    }

    /// Whether no vid owns or holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vids.is_empty()
    }

    /// The blocks of a vid in a chunk.
    #[must_use]
    pub fn chunk(&self, vid: Vid, chunk: u8) -> Option<&Chunk> {
        let chunks = &self.vids.get(&vid)?.chunks;
        let at = chunks.binary_search_by_key(&chunk, |(index, _)| *index).ok()?;
        Some(&chunks[at].1)
    }

    /// All chunks in order of vid and index.
    pub fn chunks(&self) -> impl Iterator<Item = (Vid, u8, &Chunk)> {
        self.vids.iter().flat_map(|(vid, blocks)| {
            blocks.chunks.iter().map(|(index, chunk)| (*vid, *index, chunk))
        })
    }

    /// Vids that own or hold anything here, ascending.
    pub fn owners(&self) -> impl Iterator<Item = OwnerSummary> {
        self.vids.iter().map(|(vid, blocks)| OwnerSummary {
            vid: *vid,
            stored_blocks: blocks.stored as u16,
            occupancy: blocks
                .owned_in_part
                .iter()
                .enumerate()
                .fold(0, |bits, (part, owned)| bits | (u8::from(*owned > 0) << part)),
        })
    }

    /// Vids that own anything in a chunk, ascending.
    #[must_use]
    pub fn owners_of(&self, chunk: u8) -> Vec<Vid> {
        let owns = |vid: &Vid| self.chunk(*vid, chunk).is_some_and(|chunk| chunk.owned() != 0);
        self.vids.keys().copied().filter(owns).collect()
    }

    /// The newest owner of a block on a path of vids (newest first), with its chunk.
    #[must_use]
    pub fn owner(&self, path: &[Vid], block: u32) -> Option<(Vid, &Chunk)> {
        let (index, bit) = self.locate(block);
        path.iter().find_map(|vid| {
            let chunk = self.chunk(*vid, index)?;
            (chunk.owned() & bit != 0).then_some((*vid, chunk))
        })
    }

    /// Chunk and bit of a block.
    #[must_use]
    pub fn locate(&self, block: u32) -> (u8, BlockMask) {
        let per_chunk = self.geometry.blocks_per_chunk();
        ((block / per_chunk) as u8, 1 << (block % per_chunk))
    }

    /// Mask of a whole chunk.
    #[must_use]
    pub const fn full(&self) -> BlockMask {
        full_mask(self.geometry)
    }

    /// A block got new bytes that are in the log.
    pub fn set_inline(&mut self, vid: Vid, block: u32, crc: u32) {
        let (index, bit) = self.locate(block);
        let slot = (block % self.geometry.blocks_per_chunk()) as usize;
        self.change(vid, index, |chunk| {
            chunk.data |= bit;
            chunk.zero &= !bit;
            chunk.crcs[slot] = crc;
            // Space waiting to be given back is wanted again.
            chunk.backed |= chunk.stale & bit;
            chunk.stale &= !bit;
            chunk.doubtful &= !bit;
        });
    }

    /// A whole chunk got new bytes in a fresh unit. Gives the unit that it left.
    pub fn set_extent(
        &mut self,
        vid: Vid,
        index: u8,
        unit: u32,
        crcs: &[u32],
    ) -> Option<FreedUnit> {
        let full = self.full();
        assert!(crcs.len() == self.geometry.blocks_per_chunk() as usize, "an extent is a chunk");
        let mut left = None;
        self.change(vid, index, |chunk| {
            // Equal only when replay meets its own effect again.
            if chunk.unit != Some(unit) {
                left = chunk.freed();
            }
            chunk.unit = Some(unit);
            chunk.data = full;
            chunk.zero = 0;
            chunk.backed = full;
            chunk.stale = 0;
            chunk.doubtful = 0;
            chunk.crcs[..crcs.len()].copy_from_slice(crcs);
        });
        left
    }

    /// Blocks of a chunk are gone, or owned zeros without space (`marker`). Gives the unit if
    /// nothing in it is needed any more.
    pub fn clear(
        &mut self,
        vid: Vid,
        index: u8,
        mask: BlockMask,
        marker: bool,
    ) -> Option<FreedUnit> {
        if !marker && self.chunk(vid, index).is_none() {
            return None;
        }
        let mut left = None;
        self.change(vid, index, |chunk| {
            chunk.data &= !mask;
            if marker {
                chunk.zero |= mask;
            } else {
                chunk.zero &= !mask;
            }
            chunk.stale |= chunk.backed & mask;
            chunk.backed &= !mask;
            if chunk.data == 0 && chunk.backed == 0 {
                left = chunk.freed();
                chunk.unit = None;
                chunk.stale = 0;
                chunk.doubtful = 0;
            }
        });
        left
    }

    /// Blocks of a chunk are owned zeros with space reserved in `unit`, which is the chunk's own
    /// unless it had none.
    pub fn reserve(&mut self, vid: Vid, index: u8, mask: BlockMask, unit: u32) {
        self.change(vid, index, |chunk| {
            assert!(chunk.unit.is_none_or(|own| own == unit), "a reservation moved a chunk");
            chunk.unit = Some(unit);
            chunk.data &= !mask;
            chunk.zero |= mask;
            chunk.backed |= mask;
            chunk.stale &= !mask;
            chunk.doubtful &= !mask;
        });
    }

    /// Gives a chunk its home before its blocks are destaged.
    pub fn give_home(&mut self, vid: Vid, index: u8, unit: u32) {
        self.change(vid, index, |chunk| {
            assert!(chunk.unit.is_none(), "a chunk has one home");
            chunk.unit = Some(unit);
        });
    }

    fn is_home(&self, vid: Vid, index: u8, unit: u32) -> bool {
        self.chunk(vid, index).is_some_and(|chunk| chunk.unit == Some(unit))
    }

    /// Blocks of `unit` have space on the host: they were written there, or it was asked for.
    /// Whether that still is the chunk's home.
    pub fn set_backed(&mut self, vid: Vid, index: u8, unit: u32, mask: BlockMask) -> bool {
        let home = self.is_home(vid, index, unit);
        if home {
            self.change(vid, index, |chunk| {
                chunk.backed |= mask & chunk.data;
                // A block discarded while it was being written holds space that nobody wants.
                chunk.stale |= mask & !chunk.data & !chunk.backed;
                chunk.doubtful &= !mask;
            });
        }
        home
    }

    /// Space of blocks that was to be given back is on its way back.
    pub fn forget_stale(&mut self, vid: Vid, index: u8) {
        self.change(vid, index, |chunk| (chunk.stale, chunk.doubtful) = (0, 0));
    }

    /// Blocks of `unit`, if that still is the chunk's home, may hold space that nobody wants.
    pub fn add_doubtful(&mut self, vid: Vid, index: u8, unit: u32, mask: BlockMask) {
        if self.is_home(vid, index, unit) {
            self.change(vid, index, |chunk| {
                chunk.doubtful |= mask & !chunk.data & !chunk.backed & !chunk.stale;
            });
        }
    }

    /// All blocks of a chunk's home that need no space may hold some: nobody knows what the unit
    /// was before.
    pub fn doubt_rest(&mut self, vid: Vid, index: u8) {
        if let Some(unit) = self.chunk(vid, index).and_then(|chunk| chunk.unit) {
            self.add_doubtful(vid, index, unit, self.full());
        }
    }

    /// A checkpoint that never was installed may have given back what is to be given back here.
    pub fn doubt_stale(&mut self) {
        let stale: Vec<(Vid, u8)> = self
            .chunks()
            .filter(|(.., chunk)| chunk.stale != 0)
            .map(|(vid, index, _)| (vid, index))
            .collect();
        for (vid, index) in stale {
            self.change(vid, index, |chunk| {
                chunk.doubtful |= std::mem::take(&mut chunk.stale);
            });
        }
    }

    /// The vid owns nothing here any more. Gives its units.
    pub fn delete_vid(&mut self, vid: Vid) -> Vec<FreedUnit> {
        let blocks = self.vids.remove(&vid);
        blocks
            .iter()
            .flat_map(|blocks| blocks.chunks.iter())
            .filter_map(|(_, chunk)| chunk.freed())
            .collect()
    }

    /// What a vid owns in a chunk that it owned nothing in is this, all of it at home.
    pub fn set_filled(&mut self, index: u8, filled: &FilledVid) {
        let mut crcs = [0; 16];
        let slots = (0..16).filter(|slot| filled.data & (1 << slot) != 0);
        for (slot, crc) in slots.zip(&filled.crcs) {
            crcs[slot] = *crc;
        }
        let FilledVid { unit, data, zero, reserved, .. } = *filled;
        let backed = data | reserved;
        self.change(filled.vid, index, |chunk| {
            *chunk = Chunk { unit, data, zero, backed, stale: 0, doubtful: 0, crcs };
        });
    }

    /// Blocks that hold space in these chunks, of all vids, and their units, those included that
    /// blocks in the log will need.
    #[must_use]
    pub fn stored_in(&self, chunks: impl Fn(u8) -> bool) -> (u64, u64) {
        self.chunks().filter(|(_, index, _)| chunks(*index)).fold((0, 0), |sum, (_, _, chunk)| {
            let has_unit = chunk.unit.is_some() || chunk.is_homeless();
            (sum.0 + u64::from(chunk.stored().count_ones()), sum.1 + u64::from(has_unit))
        })
    }

    /// Replaces a chunk, as read from disk.
    pub(crate) fn insert(&mut self, vid: Vid, index: u8, chunk: Chunk) {
        self.change(vid, index, |slot| *slot = chunk);
    }

    /// Every change of a chunk goes through here: it keeps the counters right and drops what is
    /// void.
    fn change(&mut self, vid: Vid, index: u8, change: impl FnOnce(&mut Chunk)) {
        let part = usize::from(index) * PARTS / self.geometry.chunks_per_fragment() as usize;
        let blocks = self.vids.entry(vid).or_default();
        let found = blocks.chunks.binary_search_by_key(&index, |(index, _)| *index);
        let at = found.unwrap_or_else(|at| {
            blocks.chunks.insert(at, (index, Chunk::default()));
            at
        });
        let chunk = &mut blocks.chunks[at].1;
        let count = |chunk: &Chunk| {
            let masks =
                [chunk.owned(), chunk.stored(), chunk.unbacked(), chunk.stale, chunk.doubtful];
            (masks.map(u16::count_ones), u32::from(chunk.is_homeless()))
        };
        let ([owned, stored, unbacked, stale, doubtful], homeless) = count(chunk);
        change(chunk);
        assert!(
            chunk.data & chunk.zero == 0
                && chunk.backed & chunk.stale == 0
                && chunk.doubtful & (chunk.data | chunk.backed | chunk.stale) == 0
                && (chunk.unit.is_some() || chunk.backed | chunk.stale | chunk.doubtful == 0),
            "impossible chunk {chunk:?}"
        );
        let (now, homeless_now) = count(chunk);
        blocks.homeless = blocks.homeless + homeless_now - homeless;
        blocks.owned_in_part[part] = blocks.owned_in_part[part] + now[0] as u16 - owned as u16;
        blocks.stored = blocks.stored + now[1] - stored;
        blocks.unbacked = blocks.unbacked + now[2] - unbacked;
        blocks.stale = blocks.stale + now[3] - stale;
        blocks.doubtful = blocks.doubtful + now[4] - doubtful;
        if chunk.is_void() {
            blocks.chunks.remove(at);
        }
        if blocks.chunks.is_empty() {
            self.vids.remove(&vid);
        }
    }

    /// What the host knows of its blocks.
    #[must_use]
    pub fn host_blocks(&self) -> HostBlocks {
        self.vids.values().fold(HostBlocks::default(), |sum, blocks| HostBlocks {
            unbacked: sum.unbacked + u64::from(blocks.unbacked),
            stale: sum.stale + u64::from(blocks.stale),
            doubtful: sum.doubtful + u64::from(blocks.doubtful),
            homeless: sum.homeless + u64::from(blocks.homeless),
        })
    }

    /// Blocks of a range that hold no space, and will if they are written.
    #[must_use]
    pub fn unstored(&self, vid: Vid, start: u32, count: u32) -> u32 {
        chunk_masks(start, count, self.geometry.blocks_per_chunk())
            .map(|(index, mask)| {
                let stored = self.chunk(vid, index).map_or(0, Chunk::stored);
                (mask & !stored).count_ones()
            })
            .sum()
    }

    /// Chunks of a range that have no unit and need none yet, but will if they are written.
    #[must_use]
    pub fn unplaced(&self, vid: Vid, start: u32, count: u32) -> u32 {
        let unplaced = |(index, _): &(u8, u16)| {
            self.chunk(vid, *index).is_none_or(|chunk| chunk.unit.is_none() && !chunk.is_homeless())
        };
        chunk_masks(start, count, self.geometry.blocks_per_chunk()).filter(unplaced).count() as u32
    }

    /// Chunks that own or hold anything, and blocks that are owned.
    #[must_use]
    pub fn extent(&self) -> (usize, usize) {
        self.vids.values().fold((0, 0), |(chunks, owned), blocks| {
            let parts = blocks.owned_in_part.iter().map(|owned| usize::from(*owned));
            (chunks + blocks.chunks.len(), owned + parts.sum::<usize>())
        })
    }

    /// Size in memory, for the cache's budget.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        // A map has room for eleven from the first one on.
        const PER_VID: usize = (size_of::<Vid>() + size_of::<VidBlocks>()) * 2;
        let chunks: usize = self.vids.values().map(|blocks| blocks.chunks.capacity()).sum();
        size_of::<Self>()
            + size_of_val(self.chunk_versions.as_slice())
            + (self.vids.len() * PER_VID).max(11 * PER_VID / 2)
            + chunks * size_of::<(u8, Chunk)>()
    }
}

/// Mask of a whole chunk.
#[must_use]
pub const fn full_mask(geometry: Geometry) -> BlockMask {
    (u16::MAX as u32 >> (16 - geometry.blocks_per_chunk())) as BlockMask
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_types::Interval;

    const VID: Vid = Vid::new(7).expect("in range");
    const OTHER: Vid = Vid::new(9).expect("in range");

    #[test]
    fn newest_owner_on_the_path_wins() {
        let mut f = Fragment::new(Geometry::STANDARD);
        f.set_inline(OTHER, 5, 1);
        assert_eq!(f.owner(&[VID, OTHER], 5).map(|(vid, _)| vid), Some(OTHER));
        f.clear(VID, 0, 1 << 5, true);
        assert_eq!(f.owner(&[VID, OTHER], 5).map(|(vid, _)| vid), Some(VID));
        f.clear(VID, 0, 1 << 5, false);
        assert_eq!(f.owner(&[VID, OTHER], 5).map(|(vid, _)| vid), Some(OTHER));
        assert_eq!(f.owner(&[VID], 5).map(|(vid, _)| vid), None);
    }

    #[test]
    fn units_are_given_back_once_and_only_when_empty() {
        let mut f = Fragment::new(Geometry::STANDARD);
        assert_eq!(f.set_extent(VID, 1, 100, &[3; 16]), None);
        let left = f.set_extent(VID, 1, 101, &[4; 16]);
        assert_eq!(left, Some(FreedUnit { unit: 100, backed: 0xffff }));
        assert_eq!(f.clear(VID, 1, 0x00ff, false), None);
        assert_eq!(f.chunk(VID, 1).map(|c| (c.backed, c.stale)), Some((0xff00, 0x00ff)));
        f.forget_stale(VID, 1);
        let left = f.clear(VID, 1, 0xff00, false);
        assert_eq!(left, Some(FreedUnit { unit: 101, backed: 0xff00 }));
        assert!(f.is_empty());
    }

    #[test]
    fn a_late_home_write_does_not_bring_back_a_discarded_block() {
        let mut f = Fragment::new(Geometry::STANDARD);
        f.set_inline(VID, 0, 1);
        f.set_inline(VID, 1, 2);
        f.give_home(VID, 0, 50);
        assert_eq!(f.clear(VID, 0, 1, false), None);
        f.set_backed(VID, 0, 50, 0b11);
        let chunk = f.chunk(VID, 0).expect("block 1 is there");
        assert_eq!((chunk.data, chunk.backed, chunk.stale), (0b10, 0b10, 0b01));
    }

    #[test]
    fn occupancy_and_space_are_counted() {
        let mut f = Fragment::new(Geometry::STANDARD);
        f.set_inline(VID, 0, 1);
        f.set_extent(VID, 63, 9, &[0; 16]);
        f.reserve(VID, 20, 0b1111, 10);
        f.clear(VID, 40, 0b1, true);
        f.touch(3, Version { interval: Interval(1), seq: 2 });
        let owner = f.owners().next().expect("one owner");
        assert_eq!((owner.stored_blocks, owner.occupancy), (1 + 16 + 4, 0b1111));
        f.clear(VID, 40, 0b1, false);
        assert_eq!(f.owners().next().map(|o| o.occupancy), Some(0b1011));
        let mut units: Vec<u32> = f.delete_vid(VID).iter().map(|u| u.unit).collect();
        units.sort_unstable();
        assert_eq!(units, [9, 10]);
        assert_eq!(f.owners().count(), 0);
    }
}
