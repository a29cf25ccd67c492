//! How operations of a simulated disk fail: some of many, or exactly one.

use super::disk::Rng;
use bytes::Bytes;
use sheepdog_storelog::io::{Area, DiskErrorKind, DiskOp};
use sheepdog_types::BLOCK_SIZE;

/// How often operations fail, in thousandths.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// Writes, reservations and punches in the data area find no space.
    pub no_space: u64,
    /// Reads fail.
    pub read: u64,
    /// Writes and flushes fail.
    pub write: u64,
    /// One of them fails, or all from there on.
    pub planned: Option<Planned>,
}

/// A fault at one place of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// The first operation that it may meet, in the order in which they end.
    pub at: u64,
    pub kind: DiskErrorKind,
    pub reach: Reach,
}

/// Which operations a planned fault meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// That one.
    Once,
    /// All from there on.
    Always,
    /// From there on all that touch the place that it touches.
    Region(Area, u64),
}

/// What an operation is, as far as faults tell the difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    Read,
    Sync,
    WriteLog,
    /// Superblock and slots, whose place is allocated.
    WriteSlot,
    /// Everything else that may find no space.
    Space,
}

/// Bytes that a bad place of a disk takes.
const REGION: u64 = 1 << 16;

impl OpKind {
    pub fn of(what: &DiskOp) -> Self {
        match what {
            DiskOp::Read { .. } => Self::Read,
            DiskOp::Sync { .. } => Self::Sync,
            DiskOp::Write { area: Area::Log, .. } => Self::WriteLog,
            DiskOp::Write { offset, .. } if *offset < 3 * BLOCK_SIZE as u64 => Self::WriteSlot,
            _ => Self::Space,
        }
    }
}

/// The place that an operation touches.
pub fn place(what: &DiskOp) -> Option<(Area, u64, u64)> {
    match what {
        DiskOp::Read { area, offset, len } => Some((*area, *offset, *len as u64)),
        DiskOp::Write { area, offset, data, .. } => {
            Some((*area, *offset, data.iter().map(Bytes::len).sum::<usize>() as u64))
        }
        DiskOp::Punch { offset, len } | DiskOp::Allocate { offset, len } => {
            Some((Area::Data, *offset, *len))
        }
        DiskOp::Sync { .. } | DiskOp::Extend { .. } => None,
    }
}

impl Faults {
    /// Whether and how the `number`-th operation fails; `fits` if the host has space for it.
    pub fn of(
        &self,
        number: u64,
        what: &DiskOp,
        fits: bool,
        rng: &mut Rng,
    ) -> Option<DiskErrorKind> {
        let mut hit = |thousandths| thousandths > 0 && rng.below(1000) < thousandths;
        let kind = OpKind::of(what);
        let io = if kind == OpKind::Read { hit(self.read) } else { hit(self.write) };
        let space = kind == OpKind::Space && (hit(self.no_space) || !fits);
        let planned = self.planned.filter(|planned| planned.meets(number, what));
        match planned {
            Some(planned) => Some(planned.kind),
            None if io => Some(DiskErrorKind::Io),
            None if space => Some(DiskErrorKind::NoSpace),
            None => None,
        }
    }
}

impl Planned {
    fn meets(&self, number: u64, what: &DiskOp) -> bool {
        let space = self.kind != DiskErrorKind::NoSpace || OpKind::of(what) == OpKind::Space;
        let there = match self.reach {
            Reach::Once => number == self.at,
            Reach::Always => true,
            Reach::Region(area, offset) => place(what).is_some_and(|(found, start, len)| {
                let first = offset / REGION * REGION;
                found == area && start < first + REGION && start + len > first
            }),
        };
        number >= self.at && space && there
    }
}
