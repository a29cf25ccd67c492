//! A disk that tells the truth about nothing it was not asked to flush.

use bytes::Bytes;
use sheepdog_storelog::io::{Area, Completion, DiskOp, OpId};
use std::collections::BTreeMap;

const SECTOR: usize = 512;

type Sectors = BTreeMap<(Area, u64), [u8; SECTOR]>;

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
struct Unflushed {
    at: (Area, u64),
    bytes: [u8; SECTOR],
    /// The operation that wrote it ended at this time.
    ended: u64,
}

/// Operations run when they are completed, in any order; until a flush, what they wrote may be on
/// the medium, or not, or garbage, sector by sector.
#[derive(Default)]
pub struct SimDisk {
    medium: Sectors,
    seen: Sectors,
    unflushed: Vec<Unflushed>,
    in_flight: Vec<(OpId, DiskOp, u64)>,
    time: u64,
}

impl SimDisk {
    pub fn submit(&mut self, id: OpId, op: DiskOp) {
        self.time += 1;
        self.in_flight.push((id, op, self.time));
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
        Some(Completion {
            op,
            result: Ok(self.run(&what, begun)),
        })
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
            DiskOp::Write {
                area,
                offset,
                data,
                durable,
            } => {
                let bytes: Vec<u8> = data.concat();
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
                    self.medium.insert(sector.at, sector.bytes);
                }
                Bytes::new()
            }
            DiskOp::Punch { offset, len } => {
                self.write(Area::Data, *offset, &vec![0; *len as usize], false);
                Bytes::new()
            }
            DiskOp::Allocate { .. } | DiskOp::Extend { .. } => Bytes::new(),
        }
    }

    fn read(&self, area: Area, offset: u64, len: usize) -> Bytes {
        assert!(
            offset % SECTOR as u64 == 0 && len % SECTOR == 0,
            "unaligned read"
        );
        let first = offset / SECTOR as u64;
        let mut bytes = Vec::with_capacity(len);
        for sector in first..first + (len / SECTOR) as u64 {
            bytes.extend_from_slice(self.seen.get(&(area, sector)).unwrap_or(&[0; SECTOR]));
        }
        bytes.into()
    }

    fn write(&mut self, area: Area, offset: u64, bytes: &[u8], durable: bool) {
        assert!(
            offset % SECTOR as u64 == 0 && bytes.len() % SECTOR == 0,
            "unaligned write"
        );
        let first = offset / SECTOR as u64;
        for (sector, bytes) in (first..).zip(bytes.as_chunks::<SECTOR>().0) {
            let at = (area, sector);
            self.seen.insert(at, *bytes);
            if durable {
                // Older unflushed bytes of this sector cannot come back.
                self.unflushed.retain(|u| u.at != at);
                self.medium.insert(at, *bytes);
            } else {
                self.unflushed.push(Unflushed {
                    at,
                    bytes: *bytes,
                    ended: self.time,
                });
            }
        }
    }

    /// Power fails: unflushed sectors and those of operations in flight are old, new or garbage.
    pub fn crash(&mut self, rng: &mut Rng) {
        for (_, what, begun) in std::mem::take(&mut self.in_flight) {
            // A durable write in flight promises nothing yet.
            let what = match what {
                DiskOp::Write {
                    area, offset, data, ..
                } => DiskOp::Write {
                    area,
                    offset,
                    data,
                    durable: false,
                },
                DiskOp::Read { .. } | DiskOp::Sync { .. } => continue,
                other => other,
            };
            self.run(&what, begun);
        }
        // Some crashes keep nearly everything, some nearly nothing.
        let keep = [0, 10, 50, 90, 100][rng.below(5) as usize];
        for sector in std::mem::take(&mut self.unflushed) {
            if rng.chance(keep) {
                self.medium.insert(sector.at, sector.bytes);
            } else if rng.chance(5) {
                let mut garbage = [0; SECTOR];
                garbage.fill_with(|| rng.next() as u8);
                self.medium.insert(sector.at, garbage);
            }
        }
        self.seen.clone_from(&self.medium);
    }

    /// Only the process dies: what was handed to the disk gets there.
    pub fn kill(&mut self) {
        for (_, what, begun) in std::mem::take(&mut self.in_flight) {
            self.run(&what, begun);
        }
    }
}
