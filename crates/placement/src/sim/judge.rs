//! What placements are measured by, worked out anew from maps and acting sets: none of it is taken
//! from the quotas that placement itself aims at.

use super::cluster::band;
use super::flow::fewest;
use crate::{ClusterMap, DiskLoad, Placement};
use sheepdog_types::DiskId;
use std::collections::BTreeMap;

/// Zones up to which the least movement is found exactly. With more, the zone rule stands in the
/// way of nothing, and the least is what the best loads grow by.
const EXACT_ZONES_MAX: usize = 32;

/// A disk that takes part: its zone and its part of all weight.
struct Part {
    zone: u32,
    weight: f64,
}

fn parts(map: &ClusterMap) -> BTreeMap<DiskId, Part> {
    let mut parts = BTreeMap::new();
    for node in map.nodes.iter().filter(|n| n.state.holds()) {
        let all: f64 = node.disks.iter().map(|d| d.weight as f64).sum();
        for disk in node.disks.iter().filter(|d| d.state.holds()) {
            let weight = f64::from(node.vnodes) * disk.weight as f64 / all;
            if weight > 0.0 {
                parts.insert(disk.id, Part { zone: node.zone, weight });
            }
        }
    }
    parts
}

/// The best that the zone rule allows: replicas of each disk if they could be divided, in proportion
/// to weights, with no zone above one replica of each shard.
#[must_use]
pub fn best(map: &ClusterMap, copies: u8, shards: u32) -> BTreeMap<DiskId, f64> {
    let parts = parts(map);
    let mut zones: BTreeMap<u32, f64> = BTreeMap::new();
    for part in parts.values() {
        *zones.entry(part.zone).or_default() += part.weight;
    }
    let weights = zones.clone();
    let mut left = (copies as usize).min(zones.len()) as f64;
    // Replicas of each shard in a zone; a zone that would get more than one has one, and the others
    // share what is left.
    let mut full: BTreeMap<u32, f64> = BTreeMap::new();
    loop {
        let all: f64 = zones.values().sum();
        let over: Vec<u32> =
            zones.iter().filter(|(_, w)| **w * left >= all).map(|(z, _)| *z).collect();
        if over.is_empty() || zones.is_empty() {
            full.extend(zones.iter().map(|(z, w)| (*z, w * left / all)));
            break;
        }
        for zone in over {
            zones.remove(&zone);
            full.insert(zone, 1.0);
            left -= 1.0;
        }
    }
    let share = |p: &Part| f64::from(shards) * full[&p.zone] * p.weight / weights[&p.zone];
    parts.iter().map(|(id, part)| (*id, share(part))).collect()
}

/// How far disks are from the best, in percent of it.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Spread {
    /// Of the fullest disk; negative if even that is below.
    pub above: f64,
    /// Of the emptiest one.
    pub below: f64,
    /// Disks that were looked at.
    pub disks: usize,
}

/// The spread over the disks whose best is at least `from` replicas.
#[must_use]
pub fn spread(map: &ClusterMap, placement: &Placement, from: f64) -> Spread {
    let best = best(map, placement.policy().width() as u8, placement.shards());
    let mut replicas: BTreeMap<DiskId, u32> = BTreeMap::new();
    for shard in 0..placement.shards() {
        for disk in placement.acting_set(shard) {
            *replicas.entry(*disk).or_default() += 1;
        }
    }
    let mut spread = Spread::default();
    for (disk, best) in best.iter().filter(|(_, best)| **best >= from) {
        let load = f64::from(replicas.get(disk).copied().unwrap_or(0));
        let off = 100.0 * (load / best - 1.0);
        spread.above = spread.above.max(off);
        spread.below = spread.below.min(off);
        spread.disks += 1;
    }
    spread
}

/// Whether each shard has as many replicas as it can, no two of them in one zone.
#[must_use]
pub fn keeps_zone_rule(map: &ClusterMap, placement: &Placement) -> bool {
    let parts = parts(map);
    let mut zones: Vec<u32> = parts.values().map(|p| p.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    let width = zones.len().min(placement.policy().width() as usize);
    (0..placement.shards()).all(|shard| {
        let set = placement.acting_set(shard);
        let mut used: Vec<u32> = set.iter().filter_map(|d| Some(parts.get(d)?.zone)).collect();
        used.sort_unstable();
        used.dedup();
        set.len() == width && used.len() == width
    })
}

/// The least that brings the replicas of `old` within the bands of `new`, found by a flow.
///
/// # Panics
/// When that cannot be done at all.
#[must_use]
pub fn least(old: &Placement, new: &Placement, map: &ClusterMap) -> u64 {
    let parts = parts(map);
    let loads = new.loads();
    let place: BTreeMap<DiskId, usize> = loads.iter().map(|l| l.disk).zip(0..).collect();
    let mut names: Vec<u32> = loads.iter().map(|l| parts[&l.disk].zone).collect();
    names.sort_unstable();
    names.dedup();
    let zone_of = |l: &DiskLoad| names.partition_point(|z| *z < parts[&l.disk].zone);
    let zones: Vec<usize> = loads.iter().map(zone_of).collect();
    let bounds: Vec<(u32, u32)> = loads.iter().map(band).collect();
    let set = |shard| {
        // Of two whose nodes are in one zone now, one may stay.
        let mut set: Vec<usize> = Vec::new();
        for d in old.acting_set(shard).iter().filter_map(|d| place.get(d).copied()) {
            if set.iter().all(|s| zones[*s] != zones[d]) {
                set.push(d);
            }
        }
        set
    };
    let sets: Vec<Vec<usize>> = (0..old.shards()).map(set).collect();
    fewest(&zones, &bounds, &sets, new.width() as u32).expect("the bands can be met")
}

/// Replicas that a change of the map makes it necessary to copy: what the best loads grow by in
/// all, or the least that brings all loads within their bands, where that is more and few zones
/// make it a question at all.
#[must_use]
pub fn necessary(
    (before, old): (&ClusterMap, &Placement),
    (after, new): (&ClusterMap, &Placement),
) -> u64 {
    let copies = new.policy().width() as u8;
    let was = best(before, copies, old.shards());
    let grown = best(after, copies, new.shards())
        .iter()
        .map(|(disk, best)| (best - was.get(disk).copied().unwrap_or(0.0)).max(0.0))
        .sum::<f64>();
    let mut zones: Vec<u32> = parts(after).values().map(|p| p.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    let exact = zones.len() <= EXACT_ZONES_MAX;
    let least = if exact { least(old, new, after) } else { 0 };
    least.max(grown as u64)
}
