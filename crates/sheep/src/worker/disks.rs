//! The disks of a worker: which of them holds a fragment, and what is to be said where one is lost.
//! A fragment never moves by itself: what lies on a lost disk is an I/O error until it is back.

use crate::cluster::ShardPack;
use crate::data::{Capacity, DiskState};
use sheepdog_store::Disk;
use sheepdog_types::{DiskId, Error, ErrorKind, FragmentId, Geometry, LineageId, Result};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes that a disk must have more than when it last refused a write before it is said to have space
/// again: what is free is an estimate, and clients try again all the time.
const SPACE_AGAIN: u64 = 8 << 20;

/// So long after the last refused write the log of a disk with space again is free: a checkpoint is
/// tried each second.
const LOG_FREED: Duration = Duration::from_secs(3);

/// One of them.
pub struct Slot {
    /// Which.
    pub id: DiskId,
    /// As PATH has it.
    pub path: PathBuf,
    /// Open, or why it was lost before it could be opened.
    pub disk: Result<Disk, String>,
    /// Since it began to refuse writes for want of space.
    full: Cell<Option<Full>>,
}

/// A disk that refuses writes.
#[derive(Clone, Copy)]
struct Full {
    /// When it last refused one.
    at: Instant,
    /// What was free then.
    free: u64,
    /// What is in the log only finds no place either: then the log cannot be freed.
    even_log: bool,
}

impl Slot {
    /// Open, or lost already.
    pub const fn new(id: DiskId, path: PathBuf, disk: Result<Disk, String>) -> Self {
        Self { id, path, disk, full: Cell::new(None) }
    }

    /// It had no space for a write. That is said once, and once more when it becomes worse, until it
    /// has space again.
    fn refused(&self) {
        let Ok(disk) = &self.disk else { return };
        let usage = disk.usage();
        let was = self.full.get();
        let even_log = usage.host_room < usage.used - usage.held;
        let even_log = even_log || was.is_some_and(|was| was.even_log);
        // When there is space again, writes are still refused until the log was freed.
        let least = was.filter(|_| even_log).map_or(usage.free, |was| was.free.min(usage.free));
        self.full.set(Some(Full { at: Instant::now(), free: least, even_log }));
        if was.is_some_and(|was| was.even_log == even_log) {
            return;
        }
        let which = if even_log { "writes" } else { "writes that need more space" };
        tracing::warn!("the disk {} is full: {which} are refused", self.path.display());
    }

    /// Says that there is space again, if it was full.
    fn look_for_space(&self) {
        if let (Ok(disk), Some(was)) = (&self.disk, self.full.get())
            && !disk.is_failed()
            && disk.usage().free >= was.free + SPACE_AGAIN
            && !(was.even_log && was.at.elapsed() < LOG_FREED)
        {
            self.full.set(None);
            tracing::warn!("the disk {} has space again", self.path.display());
        }
    }

    /// Why the disk cannot be used, if it cannot.
    fn lost(&self) -> Option<String> {
        match &self.disk {
            Ok(disk) => disk.failure(),
            Err(why) => Some(why.clone()),
        }
    }

    /// For a request that needs it.
    fn error(&self) -> Error {
        let why = self.lost().unwrap_or_default();
        Error::new(ErrorKind::Io, format!("the disk {} is lost: {why}", self.path.display()))
    }

    /// Its state, but for the scrub's.
    pub fn state(&self, nosync: bool) -> DiskState {
        let lost = self.lost();
        let open = self.disk.as_ref().ok();
        let usage = open.filter(|_| lost.is_none()).map(Disk::usage).unwrap_or_default();
        DiskState {
            id: self.id,
            path: self.path.clone(),
            lost,
            capacity: Capacity {
                total: usage.used + usage.free,
                used: usage.used,
                free: usage.free,
            },
            checksum_errors: open.map_or(0, |disk| disk.stats().checksum_errors),
            nosync,
            scrub: Default::default(),
        }
    }
}

/// See the module.
pub struct Disks {
    slots: Vec<Slot>,
    shards: ShardPack,
    /// By position in the pack's list of disks, the position in `slots`.
    order: Vec<usize>,
    geometry: Geometry,
}

impl Disks {
    /// # Errors
    /// [`ErrorKind::Internal`] when a disk of the pack is not among them.
    pub fn new(slots: Vec<Slot>, shards: ShardPack) -> Result<Self> {
        let position = |id: &DiskId| slots.iter().position(|slot| slot.id == *id);
        let order: Option<Vec<usize>> = shards.disks.iter().map(position).collect();
        let order = order.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the shard records name a disk this node has not")
        })?;
        let mut open = slots.iter().filter_map(|slot| slot.disk.as_ref().ok());
        let geometry = open.next().map_or(Geometry::STANDARD, Disk::geometry);
        if open.any(|disk| disk.geometry() != geometry) {
            let what = "the disks of this node divide fragments differently";
            return Err(Error::new(ErrorKind::Internal, what));
        }
        Ok(Self { slots, shards, order, geometry })
    }

    /// How fragments divide.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// All of them.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Those that were opened, failed since or not.
    pub fn open(&self) -> impl Iterator<Item = (&Path, &Disk)> {
        self.slots.iter().filter_map(|slot| Some((slot.path.as_path(), slot.disk.as_ref().ok()?)))
    }

    fn slot(&self, fragment: FragmentId) -> Option<&Slot> {
        self.slots.get(*self.order.get(self.shards.place(fragment))?)
    }

    /// The disk of a fragment had no space for a write to it.
    pub fn refused(&self, fragment: FragmentId) {
        if let Some(slot) = self.slot(fragment) {
            slot.refused();
        }
    }

    /// Says which of those that were full have space again.
    pub fn look_for_space(&self) {
        self.slots.iter().for_each(Slot::look_for_space);
    }

    /// Whether one is not lost.
    pub fn is_any_left(&self) -> bool {
        self.open().any(|(_, disk)| !disk.is_failed())
    }

    /// The disk of a fragment.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it is lost.
    pub fn of(&self, fragment: FragmentId) -> Result<&Disk> {
        let Some(slot) = self.slot(fragment) else {
            return Err(Error::new(ErrorKind::Internal, "a fragment without a disk"));
        };
        match &slot.disk {
            Ok(disk) if !disk.is_failed() => Ok(disk),
            _ => Err(slot.error()),
        }
    }

    /// The first fragment of its lineage at or after `from`, below `end`, that may have been
    /// written: on a lost disk nobody knows.
    pub fn next_fragment(&self, from: FragmentId, end: u64) -> Option<FragmentId> {
        let written = self.open().filter_map(|(_, disk)| disk.next_fragment(from)).min();
        if self.slots.iter().all(|slot| slot.disk.is_ok()) {
            return written;
        }
        let end = written.map_or(end, |id| id.number.min(end));
        let unknown = (from.number..end)
            .map(|number| FragmentId { number, ..from })
            .find(|id| self.slot(*id).is_none_or(|slot| slot.disk.is_err()));
        unknown.or(written)
    }

    /// Fragments of a lineage that were ever written, as far as the disks that are there know.
    pub fn fragments(&self, lineage: LineageId) -> Vec<FragmentId> {
        let mut all: Vec<_> = self.open().flat_map(|(_, disk)| disk.fragments(lineage)).collect();
        all.sort_unstable();
        all
    }

    /// # Errors
    /// [`ErrorKind::Io`] that names a lost disk, if there is one.
    pub fn none_lost(&self) -> Result<()> {
        match self.slots.iter().find(|slot| slot.lost().is_some()) {
            None => Ok(()),
            Some(slot) => Err(slot.error()),
        }
    }
}
