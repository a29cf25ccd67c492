//! The fast table of wanted disks against a slow one that does what the words say.

use super::*;
use crate::map::{ClusterMap, Disk, Node, State};
use proptest::prelude::*;
use sheepdog_types::{DiskId, NodeId};

/// A map whose disk ids are small numbers, so that two maps have many in common.
fn maps() -> impl Strategy<Value = ClusterMap> {
    let disk = (1u64..4, any::<bool>());
    let node = (0u32..6, 0u32..4, prop::collection::vec(disk, 1..4));
    prop::collection::vec(node, 0..12).prop_map(|nodes| {
        let nodes = nodes.into_iter().enumerate().map(|(n, (zone, vnodes, disks))| Node {
            id: NodeId([n as u8; 16]),
            zone,
            vnodes,
            state: State::Up,
            disks: (0..)
                .zip(disks)
                .map(|(d, (weight, out))| Disk {
                    id: DiskId([(n * 4 + d) as u8; 16]),
                    weight,
                    state: if out { State::Out } else { State::Up },
                })
                .collect(),
        });
        ClusterMap { nodes: nodes.collect() }
    })
}

fn roster(map: &ClusterMap) -> Roster {
    Roster::of(map).expect("valid")
}

/// Zone first, then node, then disk: each has the best score of what it contains.
fn obvious(map: &ClusterMap, roster: &Roster, stride: usize, shard: u32) -> Vec<u32> {
    let score = |id: DiskId| {
        let member = roster.position(id)?;
        let m = roster.members[member as usize];
        Some((draw(shard_key(shard), m.key), m.weight, member))
    };
    // a/b < c/d, exactly.
    let less = |a: &(u64, u64, u32), b: &(u64, u64, u32)| {
        let left = u128::from(a.0) * u128::from(b.1);
        left.cmp(&(u128::from(b.0) * u128::from(a.1))).then(a.2.cmp(&b.2))
    };
    let of_node = |node: &Node| {
        let scores = node.disks.iter().filter_map(|d| score(d.id));
        scores.min_by(less)
    };
    let of_zone = |zone: &u32| {
        let nodes = map.nodes.iter().filter(|n| n.zone == *zone);
        nodes.filter_map(of_node).min_by(less)
    };
    let mut zones: Vec<_> = roster.zones.iter().filter_map(of_zone).collect();
    zones.sort_by(less);
    zones.truncate(stride);
    zones.into_iter().map(|(_, _, member)| member).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn shards_want_the_best_zones_with_their_best_disks(map in maps(), width in 1usize..5) {
        let roster = roster(&map);
        let stride = roster.zones.len().min(width);
        let table = wanted(&roster, stride, 32);
        for shard in 0..32 {
            let at = shard as usize * stride;
            let expected = obvious(&map, &roster, stride, shard);
            prop_assert_eq!(&table[at..at + stride], &expected);
            prop_assert_eq!(ranking(&roster, stride, shard), expected);
        }
    }

    #[test]
    fn following_a_change_is_the_same_as_starting_anew(a in maps(), b in maps(), width in 1usize..4) {
        let (old, new) = (roster(&a), roster(&b));
        let stride = |r: &Roster| r.zones.len().min(width);
        let before = wanted(&old, stride(&old), 64);
        let after = if stride(&old) == stride(&new) {
            wanted_after(&old, &before, &new, stride(&new), 64)
        } else {
            wanted(&new, stride(&new), 64)
        };
        prop_assert_eq!(after, wanted(&new, stride(&new), 64));
    }

    #[test]
    fn a_disk_that_goes_moves_only_what_wanted_it(map in maps(), which: prop::sample::Index) {
        let old = roster(&map);
        prop_assume!(!old.members.is_empty());
        let gone = old.members[which.index(old.members.len())].id;
        let mut left = map.clone();
        for disk in left.nodes.iter_mut().flat_map(|n| &mut n.disks) {
            if disk.id == gone {
                disk.state = State::Out;
            }
        }
        let new = roster(&left);
        let stride = 2.min(new.zones.len());
        prop_assume!(stride == 2);
        let ids = |r: &Roster, set: &[u32]| -> Vec<DiskId> {
            set.iter().map(|m| r.members[*m as usize].id).collect()
        };
        let (before, after) = (wanted(&old, stride, 64), wanted(&new, stride, 64));
        for (a, b) in before.chunks_exact(stride).zip(after.chunks_exact(stride)) {
            let (a, b) = (ids(&old, a), ids(&new, b));
            prop_assert_eq!(a.contains(&gone), a != b);
            prop_assert!(a.iter().all(|d| *d == gone || b.contains(d)));
        }
    }
}

#[test]
fn shards_are_spread_by_weight() {
    // Four zones of 1, 2, 3 and 4 parts; one copy, so that no zone rule interferes.
    let nodes = (1u32..5).map(|n| Node {
        id: NodeId([n as u8; 16]),
        zone: n,
        vnodes: 32 * n,
        state: State::Up,
        disks: vec![Disk { id: DiskId([n as u8; 16]), weight: 1, state: State::Up }],
    });
    let roster = roster(&ClusterMap { nodes: nodes.collect() });
    let shards = 1 << 14;
    let table = wanted(&roster, 1, shards);
    for member in 0..4u32 {
        let count = table.iter().filter(|m| **m == member).count() as f64;
        let p = f64::from(member + 1) / 10.0;
        let (mean, deviation) = (p * f64::from(shards), (p * (1.0 - p) * f64::from(shards)).sqrt());
        assert!((count - mean).abs() < 4.0 * deviation, "{member} {count} {mean}");
    }
}
