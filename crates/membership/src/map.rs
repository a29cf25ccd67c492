//! The cluster map: which nodes and disks there are and what state they are in.
//!
//! The **epoch** counts what people see in lists of nodes: it grows by one with each change of the
//! set of nodes that are up, of their zones, weights and disks. That a node that went is out now,
//! or that one is to be drained, is not a new epoch; the map's revision in the registry tells such
//! changes apart.
//!
//! **Grace.** There is no time that all coordinators share. A node that went is stored with the
//! grace it has left; the coordinator counts that down on its own clock and stores it again each
//! time a tenth has passed . A new coordinator goes on from what is stored:
//! each change of coordinator may lengthen the grace by a tenth, none can shorten it.

use crate::keys::{ADDRESS_BYTES_MAX, DISKS_MAX, NODES_MAX};
use crate::persist::{self, damaged};
use bytes::Bytes;
use prost::Message;
use sheepdog_placement as placement;
use sheepdog_types::{DiskId, NodeId, Process, Result};
use std::collections::{BTreeMap, BTreeSet};

const WHAT: &str = "the cluster map";

/// What became of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeState {
    /// It serves.
    Up,
    /// It went without a word; its data waits for it.
    Down {
        /// Milliseconds until it is out.
        grace: u64,
    },
    /// It left cleanly; its data waits for it.
    Left {
        /// Milliseconds until it is out.
        grace: u64,
    },
    /// It was away for longer than the grace: its data is made again elsewhere.
    Out {
        /// Whether it had left cleanly.
        clean: bool,
    },
}

impl NodeState {
    /// Whether its zone need not be waited for: it went with a word.
    #[must_use]
    pub const fn left_cleanly(self) -> bool {
        matches!(self, Self::Left { .. } | Self::Out { clean: true })
    }
}

/// What became of a disk, as far as it is not its node's state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum DiskState {
    /// It serves when its node does.
    #[default]
    In,
    /// Its node failed it, or came back without it. Its data is made again at once.
    Lost,
    /// Its data is to be moved away.
    Draining,
    /// The operator took it out.
    Out,
}

/// A disk of the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskEntry {
    /// Its share among the disks of its node.
    pub weight: u64,
    /// See there.
    pub state: DiskState,
}

/// A node of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    /// Of its newest process that was up.
    pub incarnation: u64,
    /// Where that listens.
    pub address: String,
    /// Its failure domain.
    pub zone: u32,
    /// Its weight; 0 is a gateway.
    pub vnodes: u32,
    /// Whether the operator chose the weight, so that the node's own wish is not looked at.
    pub vnodes_fixed: bool,
    /// See there.
    pub state: NodeState,
    /// All its data is to be moved away.
    pub draining: bool,
    /// Its disks.
    pub disks: BTreeMap<DiskId, DiskEntry>,
}

/// The cluster map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapRecord {
    /// See the [module](self).
    pub epoch: u64,
    /// All nodes that were ever up, until they are removed.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Sets of shards that halt, because the cluster is strict and has fewer zones than copies.
    pub halted: BTreeSet<u16>,
}

impl MapRecord {
    /// The process of a node that is up.
    #[must_use]
    pub fn process(&self, node: NodeId) -> Option<Process> {
        let entry = self.nodes.get(&node).filter(|entry| entry.state == NodeState::Up)?;
        Some(Process { node, incarnation: entry.incarnation })
    }

    /// The processes of all nodes that are up.
    pub fn up(&self) -> impl Iterator<Item = Process> + '_ {
        self.nodes.keys().filter_map(|node| self.process(*node))
    }

    /// The node that has a disk.
    #[must_use]
    pub fn owner(&self, disk: DiskId) -> Option<NodeId> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, entry)| entry.disks.contains_key(&disk)).map(|(node, _)| *node)
    }

    /// What an epoch is the version of.
    #[must_use]
    pub fn listed(&self) -> BTreeMap<NodeId, (u32, u32, BTreeMap<DiskId, u64>)> {
        let up = self.nodes.iter().filter(|(_, entry)| entry.state == NodeState::Up);
        up.map(|(node, entry)| {
            let disks = entry.disks.iter().filter(|(_, disk)| disk.state != DiskState::Lost);
            let disks = disks.map(|(id, disk)| (*id, disk.weight)).collect();
            (*node, (entry.zone, entry.vnodes, disks))
        })
        .collect()
    }

    /// What placement needs of it. Whoever may come back holds data as those do that are up, so
    /// that going and coming back are not even a change of this.
    #[must_use]
    pub fn placement(&self) -> placement::ClusterMap {
        let node = |(id, entry): (&NodeId, &NodeEntry)| placement::Node {
            id: *id,
            zone: entry.zone,
            vnodes: entry.vnodes,
            state: match entry.state {
                NodeState::Out { .. } => placement::State::Out,
                _ if entry.draining => placement::State::Draining,
                NodeState::Up | NodeState::Down { .. } | NodeState::Left { .. } => {
                    placement::State::Up
                }
            },
            disks: entry.disks.iter().map(|(id, disk)| place(*id, *disk)).collect(),
        };
        placement::ClusterMap { nodes: self.nodes.iter().map(node).collect() }
    }

    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let nodes = self.nodes.iter().map(|(id, entry)| store(*id, entry)).collect();
        let halted = self.halted.iter().map(|set| u32::from(*set)).collect();
        persist::encode(&Stored { format: persist::FORMAT, epoch: self.epoch, nodes, halted })
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// [`sheepdog_types::ErrorKind::VersionMismatch`] for what a newer version wrote,
    /// [`sheepdog_types::ErrorKind::Internal`] for what no version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: Stored = persist::decode(WHAT, bytes)?;
        stored.check().ok_or_else(|| damaged(WHAT))
    }
}

