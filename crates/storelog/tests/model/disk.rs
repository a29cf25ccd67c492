//! A disk that tells the truth about nothing it was not asked to flush.

use super::faults::{Faults, OpKind, place};
use super::platter::{Platter, SECTOR};
use bytes::Bytes;
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_types::BLOCK_SIZE;
use std::collections::BTreeSet;

/// A small seeded generator (splitmix64): one seed is one run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// One sector that was written and not flushed since.
#[derive(Clone)]
struct Unflushed {
    at: (Area, u64),
    bytes: [u8; SECTOR],
    /// The operation that wrote it ended at this time.
    ended: u64,
}

/// Operations run when they are completed, in any order; until a flush, what they wrote may be on
/// the medium, or not, or garbage, sector by sector.
#[derive(Clone, Default)]
pub struct SimDisk {
    pub faults: Faults,
    /// Blocks that the data area may hold on the host, if bounded.
    pub capacity: Option<usize>,
    /// Operations that found no space.
    pub found_no_space: u64,
    /// Operations that failed for other reasons.
    pub failed: u64,
    allocated: BTreeSet<u64>,
    /// What a power failure cannot take, and what a read sees.
    medium: Platter,
    seen: Platter,
    unflushed: Vec<Unflushed>,
    in_flight: Vec<(OpId, DiskOp, u64)>,
    time: u64,
    /// The operations that ended so far: what they were, and where.
    pub ended: Vec<(OpKind, Option<(Area, u64)>)>,
}

impl SimDisk {
    pub fn submit(&mut self, id: OpId, op: DiskOp) {
        self.time += 1;
        self.in_flight.push((id, op, self.time));
    }

    /// Operations begun and ended so far.
    pub fn events(&self) -> u64 {
        self.time
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Ends one of the operations in flight.
    pub fn complete_any(&mut self, rng: &mut Rng) -> Option<Completion> {
        if self.in_flight.is_empty() {
            return None;
        }
        let chosen = rng.below(self.in_flight.len() as u64) as usize;
        let (op, what, begun) = self.in_flight.swap_remove(chosen);
        let number = self.ended.len() as u64;
        self.ended.push((OpKind::of(&what), place(&what).map(|(area, offset, _)| (area, offset))));
        let result = match self.faults.of(number, &what, self.fits(&what), rng) {
            None => Ok(self.run(&what, begun)),
            Some(kind) => {
                match kind {
                    DiskErrorKind::NoSpace => self.found_no_space += 1,
                    DiskErrorKind::Io => self.failed += 1,
                }
                self.half(&what, begun, rng);
                Err(DiskError { kind, text: format!("{kind:?} injected") })
            }
        };
        Some(Completion { op, result })
    }

    /// Whether the host has space for it. What it holds already can be written whatever is left, and
    /// so can what is not in its books: the log.
    fn fits(&self, what: &DiskOp) -> bool {
        let Some(capacity) = self.capacity else {
            return true;
        };
        let (offset, len) = match what {
            DiskOp::Write { area: Area::Data, offset, data, .. } => {
                (*offset, data.iter().map(Bytes::len).sum::<usize>() as u64)
            }
            DiskOp::Allocate { offset, len } => (*offset, *len),
            _ => return true,
        };
        let new = blocks_of(offset, len).filter(|block| !self.allocated.contains(block)).count();
        new == 0 || self.allocated.len() + new <= capacity
    }

    /// There is no more space than what is allocated.
    pub fn fill(&mut self) {
        self.capacity = Some(self.allocated.len());
    }

    /// What the host holds for the data area.
    pub fn held_bytes(&self) -> u64 {
        (self.allocated.len() * BLOCK_SIZE) as u64
    }

    /// What the host has free for the data area.
    pub fn free_bytes(&self) -> u64 {
        let capacity = self.capacity.unwrap_or(1 << 28);
        let blocks = capacity.saturating_sub(self.allocated.len());
        (blocks * BLOCK_SIZE) as u64
    }

    /// An operation that failed may have been done in part.
    fn half(&mut self, what: &DiskOp, begun: u64, rng: &mut Rng) {
        if let DiskOp::Write { area, offset, data, .. } = what {
            let bytes = data.concat();
            let sectors = rng.below((bytes.len() / SECTOR) as u64 + 1) as usize;
            if !self.fits(what) {
                return;
            }
            let what = DiskOp::Write {
                area: *area,
                offset: *offset,
                data: vec![Bytes::copy_from_slice(&bytes[..sectors * SECTOR])],
                durable: false,
            };
            self.run(&what, begun);
        }
    }

    /// Sectors that were ever written, in order.
    pub fn sectors(&self, area: Area) -> Vec<u64> {
        self.medium.sectors(area)
    }

    /// Damages a sector.
    pub fn rot(&mut self, area: Area, sector: u64, rng: &mut Rng) {
        let all = rng.chance(30);
        for sectors in [&mut self.medium, &mut self.seen] {
            let bytes = sectors.sector_mut(area, sector);
            if all {
                bytes.fill(0xa5);
            } else {
                bytes[rng.below(SECTOR as u64) as usize] ^= 1 << rng.below(8);
            }
        }
    }

    /// Somebody puts an area back as it was on another disk.
    pub fn put_back(&mut self, area: Area, other: &Self) {
        self.medium.put_back(area, &other.medium);
        self.seen.put_back(area, &other.seen);
        if area == Area::Data {
            self.allocated.clone_from(&other.allocated);
        }
    }

    /// The bytes as a read sees them.
    pub fn peek(&self, area: Area, offset: u64, len: usize) -> Bytes {
        self.read(area, offset, len)
    }

    /// Does it at once, for preparing.
    pub fn run_now(&mut self, what: &DiskOp) {
        let time = self.time;
        self.run(what, time);
    }

    fn run(&mut self, what: &DiskOp, begun: u64) -> Bytes {
        self.time += 1;
        match what {
            DiskOp::Read { area, offset, len } => self.read(*area, *offset, *len),
            DiskOp::Write { area, offset, data, durable } => {
                let bytes: Vec<u8> = data.concat();
                if *area == Area::Data {
                    self.allocated.extend(blocks_of(*offset, bytes.len() as u64));
                }
                self.write(*area, *offset, &bytes, *durable);
                Bytes::new()
            }
            DiskOp::Sync { area } => {
                // What ended before the flush began is on the medium now.
                let (flushed, rest) = std::mem::take(&mut self.unflushed)
                    .into_iter()
                    .partition::<Vec<_>, _>(|u| u.at.0 == *area && u.ended < begun);
                self.unflushed = rest;
                for sector in flushed {
                    self.medium.set(sector.at.0, sector.at.1, &sector.bytes);
                }
                Bytes::new()
            }
            DiskOp::Punch { offset, len } => {
                self.write(Area::Data, *offset, &vec![0; *len as usize], false);
                for block in blocks_of(*offset, *len) {
                    self.allocated.remove(&block);
                }
                Bytes::new()
            }
            DiskOp::Allocate { offset, len } => {
                self.allocated.extend(blocks_of(*offset, *len));
                Bytes::new()
            }
            DiskOp::Extend { .. } => Bytes::new(),
        }
    }

    fn read(&self, area: Area, offset: u64, len: usize) -> Bytes {
        assert!(
            offset.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR),
            "unaligned read"
        );
        self.seen.read(area, offset, len).into()
    }

