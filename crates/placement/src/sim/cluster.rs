//! Made-up clusters and their histories, and what is measured of them.

use crate::{ClusterMap, Disk, DiskLoad, Node, Placement, State, movement};
use sheepdog_types::{DiskId, NodeId};

/// A small generator of repeatable numbers.
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) % end
    }

    fn id(&mut self) -> [u8; 16] {
        let (a, b) = (self.below(u64::MAX), self.below(u64::MAX));
        (u128::from(a) << 64 | u128::from(b)).to_le_bytes()
    }
}

/// What nodes and disks weigh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weights {
    /// All the same.
    Even,
    /// Nodes, and the disks of a node, differ up to fourfold.
    Uneven,
}

/// Which nodes share a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zones {
    /// Each is one by itself.
    Own,
    /// So many zones, with as many nodes each as can be.
    Equal(u32),
    /// So many zones at most: half of the nodes in the first, a quarter in the second, and so on.
    Halving(u32),
}

/// Disks of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disks {
    /// One.
    One,
    /// 1 to 4.
    Several,
}

/// How a cluster looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// What its nodes weigh.
    pub weights: Weights,
    /// How they share zones.
    pub zones: Zones,
    /// What they have.
    pub disks: Disks,
}

impl Shape {
    /// Every node is a zone, has one disk and the same weight.
    pub const EVEN: Self = Self { weights: Weights::Even, zones: Zones::Own, disks: Disks::One };

    /// A zone for every ten nodes (five at least), 1 to 4 disks, weights that differ fourfold.
    #[must_use]
    pub fn uneven(nodes: usize) -> Self {
        let zones = Zones::Equal((nodes as u32 / 10).max(5));
        Self { weights: Weights::Uneven, zones, disks: Disks::Several }
    }
}

/// A cluster that changes.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What it is now.
    pub map: ClusterMap,
    shape: Shape,
    numbers: Numbers,
}

impl Cluster {
    /// One of `nodes` nodes. The same numbers make the same cluster, and the same changes of it.
    #[must_use]
    pub fn new(nodes: usize, shape: Shape, seed: u64) -> Self {
        let mut cluster = Self { map: ClusterMap::default(), shape, numbers: Numbers(seed) };
        for i in 0..nodes {
            cluster.join(Some(i as u64));
        }
        cluster
    }

    fn disk(&mut self) -> Disk {
        let weight = match self.shape.weights {
            Weights::Even => 4 << 40,
            Weights::Uneven => (1 + self.numbers.below(4)) << 40,
        };
        Disk { id: DiskId(self.numbers.id()), weight, state: State::Up }
    }

    fn zone(&mut self, place: Option<u64>) -> u32 {
        let end = match self.shape.zones {
            Zones::Own => u64::from(u32::MAX),
            Zones::Equal(zones) => u64::from(zones),
            Zones::Halving(_) => 1 << 32,
        };
        let place = place.unwrap_or_else(|| self.numbers.below(end)) as u32;
        match self.shape.zones {
            Zones::Own => place,
            Zones::Equal(zones) => place % zones,
            Zones::Halving(zones) => place.wrapping_add(1).trailing_zeros().min(zones - 1),
        }
    }

    /// A node comes, into the zone that is the turn of the node number `place` if that is given.
    pub fn join(&mut self, place: Option<u64>) {
        let zone = self.zone(place);
        let disks = match self.shape.disks {
            Disks::One => 1,
            Disks::Several => 1 + self.numbers.below(4),
        };
        let vnodes = match self.shape.weights {
            Weights::Even => 128,
            Weights::Uneven => 64 + self.numbers.below(193) as u32,
        };
        let node = Node {
            id: NodeId(self.numbers.id()),
            zone,
            vnodes,
            state: State::Up,
            disks: (0..disks).map(|_| self.disk()).collect(),
        };
        self.map.nodes.push(node);
    }

    fn any_node(&mut self) -> usize {
        self.numbers.below(self.map.nodes.len() as u64) as usize
    }

    /// Some node leaves.
    pub fn leave(&mut self) {
        let i = self.any_node();
        self.map.nodes.swap_remove(i);
    }

    /// Some node gets another weight.
    pub fn reweight(&mut self) {
        let i = self.any_node();
        self.reweight_node(i);
    }

