//! Movement against the least that any placement could do, found by a minimum-cost flow.

mod cluster;
mod oracle;

use cluster::{Cluster, Shape, band};
use oracle::necessary;
use sheepdog_placement::{ClusterMap, Placement, Policy, movement};
use sheepdog_types::DiskId;
use std::collections::BTreeMap;

/// The least that brings the replicas of `old` within the bands of `new`.
fn least(old: &Placement, new: &Placement, map: &ClusterMap) -> u64 {
    let zone_of: BTreeMap<DiskId, usize> =
        map.nodes.iter().flat_map(|n| n.disks.iter().map(|d| (d.id, n.zone as usize))).collect();
    let loads = new.loads();
    let place = |disk: &DiskId| loads.iter().position(|l| l.disk == *disk);
    let mut names: Vec<usize> = loads.iter().map(|l| zone_of[&l.disk]).collect();
    names.sort_unstable();
    names.dedup();
    let zones: Vec<usize> =
        loads.iter().map(|l| names.partition_point(|z| *z < zone_of[&l.disk])).collect();
    let bounds: Vec<(u32, u32)> = loads.iter().map(band).collect();
    let sets: Vec<Vec<usize>> =
        (0..old.shards()).map(|s| old.acting_set(s).iter().filter_map(place).collect()).collect();
    necessary(&zones, &bounds, &sets, new.width() as u32).expect("bands can be met")
}

/// Changes of a small cluster, each checked.
fn follow(nodes: usize, shape: Shape, seed: u64, changes: u32) {
    follow_all(Cluster::new(nodes, shape, seed), changes);
}

fn follow_all(mut cluster: Cluster, changes: u32) {
    let mut old = Placement::fresh(&cluster.map, Policy::Copies(3), 7).expect("valid");
    let (mut moved, mut needed) = (0, 0);
    for _ in 0..changes {
        let what = cluster.change();
        let new = old.after(&cluster.map).expect("valid");
        let m = movement(&old, &new).len() as u64;
        let n = least(&old, &new, &cluster.map).max(old.unavoidable(&new));
        assert!(m * 100 <= n * 105 + 200, "{what}: moved {m}, needed {n}");
        moved += m;
        needed += n;
        old = new;
    }
    assert!(moved * 100 <= needed * 101 + 200, "moved {moved}, needed {needed}");
}

#[test]
fn even_nodes_move_what_is_necessary() {
    follow(5, Shape::Even, 1, 10);
    follow(12, Shape::Even, 2, 10);
}

#[test]
fn few_uneven_zones_move_what_is_necessary() {
    for seed in 3..6 {
        follow(4 + seed as usize, Shape::Uneven, seed, 10);
    }
}

/// One of four zones is full from the start, and others become it.
#[test]
fn zones_that_become_full_get_only_what_they_lack() {
    let mut cluster = Cluster::new(12, Shape::Uneven, 5);
    for (i, node) in (0u32..).zip(&mut cluster.map.nodes) {
        node.zone = i % 4;
        node.vnodes = if i % 4 == 0 { 300 } else { 128 };
    }
    follow_all(cluster, 8);
}

#[test]
fn the_oracle_knows_the_obvious_cases() {
    // Two disks of one zone, four shards: level by moving one.
    let sets: Vec<Vec<usize>> = vec![vec![0], vec![0], vec![0], vec![1]];
    assert_eq!(necessary(&[0, 0], &[(2, 2), (2, 2)], &sets, 1), Some(1));
    assert_eq!(necessary(&[0, 0], &[(1, 3), (1, 3)], &sets, 1), Some(0));
    // Two copies in two zones: no disk can have fewer than all.
    let sets = vec![vec![0, 1], vec![0, 1]];
    assert_eq!(necessary(&[0, 1], &[(2, 2), (2, 2)], &sets, 2), Some(0));
    assert_eq!(necessary(&[0, 1], &[(1, 1), (2, 3)], &sets, 2), None);
    // Disk 3 needs one, disk 0 has one too many, but their only common shard is there already.
    let sets = vec![vec![0, 3], vec![0, 3], vec![1, 2]];
    let bounds = [(1, 1), (1, 1), (1, 1), (3, 3)];
    assert_eq!(necessary(&[0, 1, 2, 3], &bounds, &sets, 2), Some(2));
}
