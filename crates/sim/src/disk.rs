//! Simulated disks: they tell the truth about nothing they were not asked to flush.
//!
//! An operation takes effect when it completes, at a time that the queue decides. Until a flush,
//! what a write left may be on the medium, or not, or garbage, sector by sector, if the power fails;
//! the death of the process alone loses only what was in flight. Faults are said in [`Faults`] or
//! done at once by a call; those that happened are counted by kind.

mod faults;
mod platter;

use crate::{Counts, Delay, Host, Queue, Rng};
use bytes::Bytes;
pub use faults::{Faults, Planned, Reach, Wrong};
use platter::{Platter, zeros};
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_types::BLOCK_SIZE;
use std::collections::{BTreeMap, BTreeSet};

/// The unit in which writes tear.
pub const SECTOR: usize = 512;
const PER_BLOCK: u64 = (BLOCK_SIZE / SECTOR) as u64;

/// What a disk has free when nobody bounds it, in blocks: 1 TiB.
const UNBOUNDED: usize = 1 << 28;

/// How long operations take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Reads.
    pub read: Delay,
    /// Writes, and everything else that changes something.
    pub write: Delay,
    /// Flushes, and on top of a durable write.
    pub sync: Delay,
}

impl Default for Settings {
    fn default() -> Self {
        let quick = Delay { least: 10_000, typical: 60_000, rare: 10, longest: 5_000_000 };
        Self { read: quick, write: quick, sync: Delay { typical: 200_000, ..quick } }
    }
}

/// An operation's time has come: give it to [`Disk::complete`] of that disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which disk.
    pub disk: u16,
    op: OpId,
    /// Operations of an earlier run of the process are over.
    run: u64,
}

/// Bytes that were written and not flushed since.
#[derive(Clone)]
struct Unflushed {
    area: Area,
    offset: u64,
    bytes: Bytes,
    /// On the medium already; kept because something older, which is not, must not come over it.
    durable: bool,
    /// The operation that wrote it ended at this time.
    ended: u64,
}

struct Flight {
    op: DiskOp,
    begun: u64,
    /// Its time came while the disk hung.
    hangs: bool,
}

/// A disk as it once was.
#[derive(Clone)]
pub struct Image {
    platter: Platter,
    allocated: BTreeSet<u64>,
}

/// See the [module](self).
pub struct Disk {
    /// What goes wrong from now on.
    pub faults: Faults,
    /// How long operations take from now on.
    pub settings: Settings,
    /// All of it takes so many times as long.
    pub slow: u64,
    /// Faults that happened, by kind.
    pub happened: Counts,
    number: u16,
    owner: Host,
    rng: Rng,
    capacity: Option<usize>,
    allocated: BTreeSet<u64>,
    /// What a power failure cannot take, and what a read sees.
    medium: Platter,
    seen: Platter,
    unflushed: Vec<Unflushed>,
    in_flight: BTreeMap<OpId, Flight>,
    hangs: bool,
    run: u64,
    /// Begins and ends of operations, in order.
    time: u64,
    ended: u64,
}

impl Disk {
    /// An empty one; `owner` is told when operations complete.
    #[must_use]
    pub fn new(number: u16, owner: Host, rng: Rng) -> Self {
        Self {
            faults: Faults::default(),
            settings: Settings::default(),
            slow: 1,
            happened: Counts::default(),
            number,
            owner,
            rng,
            capacity: None,
            allocated: BTreeSet::new(),
            medium: Platter::default(),
            seen: Platter::default(),
            unflushed: Vec::new(),
            in_flight: BTreeMap::new(),
            hangs: false,
            run: 0,
            time: 0,
            ended: 0,
        }
    }

    /// Another host has it from now on. No process must use it.
    pub fn move_to(&mut self, owner: Host) {
        self.owner = owner;
        self.in_flight.clear();
        self.restart();
    }

