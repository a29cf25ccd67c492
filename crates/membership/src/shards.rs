//! Shard records, packed many to a key.
//!
//! Disks and processes are named once per pack and referred to by position. Records change only
//! through the methods here, which keep the rules: interval numbers only grow, `last` is the last
//! activated interval, and no member set is forgotten before the shard was clean.

use crate::keys::{OLDER_MAX, PACK_SHARDS, SEATS_MAX};
use crate::persist::{self, FORMAT, StoredProcess, damaged};
use bytes::Bytes;
use prost::Message;
use sheepdog_types::{DiskId, Interval, Process, Result};
use std::collections::{BTreeMap, BTreeSet};

const WHAT: &str = "a pack of shard records";

/// A member of an acting set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seat {
    /// Its disk.
    pub disk: DiskId,
    /// The process that has the disk. A restarted one must be activated anew, so it takes a new
    /// interval, whether it is primary or not.
    pub process: Process,
    /// It had everything at a Clean, and has been in every acting set since.
    pub complete: bool,
}

/// An interval that served, and who had to confirm every write in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Activation {
    /// Which.
    pub interval: Interval,
    /// Its acting set.
    pub members: BTreeSet<DiskId>,
}

/// The state of one shard, as the registry has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardRecord {
    /// The present interval.
    pub cur: Interval,
    /// Its acting set, no disk twice.
    pub acting: Vec<Seat>,
    /// The position in it of the disk whose process orders; `None` only before the first interval.
    pub primary: Option<u8>,
    /// J: the last activated interval; 0 and nobody before the first.
    pub last: Activation,
    /// Activations before J since the last clean one, oldest first: to find lost data only.
    pub older: Vec<Activation>,
}

impl ShardRecord {
    /// The process that orders.
    #[must_use]
    pub fn primary(&self) -> Option<Process> {
        self.primary_seat().map(|seat| seat.process)
    }

    /// The seat of the process that orders.
    #[must_use]
    pub fn primary_seat(&self) -> Option<&Seat> {
        self.acting.get(usize::from(self.primary?))
    }

    /// The seat of a disk.
    #[must_use]
    pub fn seat(&self, disk: DiskId) -> Option<&Seat> {
        self.acting.iter().find(|seat| seat.disk == disk)
    }

    /// The disks of the acting set.
    #[must_use]
    pub fn disks(&self) -> BTreeSet<DiskId> {
        self.acting.iter().map(|seat| seat.disk).collect()
    }

    /// Whether the present interval serves.
    #[must_use]
    pub fn is_activated(&self) -> bool {
        self.last.interval == self.cur && self.cur.0 > 0
    }

    /// Whether it serves and every member has everything.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_activated() && self.older.is_empty() && self.acting.iter().all(|s| s.complete)
    }

    /// Whether a disk is named anywhere in it.
    #[must_use]
    pub fn names(&self, disk: DiskId) -> bool {
        self.seat(disk).is_some()
            || self.last.members.contains(&disk)
            || self.older.iter().any(|old| old.members.contains(&disk))
    }

    /// Begins an interval after the present one and after `known`. Seats keep `complete` only
    /// where they had it. `false`, and nothing happens, when all numbers are used.
    #[must_use]
    pub fn begin(
        &mut self,
        known: Interval,
        seats: &[(DiskId, Process)],
        primary: impl Into<Option<DiskId>>,
    ) -> bool {
        let Some(next) = self.cur.max(known).0.checked_add(1) else {
            return false;
        };
        let seat = |(disk, process): &(DiskId, Process)| Seat {
            disk: *disk,
            process: *process,
            complete: self.seat(*disk).is_some_and(|seat| seat.complete),
        };
        let acting: Vec<Seat> = seats.iter().map(seat).collect();
        let primary = primary.into();
        let primary = acting.iter().position(|seat| Some(seat.disk) == primary);
        self.primary = primary.and_then(|at| u8::try_from(at).ok());
        self.acting = acting;
        self.cur = Interval(next);
        true
    }

    /// The present interval serves from now on. The activation before it is remembered until the
    /// shard is clean.
    ///
    /// Of [`OLDER_MAX`] remembered ones none is forgotten: one with the same members is renewed,
    /// and beyond the limit the two oldest become one, with the members of both and the later of
    /// their intervals.
    pub fn activate(&mut self) {
        if self.is_activated() {
            return;
        }
        let new = Activation { interval: self.cur, members: self.disks() };
        let last = std::mem::replace(&mut self.last, new);
        self.remember(last);
    }

    /// Adds an activation to those since the last clean one, see [`ShardRecord::activate`].
    pub fn remember(&mut self, activation: Activation) {
        if activation.members.is_empty() {
            return;
        }
        self.older.retain(|old| old.members != activation.members);
        let at = self.older.partition_point(|old| old.interval < activation.interval);
        self.older.insert(at, activation);
        while self.older.len() > OLDER_MAX {
            let oldest = self.older.remove(0);
            self.older[0].members.extend(oldest.members);
        }
    }

    /// Every member of the present, activated interval has everything: what was before it is not
    /// needed any more.
    pub fn clean(&mut self) {
        if self.is_activated() {
            self.older.clear();
            self.acting.iter_mut().for_each(|seat| seat.complete = true);
        }
    }
}