fn place(id: DiskId, disk: DiskEntry) -> placement::Disk {
    let state = match disk.state {
        DiskState::In => placement::State::Up,
        DiskState::Draining => placement::State::Draining,
        DiskState::Lost | DiskState::Out => placement::State::Out,
    };
    placement::Disk { id, weight: disk.weight, state }
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(message, repeated, tag = "3")]
    nodes: Vec<StoredNode>,
    #[prost(uint32, repeated, tag = "4")]
    halted: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredNode {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(uint32, tag = "4")]
    zone: u32,
    #[prost(uint32, tag = "5")]
    vnodes: u32,
    #[prost(bool, tag = "6")]
    vnodes_fixed: bool,
    #[prost(uint32, tag = "7")]
    state: u32,
    #[prost(uint64, tag = "8")]
    grace: u64,
    #[prost(bool, tag = "9")]
    draining: bool,
    #[prost(message, repeated, tag = "10")]
    disks: Vec<StoredDisk>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredDisk {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    weight: u64,
    #[prost(uint32, tag = "3")]
    state: u32,
}

fn store(id: NodeId, entry: &NodeEntry) -> StoredNode {
    let (state, grace) = match entry.state {
        NodeState::Up => (1, 0),
        NodeState::Down { grace } => (2, grace),
        NodeState::Left { grace } => (3, grace),
        NodeState::Out { clean: false } => (4, 0),
        NodeState::Out { clean: true } => (5, 0),
    };
    let disk = |(id, disk): (&DiskId, &DiskEntry)| StoredDisk {
        id: id.0.to_vec(),
        weight: disk.weight,
        state: match disk.state {
            DiskState::In => 1,
            DiskState::Lost => 2,
            DiskState::Draining => 3,
            DiskState::Out => 4,
        },
    };
    StoredNode {
        id: id.0.to_vec(),
        incarnation: entry.incarnation,
        address: entry.address.clone(),
        zone: entry.zone,
        vnodes: entry.vnodes,
        vnodes_fixed: entry.vnodes_fixed,
        state,
        grace,
        draining: entry.draining,
        disks: entry.disks.iter().map(disk).collect(),
    }
}

impl Stored {
    fn check(self) -> Option<MapRecord> {
        let halted = self.halted.into_iter().map(u16::try_from).collect::<Result<_, _>>().ok()?;
        let mut map = MapRecord { epoch: self.epoch, nodes: BTreeMap::new(), halted };
        let mut seen = BTreeSet::new();
        for stored in self.nodes {
            let id = persist::node(&stored.id)?;
            let entry = stored.check()?;
            // A disk is in one place.
            let once = entry.disks.keys().all(|disk| seen.insert(*disk));
            if !once || map.nodes.insert(id, entry).is_some() {
                return None;
            }
        }
        (map.nodes.len() <= NODES_MAX).then_some(map)
    }
}

impl StoredNode {
    fn check(self) -> Option<NodeEntry> {
        let state = match self.state {
            1 => NodeState::Up,
            2 => NodeState::Down { grace: self.grace },
            3 => NodeState::Left { grace: self.grace },
            4 => NodeState::Out { clean: false },
            5 => NodeState::Out { clean: true },
            _ => return None,
        };
        let mut disks = BTreeMap::new();
        for disk in &self.disks {
            let state = match disk.state {
                1 => DiskState::In,
                2 => DiskState::Lost,
                3 => DiskState::Draining,
                4 => DiskState::Out,
                _ => return None,
            };
            disks.insert(persist::disk(&disk.id)?, DiskEntry { weight: disk.weight, state });
        }
        let good = disks.len() == self.disks.len()
            && disks.len() <= DISKS_MAX
            && self.address.len() <= ADDRESS_BYTES_MAX
            && self.vnodes <= placement::VNODES_MAX;
        good.then_some(NodeEntry {
            incarnation: self.incarnation,
            address: self.address,
            zone: self.zone,
            vnodes: self.vnodes,
            vnodes_fixed: self.vnodes_fixed,
            state,
            draining: self.draining,
            disks,
        })
    }
}

#[cfg(test)]
mod tests;
