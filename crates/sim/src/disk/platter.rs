//! The bytes of a simulated disk. Nothing is copied: blocks are slices of the buffers that were
//! written, and copies of a platter share them.

use super::{PER_BLOCK, SECTOR};
use bytes::Bytes;
use sheepdog_storelog::io::Area;
use sheepdog_types::BLOCK_SIZE;
use std::collections::BTreeMap;

#[derive(Clone)]
enum Block {
    /// Written at once.
    Whole(Bytes),
    /// Sector by sector; an empty one was never written.
    Sectors(Box<[Bytes; PER_BLOCK as usize]>),
}

/// What was never written reads as zeros.
#[derive(Clone, Default)]
pub(super) struct Platter {
    blocks: BTreeMap<(Area, u64), Block>,
}

static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// A buffer of zeros.
pub(super) fn zeros(len: usize) -> Bytes {
    if len <= BLOCK_SIZE { Bytes::from_static(&ZEROS[..len]) } else { vec![0; len].into() }
}

impl Block {
    fn sectors(&mut self) -> &mut [Bytes; PER_BLOCK as usize] {
        if let Self::Whole(bytes) = self {
            let slices =
                std::array::from_fn(|slot| bytes.slice(slot * SECTOR..(slot + 1) * SECTOR));
            *self = Self::Sectors(Box::new(slices));
        }
        match self {
            Self::Sectors(sectors) => sectors,
            Self::Whole(_) => unreachable!("it was just cut"),
        }
    }

    fn written(&self) -> impl Iterator<Item = u64> {
        (0..PER_BLOCK).filter(|slot| match self {
            Self::Whole(_) => true,
            Self::Sectors(sectors) => !sectors[*slot as usize].is_empty(),
        })
    }

    fn copy(&self, within: usize, into: &mut [u8]) {
        match self {
            Self::Whole(bytes) => into.copy_from_slice(&bytes[within..within + into.len()]),
            Self::Sectors(sectors) => {
                let wanted = sectors.iter().skip(within / SECTOR);
                for (into, sector) in into.chunks_mut(SECTOR).zip(wanted) {
                    if !sector.is_empty() {
                        into.copy_from_slice(sector);
                    }
                }
            }
        }
    }
}

impl Platter {
    /// Writes whole sectors.
    pub(super) fn write(&mut self, area: Area, offset: u64, bytes: &Bytes) {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let (number, within) = (position / BLOCK_SIZE as u64, position as usize % BLOCK_SIZE);
            let count = (BLOCK_SIZE - within).min(bytes.len() - at);
            let piece = bytes.slice(at..at + count);
            if count == BLOCK_SIZE {
                self.blocks.insert((area, number), Block::Whole(piece));
            } else {
                let block = self
                    .blocks
                    .entry((area, number))
                    .or_insert_with(|| Block::Sectors(Box::default()));
                let slots = block.sectors().iter_mut().skip(within / SECTOR);
                for (slot, start) in slots.zip((0..count).step_by(SECTOR)) {
                    *slot = piece.slice(start..start + SECTOR);
                }
            }
            at += count;
        }
    }

    pub(super) fn read(&self, area: Area, offset: u64, len: usize) -> Bytes {
        let first = (offset / BLOCK_SIZE as u64, offset as usize % BLOCK_SIZE);
        if first.1 + len <= BLOCK_SIZE {
            match self.blocks.get(&(area, first.0)) {
                None => return zeros(len),
                Some(Block::Whole(bytes)) => return bytes.slice(first.1..first.1 + len),
                Some(Block::Sectors(_)) => {}
            }
        }
        let mut bytes = vec![0; len];
        let mut at = 0;
        while at < len {
            let position = offset as usize + at;
            let within = position % BLOCK_SIZE;
            let count = (BLOCK_SIZE - within).min(len - at);
            if let Some(block) = self.blocks.get(&(area, (position / BLOCK_SIZE) as u64)) {
                block.copy(within, &mut bytes[at..at + count]);
            }
            at += count;
        }
        bytes.into()
    }

    /// Sectors of a range of sectors that were ever written, in order.
    pub(super) fn sectors(&self, area: Area, range: std::ops::Range<u64>) -> Vec<u64> {
        let (first, last) = (range.start / PER_BLOCK, range.end.div_ceil(PER_BLOCK));
        self.blocks
            .range((area, first)..(area, last.max(first)))
            .flat_map(|((_, number), block)| {
                block.written().map(move |slot| number * PER_BLOCK + slot)
            })
            .filter(|sector| range.contains(sector))
            .collect()
    }
}