    /// Begins an operation.
    pub fn submit<E: From<Step>>(&mut self, queue: &mut Queue<E>, id: OpId, op: DiskOp) {
        self.time += 1;
        let settings = self.settings;
        let mut takes = match op {
            DiskOp::Read { .. } => settings.read.draw(&mut self.rng),
            DiskOp::Sync { .. } => settings.sync.draw(&mut self.rng),
            _ => settings.write.draw(&mut self.rng),
        };
        if matches!(op, DiskOp::Write { durable: true, .. }) {
            takes += settings.sync.draw(&mut self.rng);
        }
        let when = queue.now().saturating_add(takes.saturating_mul(self.slow.max(1)));
        queue.at_host(when, self.owner, self.step(id));
        self.in_flight.insert(id, Flight { op, begun: self.time, hangs: false });
    }

    fn step(&self, op: OpId) -> Step {
        Step { disk: self.number, op, run: self.run }
    }

    /// Operations begun and not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Operations that ended; counts for [`Planned::at`].
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.ended
    }

    /// Ends an operation. `None` if its process died since, or the disk hangs.
    pub fn complete(&mut self, step: Step) -> Option<Completion> {
        if step.run != self.run {
            return None;
        }
        if self.hangs {
            if let Some(flight) = self.in_flight.get_mut(&step.op) {
                flight.hangs = true;
            }
            return None;
        }
        let Flight { op, begun, .. } = self.in_flight.remove(&step.op)?;
        let wrong = self.faults.of(self.ended, &op, self.fits(&op), &mut self.rng);
        self.ended += 1;
        let result = match wrong {
            None => Ok(self.run(&op, begun)),
            Some(Wrong::Error(kind)) => {
                self.happened.one(match kind {
                    DiskErrorKind::NoSpace => "disk: no space",
                    DiskErrorKind::Io => "disk: I/O error",
                });
                self.half(&op, begun);
                Err(DiskError { kind, text: format!("{kind:?} injected") })
            }
            Some(Wrong::Phantom) => {
                self.happened.one("disk: phantom write");
                Ok(Bytes::new())
            }
            Some(Wrong::Misdirected) => Ok(self.misdirect(op, begun)),
        };
        Some(Completion { op: step.op, result })
    }

    /// The disk accepts operations and ends none.
    pub fn hang(&mut self) {
        self.hangs = true;
        self.happened.one("disk: hangs");
    }

    /// What hung goes on.
    pub fn release<E: From<Step>>(&mut self, queue: &mut Queue<E>) {
        self.hangs = false;
        let run = self.run;
        for (op, flight) in self.in_flight.iter_mut().filter(|(_, flight)| flight.hangs) {
            flight.hangs = false;
            let when = queue.now() + self.settings.write.draw(&mut self.rng);
            queue.at_host(when, self.owner, Step { disk: self.number, op: *op, run });
        }
    }

    /// The data area may hold so many blocks.
    pub fn bound(&mut self, blocks: Option<usize>) {
        self.capacity = blocks;
    }

    /// There is no more space than what is allocated.
    pub fn fill(&mut self) {
        self.capacity = Some(self.allocated.len());
        self.happened.one("disk: full");
    }

    /// What the host holds for the data area.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        (self.allocated.len() * BLOCK_SIZE) as u64
    }

    /// What the host has free for the data area.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let blocks = self.capacity.unwrap_or(UNBOUNDED).saturating_sub(self.allocated.len());
        (blocks * BLOCK_SIZE) as u64
    }

    /// Power fails: unflushed sectors and those of operations in flight are old, new or garbage.
    pub fn power_loss(&mut self) {
        self.happened.one("disk: power loss");
        for (_, flight) in std::mem::take(&mut self.in_flight) {
            // A durable write in flight promises nothing yet.
            match flight.op {
                DiskOp::Write { area, offset, data, .. } => {
                    let op = DiskOp::Write { area, offset, data, durable: false };
                    self.run(&op, flight.begun);
                }
                DiskOp::Read { .. } | DiskOp::Sync { .. } => {}
                other => drop(self.run(&other, flight.begun)),
            }
        }
        // Some losses keep nearly everything, some nearly nothing.
        let keep = *self.rng.pick(&[0, 10, 50, 90, 100]);
        for written in std::mem::take(&mut self.unflushed) {
            if written.durable {
                self.medium.write(written.area, written.offset, &written.bytes);
                continue;
            }
            for start in (0..written.bytes.len()).step_by(SECTOR) {
                let at = written.offset + start as u64;
                if self.rng.chance(keep) {
                    let sector = written.bytes.slice(start..start + SECTOR);
                    self.medium.write(written.area, at, &sector);
                } else if self.rng.chance(5) {
                    self.happened.one("disk: garbage sector");
                    let garbage: Vec<u8> = (0..SECTOR).map(|_| self.rng.next_u64() as u8).collect();
                    self.medium.write(written.area, at, &garbage.into());
                } else {
                    self.happened.one("disk: lost sector");
                }
            }
        }
        self.seen = self.medium.clone();
        self.restart();
    }

    /// Only the process dies: what ended stays, what was in flight is done, or in part, or not.
    pub fn process_dies(&mut self) {
        for (_, flight) in std::mem::take(&mut self.in_flight) {
            self.happened.one("disk: operation cut off");
            match self.rng.below(4) {
                0 => {}
                1 => self.half(&flight.op, flight.begun),
                _ => drop(self.run(&flight.op, flight.begun)),
            }
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.run += 1;
        self.hangs = false;
    }

    /// Flips bits in so many of the sectors of a range of bytes that were ever written; returns in
    /// how many.
    pub fn rot(&mut self, area: Area, range: std::ops::Range<u64>, sectors: usize) -> usize {
        let sector = SECTOR as u64;
        let mut found = self.seen.sectors(area, range.start / sector..range.end.div_ceil(sector));
        self.rng.shuffle(&mut found);
        found.truncate(sectors);
        for number in &found {
            let at = number * sector;
            let mut bytes = self.seen.read(area, at, SECTOR).to_vec();
            if self.rng.chance(30) {
                bytes.fill(0xa5);
            } else {
                let place = self.rng.index(SECTOR);
                bytes[place] ^= 1 << self.rng.below(8);
            }
            self.damage(area, at, bytes);
        }
        self.happened.add("disk: rotten sector", found.len() as u64);
        found.len()
    }

    /// Puts other bytes on the disk, whole sectors, as if they had always been there.
    pub fn damage(&mut self, area: Area, offset: u64, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        assert!(bytes.len().is_multiple_of(SECTOR) && offset.is_multiple_of(SECTOR as u64));
        let end = offset + bytes.len() as u64;
        self.unflushed.retain(|other| !other.overlaps(area, offset, end));
        self.medium.write(area, offset, &bytes);
        self.seen.write(area, offset, &bytes);
    }

    /// The disk as it is, with everything that ended.
    #[must_use]
    pub fn snapshot(&self) -> Image {
        Image { platter: self.seen.clone(), allocated: self.allocated.clone() }
    }

    /// The disk goes back in time. Its process must not run.
    pub fn restore(&mut self, image: &Image) {
        self.happened.one("disk: back in time");
        self.replace(image.clone());
    }

    /// An empty disk takes its place. Its process must not run.
    pub fn wipe(&mut self) {
        self.happened.one("disk: wiped");
        self.replace(Image { platter: Platter::default(), allocated: BTreeSet::new() });
    }

    fn replace(&mut self, image: Image) {
        self.in_flight.clear();
        self.unflushed.clear();
        self.medium = image.platter.clone();
        self.seen = image.platter;
        self.allocated = image.allocated;
        self.restart();
    }

    /// The bytes as a read sees them.
    #[must_use]
    pub fn peek(&self, area: Area, offset: u64, len: usize) -> Bytes {
        self.seen.read(area, offset, len)
    }

    /// Does it at once and without faults, for preparing.
    pub fn run_now(&mut self, what: &DiskOp) {
        self.run(what, self.time);
    }

    fn fits(&self, what: &DiskOp) -> bool {
        let Some(capacity) = self.capacity else {
            return true;
        };
        let (offset, len) = match what {
            DiskOp::Write { area: Area::Data, offset, data, .. } => (*offset, length(data)),
            DiskOp::Allocate { offset, len } => (*offset, *len),
            _ => return true,
        };
        let new = blocks_of(offset, len).filter(|block| !self.allocated.contains(block));
        self.allocated.len() + new.count() <= capacity
    }

    /// An operation that failed may have been done in part.
    fn half(&mut self, what: &DiskOp, begun: u64) {
        let DiskOp::Write { area, offset, data, .. } = what else {
            return;
        };
        let sectors = self.rng.below(length(data) / SECTOR as u64 + 1) as usize;
        if !self.fits(what) {
            return;
        }
        let part = Bytes::from(data.concat()).slice(..sectors * SECTOR);
        let (area, offset) = (*area, *offset);
        self.run(&DiskOp::Write { area, offset, data: vec![part], durable: false }, begun);
    }

    /// A write lands where something else of its area is, or one block further.
    fn misdirect(&mut self, what: DiskOp, begun: u64) -> Bytes {
        let DiskOp::Write { area, offset, data, durable } = what else {
            return self.run(&what, begun);
        };
        self.happened.one("disk: misdirected write");
        let block = BLOCK_SIZE as u64;
        let others = self.seen.sectors(area, 0..u64::MAX / block);
        let other = others.get(self.rng.index(others.len().max(1)));
        let other = other.map_or(offset, |sector| sector * SECTOR as u64);
        // The same place in its block, so that it stays aligned.
        let mut elsewhere = other / block * block + offset % block;
        if elsewhere == offset {
            elsewhere += block;
        }
        self.run(&DiskOp::Write { area, offset: elsewhere, data, durable }, begun)
    }

    fn run(&mut self, what: &DiskOp, begun: u64) -> Bytes {
        self.time += 1;
        match what {
            DiskOp::Read { area, offset, len } => {
                aligned(*offset, *len as u64);
                return self.seen.read(*area, *offset, *len);
            }
            DiskOp::Write { area, offset, data, durable } => {
                if *area == Area::Data {
                    self.allocated.extend(blocks_of(*offset, length(data)));
                }
                if data.iter().all(|piece| piece.len().is_multiple_of(SECTOR)) {
                    let mut at = *offset;
                    for piece in data {
                        self.write(*area, at, piece.clone(), *durable);
                        at += piece.len() as u64;
                    }
                } else {
                    self.write(*area, *offset, data.concat().into(), *durable);
                }
            }
            DiskOp::Sync { area } => self.sync(*area, begun),
            DiskOp::Punch { offset, len } => {
                self.write(Area::Data, *offset, zeros(*len as usize), false);
                for block in blocks_of(*offset, *len) {
                    self.allocated.remove(&block);
                }
            }
            DiskOp::Allocate { offset, len } => self.allocated.extend(blocks_of(*offset, *len)),
            DiskOp::Extend { .. } => {}
        }
        Bytes::new()
    }

    fn write(&mut self, area: Area, offset: u64, bytes: Bytes, durable: bool) {
        aligned(offset, bytes.len() as u64);
        let end = offset + bytes.len() as u64;
        self.seen.write(area, offset, &bytes);
        if durable {
            self.medium.write(area, offset, &bytes);
            if !self.unflushed.iter().any(|older| older.overlaps(area, offset, end)) {
                return;
            }
        }
        self.unflushed.push(Unflushed { area, offset, bytes, durable, ended: self.time });
    }

    /// What ended before the flush began is on the medium now.
    fn sync(&mut self, area: Area, begun: u64) {
        let medium = &mut self.medium;
        // Durable ones guard against older ones only: without these they are done with.
        let mut older = false;
        self.unflushed.retain(|written| {
            if written.area != area {
                return true;
            }
            if written.durable || written.ended < begun {
                medium.write(area, written.offset, &written.bytes);
                return written.durable && older;
            }
            older = true;
            true
        });
    }
}

impl Unflushed {
    fn overlaps(&self, area: Area, offset: u64, end: u64) -> bool {
        self.area == area && self.offset < end && offset < self.offset + self.bytes.len() as u64
    }
}

fn aligned(offset: u64, len: u64) {
    let sector = SECTOR as u64;
    assert!(offset.is_multiple_of(sector) && len.is_multiple_of(sector), "not whole sectors");
}

fn length(data: &[Bytes]) -> u64 {
    data.iter().map(Bytes::len).sum::<usize>() as u64
}

fn blocks_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    let block = BLOCK_SIZE as u64;
    offset / block..(offset + len).div_ceil(block)
}

#[cfg(test)]
mod tests;
