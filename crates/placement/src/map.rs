//! What placement needs of the cluster map: nodes, zones, disks, weights and who takes part.

use crate::hash::disk_key;
use sheepdog_types::{DiskId, Error, ErrorKind, NodeId, Result};
use std::collections::BTreeMap;

/// Disks of a map, in all its nodes.
pub const DISKS_MAX: usize = 1 << 16;
/// Weight of a node, see [`Node::vnodes`].
pub const VNODES_MAX: u32 = u16::MAX as u32;
/// Disks of one acting set: 31 copies, or 16 + 15 strips.
pub const WIDTH_MAX: u8 = 31;

/// Whether a node or disk takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// It serves.
    #[default]
    Up,
    /// It went and may come back within the grace time: its shards wait for it.
    Down,
    /// Its data is to be moved away.
    Draining,
    /// It went, and its data is to be made again elsewhere.
    Out,
}

impl State {
    /// Whether shards are placed on it.
    #[must_use]
    pub const fn holds(self) -> bool {
        matches!(self, Self::Up | Self::Down)
    }
}

/// One data path of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// The uuid in its superblock.
    pub id: DiskId,
    /// Its share among the disks of its node, usually its capacity in bytes. 0 holds nothing.
    pub weight: u64,
    /// Whether it takes part.
    pub state: State,
}

/// One sheep process with its disks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Its failure domain.
    pub zone: u32,
    /// Its weight, at most [`VNODES_MAX`], 128 for an average node. 0 is a gateway: holds nothing.
    pub vnodes: u32,
    /// Whether it takes part.
    pub state: State,
    /// Its disks. They share the node's weight in proportion to theirs. One that is listed but
    /// takes no part leaves its share to the whole cluster, not to its neighbours.
    pub disks: Vec<Disk>,
}

/// The part of the cluster map that decides where shards live. Order does not matter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterMap {
    /// All nodes, those that take no part included.
    pub nodes: Vec<Node>,
}

/// The redundancy of a set of shards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Policy {
    /// Whole copies.
    Copies(u8),
    /// Strips of an erasure code.
    Erasure {
        /// Strips that carry data.
        data: u8,
        /// Strips that carry parity.
        parity: u8,
    },
}

impl Policy {
    /// Disks that an acting set has when there are as many zones.
    #[must_use]
    pub const fn width(self) -> u32 {
        match self {
            Self::Copies(copies) => copies as u32,
            Self::Erasure { data, parity } => data as u32 + parity as u32,
        }
    }
}

/// A disk that takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub id: DiskId,
    /// Position of its zone in the sorted list of zones.
    pub zone: u32,
    /// The node's vnodes times the disk's share of its node, times 2^32.
    pub weight: u64,
    pub key: u64,
}

/// The disks that take part, by id, and the zones they are in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Roster {
    pub members: Vec<Member>,
    pub zones: Vec<u32>,
}

impl Roster {
    /// # Errors
    /// [`ErrorKind::Invalid`] for a disk listed twice and for weights out of range.
    pub fn of(map: &ClusterMap) -> Result<Self> {
        let mut disks = BTreeMap::new();
        for node in &map.nodes {
            if node.vnodes > VNODES_MAX {
                return Err(invalid(format!("{} vnodes, at most {VNODES_MAX}", node.vnodes)));
            }
            let total: u128 = node.disks.iter().map(|d| u128::from(d.weight)).sum();
            for disk in &node.disks {
                let holds = node.state.holds() && disk.state.holds();
                let weight = if holds && node.vnodes > 0 && disk.weight > 0 {
                    // At most vnodes * 2^32: below 2^48. Never 0, so that every disk is placed.
                    let share = (u128::from(disk.weight) << 32) / total;
                    (share as u64 * u64::from(node.vnodes)).max(1)
                } else {
                    0
                };
                if disks.insert(disk.id, (node.zone, weight)).is_some() {
                    return Err(invalid(format!("disk {} is in the map twice", disk.id)));
                }
            }
        }
        if disks.len() > DISKS_MAX {
            return Err(invalid(format!("{} disks, at most {DISKS_MAX}", disks.len())));
        }
        disks.retain(|_, (_, weight)| *weight > 0);
        let mut zones: Vec<u32> = disks.values().map(|(zone, _)| *zone).collect();
        zones.sort_unstable();
        zones.dedup();
        let members = disks
            .into_iter()
            .map(|(id, (zone, weight))| Member {
                id,
                zone: zones.partition_point(|z| *z < zone) as u32,
                weight,
                key: disk_key(id),
            })
            .collect();
        Ok(Self { members, zones })
    }

    /// Position of a disk, if it takes part.
    pub fn position(&self, disk: DiskId) -> Option<u32> {
        let found = self.members.binary_search_by(|m| m.id.cmp(&disk));
        found.ok().map(|i| i as u32)
    }

    pub fn zone(&self, member: u32) -> u32 {
        self.members[member as usize].zone
    }

    /// Disks of an acting set: one per zone.
    pub fn stride(&self, policy: Policy) -> usize {
        self.zones.len().min(policy.width() as usize)
    }
}

pub(crate) fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(id: u8, weight: u64, state: State) -> Disk {
        Disk { id: DiskId([id; 16]), weight, state }
    }

    fn node(zone: u32, vnodes: u32, disks: Vec<Disk>) -> Node {
        Node { id: NodeId([zone as u8; 16]), zone, vnodes, state: State::Up, disks }
    }

    #[test]
    fn disks_share_the_weight_of_their_node() {
        let map = ClusterMap {
            nodes: vec![
                node(
                    9,
                    128,
                    vec![
                        disk(4, 3 << 40, State::Up),
                        disk(1, 1 << 40, State::Down),
                        disk(2, 4 << 40, State::Out),
                        disk(5, 0, State::Up),
                    ],
                ),
                node(3, 0, vec![disk(7, 1, State::Up)]),
                node(2, 1, vec![disk(3, u64::MAX, State::Up)]),
            ],
        };
        let roster = Roster::of(&map).expect("valid");
        assert_eq!(roster.zones, [2, 9]);
        let seen: Vec<_> =
            roster.members.iter().map(|m| (m.id.0[0], m.zone, m.weight >> 28)).collect();
        assert_eq!(seen, [(1, 1, 16 << 4), (3, 0, 1 << 4), (4, 1, 48 << 4)]);
        assert_eq!(roster.position(DiskId([3; 16])), Some(1));
        assert_eq!(roster.position(DiskId([2; 16])), None);
    }

    #[test]
    fn contradictions_are_refused() {
        let twice = ClusterMap {
            nodes: vec![
                node(1, 1, vec![disk(1, 1, State::Up)]),
                node(2, 1, vec![disk(1, 1, State::Out)]),
            ],
        };
        let heavy = ClusterMap { nodes: vec![node(1, VNODES_MAX + 1, vec![])] };
        for map in [twice, heavy] {
            let error = Roster::of(&map).expect_err("invalid");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}
