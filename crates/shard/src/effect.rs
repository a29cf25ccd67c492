//! What goes into the machines of this crate and what comes out.

use crate::authority::Activation;
use crate::lineages::Lineages;
use crate::message::Message;
use sheepdog_storelog::{Answer, Command, Held, RequestEntry};
use sheepdog_types::{DiskId, FragmentId, Interval, Process, RequestId, Result, ShardId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names a command to the store of a disk until its answer; unique in a shard of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Token(pub u64);

/// What the registry says of a shard, with what the map says of its disks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assignment {
    /// The newest interval.
    pub interval: Interval,
    /// Its acting set.
    pub acting: Vec<DiskId>,
    /// Who orders its writes.
    pub primary: Process,
    /// The last interval that was activated.
    pub last: Activation,
    /// Members of earlier ones since the shard was clean: they may have what nobody else has, and
    /// decide nothing.
    pub older: BTreeSet<DiskId>,
    /// The acting set is all that it should be, so that what it holds can be called clean.
    pub full: bool,
    /// Copies without which no write is taken.
    pub required: usize,
    /// Where disks are: at least those of `acting`, `last` and `older`, as far as they are up.
    pub hosts: BTreeMap<DiskId, Process>,
}

/// What a machine is told.
#[derive(Debug)]
pub enum Event {
    /// The registry's record of the shard changed, or where its disks are.
    Assigned(Assignment),
    /// A process says something.
    Message(Process, Message),
    /// The store of a disk has done something.
    Stored(DiskId, Token, Result<Answer>),
    /// There is a connection to a process, again or for the first time. What was sent before may
    /// have been lost.
    Connected(Process),
    /// The registry has what [`Effect::Activated`] asked for.
    Committed(Interval),
    /// Lineages and fences, from somewhere.
    Lineages(Arc<Lineages>),
    /// What the linearizable read gave that was begun for [`Effect::Fetch`] of that interval.
    Fetched(Interval, Arc<Lineages>),
    /// Time passed.
    Tick,
}

/// What a machine wants.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Say this to a process.
    Send(Process, Message),
    /// Have the store of a disk do this.
    Store(DiskId, Token, Command),
    /// Ask the coordinator to record that the interval is activated, if it is still the newest.
    Activated(Interval),
    /// Tell the coordinator that every member of the interval holds everything.
    Clean(Interval),
    /// Ask the coordinator for another interval: somebody who may have what this one waits for came too
    /// late for it.
    Again(Interval),
    /// Tell the coordinator of an interval that the registry may not know.
    KnowsLater {
        /// The replica's disk.
        disk: DiskId,
        /// Promised by a replica.
        promised: Interval,
        /// The last that a replica was activated in.
        les: Activation,
    },
    /// Read lineages and fences from the registry, linearizably, and say [`Event::Fetched`].
    Fetch(Interval),
    /// No request that the lineages of this revision refuse is on its way in that interval any more. It
    /// counts if the interval is the newest then.
    FencesInForce(Interval, u64),
    /// A disk cannot go on, for this reason: it refused what had to be done.
    DiskFailed(DiskId, String),
    /// A rule was broken: the shard stops here.
    Broken(ShardId, &'static str),
}

/// What a disk durably holds, as its store tells without waiting.
pub trait Disk {
    /// A fragment; none if it holds nothing of it, not even a tombstone.
    fn held(&self, fragment: FragmentId) -> Option<Held>;
    /// The shard's requests.
    fn requests(&self, shard: ShardId) -> Vec<(RequestId, RequestEntry)>;
    /// Bytes that clients may still write in one of its shards.
    fn room(&self) -> u64;
}

/// The disks of this process.
pub trait Disks {
    /// One of them, unless it is lost.
    fn disk(&self, disk: DiskId) -> Option<&dyn Disk>;
}

/// The copy that a disk holds of a fragment.
#[must_use]
pub fn copy_of(disk: &dyn Disk, fragment: FragmentId) -> crate::authority::Copy {
    disk.held(fragment).map_or_else(crate::authority::Copy::default, |held| {
        crate::authority::Copy { head: held.head, needed: held.needed }
    })
}

/// The head that the next write of a fragment names: tombstones up to the floor are as good as gone,
/// whether a disk has dropped its own yet or not.
#[must_use]
pub fn head_of(disk: &dyn Disk, fragment: FragmentId, floor: Version) -> Version {
    match disk.held(fragment) {
        Some(held) if held.empty && held.needed.is_none() && held.head <= floor => Version::ZERO,
        Some(held) => held.needed.unwrap_or(held.head),
        None => Version::ZERO,
    }
}
