//! The small records: what a node says of itself, stamps of disks, sets of shards, settings,
//! fences, and the ephemeral keys.

use crate::keys::{ADDRESS_BYTES_MAX, DISKS_MAX};
use crate::persist::{self, FORMAT, StoredProcess, damaged};
use bytes::Bytes;
use prost::Message;
use sheepdog_placement::{BITS_MAX, Exception, Policy, VNODES_MAX, WIDTH_MAX};
use sheepdog_types::{DiskId, NodeId, Process, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What a node says of itself: only that node writes it, by CAS, and the coordinator takes it into
/// the map. It holds the incarnation, so a new process takes one that nobody else can have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    /// Of the newest process. All older ones are fenced by this record.
    pub incarnation: u64,
    /// Where it listens.
    pub address: String,
    /// Its failure domain.
    pub zone: u32,
    /// The weight it was started with.
    pub vnodes: u32,
    /// It wants to leave.
    pub leaving: bool,
    /// The disks it serves, with their weights. One that failed is not among them.
    pub disks: BTreeMap<DiskId, u64>,
}

impl NodeRecord {
    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        persist::encode(&StoredNode {
            format: FORMAT,
            incarnation: self.incarnation,
            address: self.address.clone(),
            zone: self.zone,
            vnodes: self.vnodes,
            leaving: self.leaving,
            disks: self.disks.keys().flat_map(|disk| disk.0).collect(),
            weights: self.disks.values().copied().collect(),
        })
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// As [`crate::MapRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the record of a node";
        let stored: StoredNode = persist::decode(what, bytes)?;
        let ids = stored.disks.chunks(16).map(persist::disk).collect::<Option<Vec<_>>>();
        let ids = ids.filter(|ids| ids.len() == stored.weights.len() && ids.len() <= DISKS_MAX);
        let ids = ids.ok_or_else(|| damaged(what))?;
        let count = ids.len();
        let disks: BTreeMap<_, _> = ids.into_iter().zip(stored.weights).collect();
        let good = disks.len() == count
            && stored.address.len() <= ADDRESS_BYTES_MAX
            && stored.vnodes <= VNODES_MAX;
        if !good {
            return Err(damaged(what));
        }
        Ok(Self {
            incarnation: stored.incarnation,
            address: stored.address,
            zone: stored.zone,
            vnodes: stored.vnodes,
            leaving: stored.leaving,
            disks,
        })
    }
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct StoredNode {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(uint32, tag = "4")]
    zone: u32,
    #[prost(uint32, tag = "5")]
    vnodes: u32,
    #[prost(bool, tag = "6")]
    leaving: bool,
    #[prost(bytes = "vec", tag = "7")]
    disks: Vec<u8>,
    #[prost(uint64, repeated, tag = "8")]
    weights: Vec<u64>,
}

/// How far a disk has come. It only grows, so a disk that shows less than what was recorded of it
/// was rolled back or is another one. Recorded under the disk's own key by the node that has it,
/// and not in the map: the map would change for each disk every ten minutes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp {
    /// Grows when the disk is prepared anew.
    pub generation: u64,
    /// Grows with each checkpoint.
    pub serial: u64,
}

impl Stamp {
    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let (generation, serial) = (self.generation, self.serial);
        persist::encode(&StoredStamp { format: FORMAT, generation, serial })
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// As [`crate::MapRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: StoredStamp = persist::decode("the stamp of a disk", bytes)?;
        Ok(Self { generation: stored.generation, serial: stored.serial })
    }
}

/// See [`StoredNode`].
#[derive(Clone, PartialEq, Message)]
struct StoredStamp {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(uint64, tag = "3")]
    serial: u64,
}

/// A set of shards. It is written in one transaction with the map that its exceptions belong to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetRecord {
    /// How its data is kept.
    pub policy: Policy,
    /// Its shards, as a power of two.
    pub bits: u8,
    /// What placement needs beside the map.
    pub exceptions: Vec<Exception>,
}

impl SetRecord {
    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (data, parity) = match self.policy {
            Policy::Copies(copies) => (copies.into(), 0),
            Policy::Erasure { data, parity } => (data.into(), parity.into()),
        };
        persist::encode(&StoredSet {
            format: FORMAT,
            erasure: matches!(self.policy, Policy::Erasure { .. }),
            data,
            parity,
            bits: self.bits.into(),
            shards: self.exceptions.iter().map(|e| e.shard).collect(),
            wanted: self.exceptions.iter().flat_map(|e| e.wanted.0).collect(),
            instead: self.exceptions.iter().flat_map(|e| e.instead.0).collect(),
        })
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// As [`crate::MapRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the record of a set of shards";
        let stored: StoredSet = persist::decode(what, bytes)?;
        stored.check().ok_or_else(|| damaged(what))
    }
}

/// See [`StoredNode`].
#[derive(Clone, PartialEq, Message)]
struct StoredSet {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bool, tag = "2")]
    erasure: bool,
    #[prost(uint32, tag = "3")]
    data: u32,
    #[prost(uint32, tag = "4")]
    parity: u32,
    #[prost(uint32, tag = "5")]
    bits: u32,
    #[prost(uint32, repeated, tag = "6")]
    shards: Vec<u32>,
    #[prost(bytes = "vec", tag = "7")]
    wanted: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    instead: Vec<u8>,
}

