//! How operations of a simulated disk go wrong: some of many, or exactly one.

use super::length;
use crate::Rng;
use sheepdog_storelog::io::{Area, DiskErrorKind, DiskOp};
use sheepdog_types::BLOCK_SIZE;

/// How often operations go wrong, in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Faults {
    /// Writes, reservations and punches in the data area find no space.
    pub no_space: u64,
    /// Reads fail.
    pub read: u64,
    /// Writes and flushes fail.
    pub write: u64,
    /// Writes land somewhere else in their area, and are acknowledged.
    pub misdirected: u64,
    /// Writes are acknowledged and not done.
    pub phantom: u64,
    /// One of them goes wrong, or all from there on.
    pub planned: Option<Planned>,
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// It fails, and says so.
    Error(DiskErrorKind),
    /// A write lands somewhere else.
    Misdirected,
    /// A write is not done.
    Phantom,
}

/// A fault at one place of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// The first operation that it may meet, in the order in which they end.
    pub at: u64,
    /// What goes wrong.
    pub wrong: Wrong,
    /// For how long, or where.
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

/// Bytes that a bad place of a disk takes.
const REGION: u64 = 1 << 16;

/// What an operation is, as far as faults tell the difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OpKind {
    Read,
    Sync,
    WriteLog,
    /// Superblock and slots, whose place is allocated.
    WriteSlot,
    /// Everything else that may find no space.
    Space,
}

impl OpKind {
    fn of(what: &DiskOp) -> Self {
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
fn place(what: &DiskOp) -> Option<(Area, u64, u64)> {
    match what {
        DiskOp::Read { area, offset, len } => Some((*area, *offset, *len as u64)),
        DiskOp::Write { area, offset, data, .. } => Some((*area, *offset, length(data))),
        DiskOp::Punch { offset, len } | DiskOp::Allocate { offset, len } => {
            Some((Area::Data, *offset, *len))
        }
        DiskOp::Sync { .. } | DiskOp::Extend { .. } => None,
    }
}

impl Faults {
    /// Whether and how the `number`-th operation goes wrong; `fits` if the host has space for it.
    pub(super) fn of(
        &self,
        number: u64,
        what: &DiskOp,
        fits: bool,
        rng: &mut Rng,
    ) -> Option<Wrong> {
        let kind = OpKind::of(what);
        let writes = matches!(what, DiskOp::Write { .. });
        let io = rng.rare(if kind == OpKind::Read { self.read } else { self.write });
        let space = kind == OpKind::Space && (rng.rare(self.no_space) || !fits);
        let misdirected = writes && rng.rare(self.misdirected);
        let phantom = writes && rng.rare(self.phantom);
        match self.planned.filter(|planned| planned.meets(number, what)) {
            Some(planned) => Some(planned.wrong),
            None if io => Some(Wrong::Error(DiskErrorKind::Io)),
            None if space => Some(Wrong::Error(DiskErrorKind::NoSpace)),
            None if misdirected => Some(Wrong::Misdirected),
            None if phantom => Some(Wrong::Phantom),
            None => None,
        }
    }
}

impl Planned {
    fn meets(&self, number: u64, what: &DiskOp) -> bool {
        let can = match self.wrong {
            Wrong::Error(DiskErrorKind::NoSpace) => OpKind::of(what) == OpKind::Space,
            Wrong::Error(DiskErrorKind::Io) => true,
            Wrong::Misdirected | Wrong::Phantom => matches!(what, DiskOp::Write { .. }),
        };
        let there = match self.reach {
            Reach::Once => number == self.at,
            Reach::Always => true,
            Reach::Region(area, offset) => place(what).is_some_and(|(found, start, len)| {
                let first = offset / REGION * REGION;
                found == area && start < first + REGION && start + len > first
            }),
        };
        number >= self.at && can && there
    }
}
