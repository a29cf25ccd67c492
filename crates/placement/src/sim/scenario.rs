//! The clusters that are simulated, what is measured of each, and the bounds that it is held to.

use super::cluster::{Cluster, Disks, Shape, Weights, Zones};
use super::judge::{Spread, keeps_zone_rule, necessary, spread};
use crate::{ClusterMap, Placement, Policy, movement};

/// Farthest that a disk may be from the best that the zone rule allows, in percent of it...
pub const LOAD_MAX: f64 = 2.0;
/// ...if that is at least so many replicas.
pub const REPLICAS_MIN: f64 = 100.0;
/// Most that a change may move, of what is necessary...
pub const MOVED_MAX: f64 = 1.05;
/// ...and so many replicas beyond, as none can be divided.
pub const ROUNDING: u64 = 2;
/// Fewest shards.
const BITS_MIN: u8 = 12;

/// A cluster and a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scenario {
    /// Nodes at first.
    pub nodes: usize,
    /// How they look.
    pub shape: Shape,
    /// Replicas of a shard.
    pub copies: u8,
    /// Rounds of changes: a node joins, one leaves, one gets another weight.
    pub rounds: u32,
}

/// Every combination, for clusters of so many nodes.
#[must_use]
pub fn scenarios(nodes: usize, rounds: u32) -> Vec<Scenario> {
    let racks = Zones::Equal((nodes as u32 / 5).max(5));
    let halving = Zones::Halving(if nodes < 100 { 5 } else { 8 });
    let mut all = Vec::new();
    for zones in [Zones::Own, racks, Zones::Equal(4), halving, Zones::Equal(2)] {
        for weights in [Weights::Even, Weights::Uneven] {
            for disks in [Disks::One, Disks::Several] {
                for copies in [2, 3] {
                    let shape = Shape { weights, zones, disks };
                    all.push(Scenario { nodes, shape, copies, rounds });
                }
            }
        }
    }
    all
}

/// What changes of one kind moved.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Moves {
    /// Replicas.
    pub moved: u64,
    /// Replicas that had to.
    pub necessary: u64,
    /// What moved of what was necessary, rounding apart, for the worst change.
    pub worst: f64,
}

impl Moves {
    /// Of what was necessary, in all.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.moved == 0 { 1.0 } else { self.moved as f64 / self.necessary as f64 }
    }

    fn add(&mut self, moved: u64, necessary: u64) {
        self.moved += moved;
        self.necessary += necessary;
        let counted = moved.saturating_sub(ROUNDING);
        let ratio = if counted == 0 { 0.0 } else { counted as f64 / necessary as f64 };
        self.worst = self.worst.max(ratio);
    }
}

/// What came out.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Of what.
    pub scenario: Scenario,
    /// Zones with nodes, and disks, at first.
    pub zones: usize,
    /// Disks at first.
    pub disks: usize,
    /// Number of shard bits, so that disks have [`REPLICAS_MIN`] replicas on average.
    pub bits: u8,
    /// Loads of the fresh placement.
    pub fresh: Spread,
    /// The worst loads after any change.
    pub after: Spread,
    /// Joins.
    pub join: Moves,
    /// Leaves.
    pub leave: Moves,
    /// Changes of weight.
    pub reweight: Moves,
    /// Whether no placement had two replicas of a shard in one zone, or too few.
    pub zone_rule: bool,
}

impl Row {
    /// The bounds that are broken, in words.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (when, spread) in [("fresh", self.fresh), ("after changes", self.after)] {
            let off = spread.above.max(-spread.below);
            if off > LOAD_MAX {
                broken.push(format!("{when}: a disk is {off:.2} % from the best"));
            }
        }
        let kinds = [("join", self.join), ("leave", self.leave), ("reweight", self.reweight)];
        for (kind, moves) in kinds {
            if moves.worst > MOVED_MAX {
                broken.push(format!("a {kind} moved {:.3} of the necessary", moves.worst));
            }
        }
        if !self.zone_rule {
            broken.push("the zone rule is broken".to_owned());
        }
        broken
    }
}

/// Zones with nodes in them.
fn zones_of(map: &ClusterMap) -> usize {
    let mut zones: Vec<u32> = map.nodes.iter().map(|n| n.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    zones.len()
}

/// Simulates.
///
/// # Panics
/// When placement refuses a map.
#[must_use]
pub fn run(scenario: &Scenario) -> Row {
    let seed = scenario.nodes as u64 + u64::from(scenario.copies);
    let mut cluster = Cluster::new(scenario.nodes, scenario.shape, seed);
    let (zones, disks) =
        (zones_of(&cluster.map), cluster.map.nodes.iter().map(|n| n.disks.len()).sum());
    let width = zones.min(scenario.copies.into()) as f64;
    let enough = |bits: u8| width * f64::from(1u32 << bits) >= REPLICAS_MIN * disks as f64;
    let bits = (BITS_MIN..crate::BITS_MAX).find(|b| enough(*b)).unwrap_or(crate::BITS_MAX);
    let policy = Policy::Copies(scenario.copies);
    let mut now = Placement::fresh(&cluster.map, policy, bits).expect("a valid map");
    let fresh = spread(&cluster.map, &now, REPLICAS_MIN);
    let mut row = Row {
        scenario: *scenario,
        zones,
        disks,
        bits,
        fresh,
        after: Spread { disks: usize::MAX, ..Spread::default() },
        join: Moves::default(),
        leave: Moves::default(),
        reweight: Moves::default(),
        zone_rule: keeps_zone_rule(&cluster.map, &now),
    };
    for step in 0..3 * scenario.rounds {
        let before = cluster.map.clone();
        let moves = match step % 3 {
            0 => {
                cluster.join(None);
                &mut row.join
            }
            1 => {
                cluster.leave();
                &mut row.leave
            }
            _ => {
                cluster.reweight();
                &mut row.reweight
            }
        };
        let next = now.after(&cluster.map).expect("a valid map");
        let moved = movement(&now, &next).len() as u64;
        moves.add(moved, necessary((&before, &now), (&cluster.map, &next)));
        let loads = spread(&cluster.map, &next, REPLICAS_MIN);
        row.after.above = row.after.above.max(loads.above);
        row.after.below = row.after.below.min(loads.below);
        row.after.disks = row.after.disks.min(loads.disks);
        row.zone_rule &= keeps_zone_rule(&cluster.map, &next);
        now = next;
    }
    row
}