impl StoredSet {
    fn check(&self) -> Option<SetRecord> {
        let (data, parity) = (u8::try_from(self.data).ok()?, u8::try_from(self.parity).ok()?);
        let policy =
            if self.erasure { Policy::Erasure { data, parity } } else { Policy::Copies(data) };
        let bits = u8::try_from(self.bits).ok().filter(|bits| *bits <= BITS_MAX)?;
        let width = policy.width();
        let count = self.shards.len();
        let good = (1..=u32::from(WIDTH_MAX)).contains(&width)
            && (self.erasure || parity == 0)
            && self.wanted.len() == count * 16
            && self.instead.len() == count * 16;
        if !good {
            return None;
        }
        let pairs = self.wanted.chunks(16).zip(self.instead.chunks(16));
        let exceptions = self.shards.iter().zip(pairs).map(|(shard, (wanted, instead))| {
            let (wanted, instead) = (persist::disk(wanted)?, persist::disk(instead)?);
            Some(Exception { shard: *shard, wanted, instead })
        });
        Some(SetRecord { policy, bits, exceptions: exceptions.collect::<Option<_>>()? })
    }
}

/// What the operator may set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Milliseconds that a node may be away before its data is made again. 0: at once, as of old.
    pub grace: u64,
    /// Copies a write needs, see [`Settings::required`]; `None` for the policy's own number.
    pub min_copies: Option<u8>,
    /// Shards halt where there are fewer zones than copies.
    pub strict: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { grace: 10 * 60 * 1000, min_copies: None, strict: false }
    }
}

impl Settings {
    /// Disks that must act for a shard to take writes, where `zones` have not left cleanly.
    #[must_use]
    pub fn required(self, policy: Policy, zones: usize) -> usize {
        let usual = match policy {
            Policy::Copies(copies) if copies >= 3 => 2,
            Policy::Copies(_) => 1,
            Policy::Erasure { data, .. } => usize::from(data) + 1,
        };
        // Nobody can ask for more than there are members.
        let wanted = self.min_copies.map_or(usual, usize::from).min(policy.width() as usize);
        wanted.min(zones).max(1)
    }

    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(self) -> Bytes {
        persist::encode(&StoredSettings {
            format: FORMAT,
            grace: self.grace,
            min_copies: self.min_copies.map(u32::from),
            strict: self.strict,
        })
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// As [`crate::MapRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the settings";
        let stored: StoredSettings = persist::decode(what, bytes)?;
        let min_copies = stored.min_copies.map(u8::try_from).transpose();
        let min_copies = min_copies.map_err(|_| damaged(what))?;
        Ok(Self { grace: stored.grace, min_copies, strict: stored.strict })
    }
}

/// See [`StoredNode`].
#[derive(Clone, PartialEq, Message)]
struct StoredSettings {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    grace: u64,
    #[prost(uint32, optional, tag = "3")]
    min_copies: Option<u32>,
    #[prost(bool, tag = "4")]
    strict: bool,
}

/// What never counts again. Fences are never taken back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fences {
    /// By node, the newest incarnation that was fenced explicitly; all older ones are too.
    pub processes: BTreeMap<NodeId, u64>,
    /// Disks given up by the last resort: sources for inspection, never members again.
    pub disks: BTreeSet<DiskId>,
}

impl Fences {
    /// Whether a process was fenced explicitly. It is also fenced when its node's record or map
    /// entry has a newer incarnation.
    #[must_use]
    pub fn process(&self, process: Process) -> bool {
        self.processes.get(&process.node).is_some_and(|newest| process.incarnation <= *newest)
    }

    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let process = |(node, incarnation): (&NodeId, &u64)| {
            StoredProcess::from(Process { node: *node, incarnation: *incarnation })
        };
        persist::encode(&StoredFences {
            format: FORMAT,
            processes: self.processes.iter().map(process).collect(),
            disks: self.disks.iter().flat_map(|disk| disk.0).collect(),
        })
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// As [`crate::MapRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the record of fences";
        let stored: StoredFences = persist::decode(what, bytes)?;
        let processes = stored.processes.iter().map(|stored| {
            let process = stored.process().ok_or_else(|| damaged(what))?;
            Ok((process.node, process.incarnation))
        });
        let disks = stored.disks.chunks(16);
        let disks = disks.map(|disk| persist::disk(disk).ok_or_else(|| damaged(what)));
        Ok(Self {
            processes: processes.collect::<Result<_>>()?,
            disks: disks.collect::<Result<_>>()?,
        })
    }
}

/// See [`StoredNode`].
#[derive(Clone, PartialEq, Message)]
struct StoredFences {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(message, repeated, tag = "2")]
    processes: Vec<StoredProcess>,
    #[prost(bytes = "vec", tag = "3")]
    disks: Vec<u8>,
}

/// The value of the ephemeral keys: the process they are of.
#[must_use]
pub fn encode_process(process: Process) -> Bytes {
    persist::encode(&StoredAlive { format: FORMAT, process: Some(process.into()) })
}

/// See [`encode_process`].
///
/// # Errors
/// As [`crate::MapRecord::decode`].
pub fn decode_process(bytes: &[u8]) -> Result<Process> {
    let what = "a sign of life";
    let stored: StoredAlive = persist::decode(what, bytes)?;
    let process = stored.process.as_ref().and_then(StoredProcess::process);
    process.ok_or_else(|| damaged(what))
}

/// See [`StoredNode`].
#[derive(Clone, PartialEq, Message)]
struct StoredAlive {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(message, optional, tag = "2")]
    process: Option<StoredProcess>,
}

#[cfg(test)]
mod tests;
