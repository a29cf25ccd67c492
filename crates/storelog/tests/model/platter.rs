//! The bytes of a simulated disk. A copy costs next to nothing: copies share what neither changed
//! since, so that a test can look at what a disk would hold after each operation.

use sheepdog_storelog::io::Area;
use sheepdog_types::BLOCK_SIZE;
use std::collections::BTreeMap;
use std::sync::Arc;

pub const SECTOR: usize = 512;
const PER_BLOCK: u64 = (BLOCK_SIZE / SECTOR) as u64;

#[derive(Clone)]
struct Block {
    /// One bit for each sector that was ever written.
    written: u8,
    bytes: [u8; BLOCK_SIZE],
}

/// See the module. What was never written reads as zeros.
#[derive(Clone, Default)]
pub struct Platter {
    blocks: BTreeMap<(Area, u64), Arc<Block>>,
}

impl Platter {
    /// The bytes of a sector, to be changed.
    pub fn sector_mut(&mut self, area: Area, sector: u64) -> &mut [u8] {
        let block = self
            .blocks
            .entry((area, sector / PER_BLOCK))
            .or_insert_with(|| Arc::new(Block { written: 0, bytes: [0; BLOCK_SIZE] }));
        let block = Arc::make_mut(block);
        let slot = (sector % PER_BLOCK) as usize;
        block.written |= 1 << slot;
        &mut block.bytes[slot * SECTOR..(slot + 1) * SECTOR]
    }

    pub fn set(&mut self, area: Area, sector: u64, bytes: &[u8; SECTOR]) {
        self.sector_mut(area, sector).copy_from_slice(bytes);
    }

    pub fn read(&self, area: Area, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut at = 0;
        while at < len {
            let position = offset as usize + at;
            let within = position % BLOCK_SIZE;
            let count = (BLOCK_SIZE - within).min(len - at);
            if let Some(block) = self.blocks.get(&(area, (position / BLOCK_SIZE) as u64)) {
                bytes[at..at + count].copy_from_slice(&block.bytes[within..within + count]);
            }
            at += count;
        }
        bytes
    }

    /// An area becomes what it is on another one.
    pub fn put_back(&mut self, area: Area, other: &Self) {
        self.blocks.retain(|(of, _), _| *of != area);
        let theirs = other.blocks.range((area, 0)..=(area, u64::MAX));
        self.blocks.extend(theirs.map(|(at, block)| (*at, Arc::clone(block))));
    }

    /// Sectors that were ever written, in order.
    pub fn sectors(&self, area: Area) -> Vec<u64> {
        self.blocks
            .range((area, 0)..=(area, u64::MAX))
            .flat_map(|((_, number), block)| {
                (0..PER_BLOCK)
                    .filter(|slot| block.written & (1 << slot) != 0)
                    .map(move |slot| number * PER_BLOCK + slot)
            })
            .collect()
    }
}