/// The records of [`PACK_SHARDS`] neighbouring shards, by the lower bits of their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardPack {
    /// Those that exist.
    pub shards: BTreeMap<u32, ShardRecord>,
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    disks: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    processes: Vec<StoredProcess>,
    #[prost(message, repeated, tag = "4")]
    shards: Vec<StoredShard>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredShard {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(uint64, tag = "2")]
    cur: u64,
    /// Positions of disks.
    #[prost(uint32, repeated, tag = "3")]
    acting: Vec<u32>,
    /// Positions of their processes.
    #[prost(uint32, repeated, tag = "4")]
    processes: Vec<u32>,
    /// A bit for each seat.
    #[prost(uint64, tag = "5")]
    complete: u64,
    /// Position in `acting`, plus 1.
    #[prost(uint32, tag = "6")]
    primary: u32,
    #[prost(message, optional, tag = "7")]
    last: Option<StoredActivation>,
    #[prost(message, repeated, tag = "8")]
    older: Vec<StoredActivation>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredActivation {
    #[prost(uint64, tag = "1")]
    interval: u64,
    #[prost(uint32, repeated, tag = "2")]
    members: Vec<u32>,
}

/// What a pack's records refer to by position, in the order of ids, so that equal packs are equal
/// bytes.
struct Tables {
    disks: Vec<DiskId>,
    processes: Vec<Process>,
}

impl Tables {
    fn of(pack: &ShardPack) -> Self {
        let mut disks = BTreeSet::new();
        let mut processes = BTreeSet::new();
        for record in pack.shards.values() {
            disks.extend(record.acting.iter().map(|seat| seat.disk));
            processes.extend(record.acting.iter().map(|seat| seat.process));
            disks.extend(record.last.members.iter().copied());
            disks.extend(record.older.iter().flat_map(|old| old.members.iter().copied()));
        }
        Self { disks: disks.into_iter().collect(), processes: processes.into_iter().collect() }
    }

    /// Every id that is asked for was put in by [`Tables::of`].
    fn disk(&self, disk: DiskId) -> u32 {
        self.disks.partition_point(|d| *d < disk) as u32
    }

    fn activation(&self, activation: &Activation) -> StoredActivation {
        StoredActivation {
            interval: activation.interval.0,
            members: activation.members.iter().map(|disk| self.disk(*disk)).collect(),
        }
    }

    fn store(&self, number: u32, record: &ShardRecord) -> StoredShard {
        let seats = &record.acting;
        let process = |seat: &Seat| self.processes.partition_point(|p| *p < seat.process) as u32;
        let complete = (0..64).zip(seats).filter(|(_, seat)| seat.complete);
        StoredShard {
            number,
            cur: record.cur.0,
            acting: seats.iter().map(|seat| self.disk(seat.disk)).collect(),
            processes: seats.iter().map(process).collect(),
            complete: complete.map(|(at, _)| 1u64 << at).sum(),
            primary: record.primary.map_or(0, |at| u32::from(at) + 1),
            last: Some(self.activation(&record.last)),
            older: record.older.iter().map(|old| self.activation(old)).collect(),
        }
    }

    fn loaded(&self, stored: &StoredActivation) -> Option<Activation> {
        let members = stored.members.iter().map(|at| self.disks.get(*at as usize).copied());
        let members: BTreeSet<DiskId> = members.collect::<Option<_>>()?;
        let whole = members.len() == stored.members.len();
        whole.then_some(Activation { interval: Interval(stored.interval), members })
    }

    fn load(&self, stored: &StoredShard) -> Option<ShardRecord> {
        let seats = stored.acting.iter().zip(&stored.processes).enumerate();
        let seats = seats.map(|(at, (disk, process))| {
            Some(Seat {
                disk: *self.disks.get(*disk as usize)?,
                process: *self.processes.get(*process as usize)?,
                complete: stored.complete.checked_shr(at as u32).is_some_and(|bits| bits & 1 == 1),
            })
        });
        let record = ShardRecord {
            cur: Interval(stored.cur),
            acting: seats.collect::<Option<_>>()?,
            primary: stored.primary.checked_sub(1).map(u8::try_from).transpose().ok()?,
            last: self.loaded(stored.last.as_ref()?)?,
            older: stored.older.iter().map(|old| self.loaded(old)).collect::<Option<_>>()?,
        };
        let count = record.acting.len();
        let good = count == stored.acting.len()
            && count == stored.processes.len()
            && count <= SEATS_MAX
            && record.disks().len() == count
            && record.primary.is_none_or(|at| usize::from(at) < count)
            && record.last.interval <= record.cur
            && record.older.len() <= OLDER_MAX
            && stored.number < PACK_SHARDS;
        good.then_some(record)
    }
}

impl ShardPack {
    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let tables = Tables::of(self);
        let shards = self.shards.iter();
        persist::encode(&Stored {
            format: FORMAT,
            disks: tables.disks.iter().flat_map(|disk| disk.0).collect(),
            processes: tables.processes.iter().map(|p| StoredProcess::from(*p)).collect(),
            shards: shards.map(|(number, record)| tables.store(*number, record)).collect(),
        })
    }

    /// The records those bytes hold.
    ///
    /// # Errors
    /// As [`crate::MapRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: Stored = persist::decode(WHAT, bytes)?;
        stored.check().ok_or_else(|| damaged(WHAT))
    }
}

impl Stored {
    fn check(&self) -> Option<ShardPack> {
        let disks = self.disks.chunks(16).map(persist::disk).collect::<Option<_>>()?;
        let processes = self.processes.iter().map(StoredProcess::process);
        let tables = Tables { disks, processes: processes.collect::<Option<_>>()? };
        let mut shards = BTreeMap::new();
        for stored in &self.shards {
            if shards.insert(stored.number, tables.load(stored)?).is_some() {
                return None;
            }
        }
        Some(ShardPack { shards })
    }
}

#[cfg(test)]
mod tests;