    fn reweight_node(&mut self, i: usize) {
        let vnodes = self.map.nodes[i].vnodes;
        let factor = [50, 80, 90, 110, 125, 200][self.numbers.below(6) as usize];
        self.map.nodes[i].vnodes = (vnodes * factor / 100).clamp(32, 512);
    }

    /// One change: a node joins, leaves or gets another weight, or a disk does.
    pub fn change(&mut self) -> &'static str {
        let i = self.any_node();
        let last = self.map.nodes.len() < 4;
        match self.numbers.below(if self.shape.disks == Disks::One { 4 } else { 7 }) {
            0 | 1 if !last => {
                self.map.nodes.swap_remove(i);
                "leave"
            }
            0..=2 => {
                self.join(None);
                "join"
            }
            3 => {
                self.reweight_node(i);
                "reweight"
            }
            4 => {
                let disk = self.disk();
                self.map.nodes[i].disks.push(disk);
                "disk added"
            }
            5 => {
                let disks = &mut self.map.nodes[i].disks;
                let d = self.numbers.below(disks.len() as u64) as usize;
                disks[d].state = State::Out;
                "disk out"
            }
            _ => {
                let disks = &mut self.map.nodes[i].disks;
                let d = self.numbers.below(disks.len() as u64) as usize;
                disks[d].weight = (1 + self.numbers.below(4)) << 40;
                "disk reweight"
            }
        }
    }
}

/// Fewest and most replicas that a disk may hold: within 1/64 of its quota, or rounded.
#[must_use]
pub fn band(load: &DiskLoad) -> (u32, u32) {
    let quota = load.quota as f64 / 32f64.exp2();
    let low = (quota * 63.0 / 64.0).ceil().min(quota.floor());
    let high = (quota * 65.0 / 64.0).floor().max(quota.ceil());
    (low as u32, high as u32)
}

/// The largest distance of a disk's load from its quota, in percent, over the disks whose quota is
/// at least `from` replicas.
#[must_use]
pub fn worst_load(placement: &Placement, from: u32) -> f64 {
    let loads = placement.loads();
    let quota = |q: u64| q as f64 / 32f64.exp2();
    let large = loads.iter().filter(|l| quota(l.quota) >= f64::from(from));
    large.map(|l| 100.0 * (f64::from(l.replicas) / quota(l.quota) - 1.0).abs()).fold(0.0, f64::max)
}

/// Exceptions, in percent of all replicas.
#[must_use]
pub fn exceptions(placement: &Placement) -> f64 {
    let replicas = f64::from(placement.shards()) * placement.width() as f64;
    100.0 * placement.exceptions().len() as f64 / replicas
}

/// What a sequence of changes cost.
#[derive(Default, Debug)]
pub struct History {
    /// How many.
    pub changes: u32,
    /// Replicas that moved.
    pub moved: u64,
    /// Replicas that quotas grew by.
    pub unavoidable: u64,
    /// See [`worst_load`].
    pub worst_load: f64,
    /// What moved of what was unavoidable, the worst of any change that was not tiny.
    pub worst_ratio: f64,
    /// Replicas that a single change moved beyond 1.05 times the unavoidable.
    pub worst_excess: f64,
    /// See [`exceptions`].
    pub worst_exceptions: f64,
    /// What fresh placements of the same maps would have moved.
    pub moved_fresh: u64,
}

impl History {
    /// What moved of what was unavoidable.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.moved as f64 / self.unavoidable as f64
    }

    /// Counts a change.
    pub fn step(&mut self, old: &Placement, new: &Placement) {
        let moved = movement(old, new).len() as u64;
        let unavoidable = old.unavoidable(new);
        self.changes += 1;
        self.moved += moved;
        self.unavoidable += unavoidable;
        self.worst_load = self.worst_load.max(worst_load(new, 100));
        self.worst_exceptions = self.worst_exceptions.max(exceptions(new));
        let excess = moved as f64 - 1.05 * unavoidable as f64;
        self.worst_excess = self.worst_excess.max(excess);
        if unavoidable >= 20 {
            self.worst_ratio = self.worst_ratio.max(moved as f64 / unavoidable as f64);
        }
    }
}