    fn write(&mut self, area: Area, offset: u64, bytes: &[u8], durable: bool) {
        assert!(
            offset.is_multiple_of(SECTOR as u64) && bytes.len().is_multiple_of(SECTOR),
            "unaligned write"
        );
        let first = offset / SECTOR as u64;
        for (sector, bytes) in (first..).zip(bytes.as_chunks::<SECTOR>().0) {
            let at = (area, sector);
            self.seen.set(area, sector, bytes);
            if durable {
                // Older unflushed bytes of this sector cannot come back.
                self.unflushed.retain(|u| u.at != at);
                self.medium.set(area, sector, bytes);
            } else {
                self.unflushed.push(Unflushed { at, bytes: *bytes, ended: self.time });
            }
        }
    }

    /// Power fails: unflushed sectors and those of operations in flight are old, new or garbage.
    pub fn crash(&mut self, rng: &mut Rng) {
        for (_, what, begun) in std::mem::take(&mut self.in_flight) {
            // A durable write in flight promises nothing yet.
            let what = match what {
                DiskOp::Write { area, offset, data, .. } => {
                    DiskOp::Write { area, offset, data, durable: false }
                }
                DiskOp::Read { .. } | DiskOp::Sync { .. } => continue,
                other => other,
            };
            self.run_if_it_fits(&what, begun);
        }
        // Some crashes keep nearly everything, some nearly nothing.
        let keep = [0, 10, 50, 90, 100][rng.below(5) as usize];
        for sector in std::mem::take(&mut self.unflushed) {
            if rng.chance(keep) {
                self.medium.set(sector.at.0, sector.at.1, &sector.bytes);
            } else if rng.chance(5) {
                let mut garbage = [0; SECTOR];
                garbage.fill_with(|| rng.next() as u8);
                self.medium.set(sector.at.0, sector.at.1, &garbage);
            }
        }
        self.seen = self.medium.clone();
    }

    /// Only the process dies: what was handed to the disk gets there.
    pub fn kill(&mut self) {
        for (_, what, begun) in std::mem::take(&mut self.in_flight) {
            self.run_if_it_fits(&what, begun);
        }
    }

    /// An operation in flight when nobody waits for it any more. A host without space for it would
    /// have refused it, and no crash gives it some: done all the same it took more than there is,
    /// and the host then refused even what is written in place, to blocks that it holds.
    fn run_if_it_fits(&mut self, what: &DiskOp, begun: u64) {
        if self.fits(what) {
            self.run(what, begun);
        }
    }
}

fn blocks_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    let block = BLOCK_SIZE as u64;
    offset / block..(offset + len).div_ceil(block)
}
