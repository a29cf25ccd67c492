//! A disk in memory: blocks of 4 KiB that hold data, reserved zeros or nothing.

use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, Result};
use sheepdog_volume::io::{MapExtent, MapKind, Segment, Volume, ZeroMode};
use std::cell::RefCell;
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_SIZE as u64;

enum Block {
    Data(Bytes),
    Reserved,
}

/// The disk.
pub struct Memory {
    size: u64,
    blocks: RefCell<BTreeMap<u64, Block>>,
}

impl Memory {
    /// An empty one.
    pub fn new(size: u64) -> Self {
        Self { size, blocks: RefCell::default() }
    }

    /// Every block a range touches, with the part of the range in it.
    fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let end = offset + len;
        let blocks = if len == 0 { 0..0 } else { offset / BLOCK..end.div_ceil(BLOCK) };
        blocks.map(move |block| {
            let first = offset.max(block * BLOCK) - block * BLOCK;
            let last = end.min((block + 1) * BLOCK) - block * BLOCK;
            (block, first as usize..last as usize)
        })
    }

    fn change(&self, block: u64, change: impl FnOnce(&mut [u8])) {
        let mut blocks = self.blocks.borrow_mut();
        let mut bytes = match blocks.get(&block) {
            Some(Block::Data(bytes)) => bytes.to_vec(),
            _ => vec![0; BLOCK_SIZE],
        };
        change(&mut bytes);
        blocks.insert(block, Block::Data(bytes.into()));
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::new(ErrorKind::Internal, "the door lets wrong ranges through")),
        }
    }
}

impl Volume for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>> {
        self.check(offset, u64::from(len))?;
        let blocks = self.blocks.borrow();
        let mut segments = Vec::new();
        for (block, part) in Self::parts(offset, u64::from(len)) {
            let piece = match blocks.get(&block) {
                Some(Block::Data(bytes)) => Segment::Data(bytes.slice(part)),
                Some(Block::Reserved) => Segment::Zero(part.len() as u64),
                None => Segment::Hole(part.len() as u64),
            };
            piece.push(&mut segments);
        }
        Ok(segments)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        let mut rest = &data[..];
        for (block, part) in Self::parts(offset, data.len() as u64) {
            let (now, later) = rest.split_at(part.len());
            self.change(block, |bytes| bytes[part].copy_from_slice(now));
            rest = later;
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check(offset, len)?;
        for (block, part) in Self::parts(offset, len) {
            if part.len() < BLOCK_SIZE {
                self.change(block, |bytes| bytes[part].fill(0));
                continue;
            }
            let mut blocks = self.blocks.borrow_mut();
            match mode {
                ZeroMode::Discard => blocks.remove(&block),
                ZeroMode::Reserve => blocks.insert(block, Block::Reserved),
            };
        }
        Ok(())
    }

    async fn map(&self, offset: u64, len: u64) -> Result<Vec<MapExtent>> {
        self.check(offset, len)?;
        let blocks = self.blocks.borrow();
        let mut map = Vec::new();
        for (block, part) in Self::parts(offset, len) {
            let kind = match blocks.get(&block) {
                Some(Block::Data(_)) => MapKind::Data,
                Some(Block::Reserved) => MapKind::Zero,
                None => MapKind::Hole,
            };
            let len = part.len() as u64;
            MapExtent { len, kind }.push(&mut map);
        }
        Ok(map)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}
