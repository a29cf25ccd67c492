//! Movement against the least that any placement could do, found by a minimum-cost flow.

mod oracle;

use oracle::necessary;
use sheepdog_placement::sim::{Cluster, Numbers, Shape, fewest, least};
use sheepdog_placement::{Placement, Policy, movement};

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
    follow(5, Shape::EVEN, 1, 10);
    follow(12, Shape::EVEN, 2, 10);
}

#[test]
fn few_uneven_zones_move_what_is_necessary() {
    for seed in 3..6 {
        let nodes = 4 + seed as usize;
        follow(nodes, Shape::uneven(nodes), seed, 10);
    }
}

/// One of four zones is full from the start, and others become it.
#[test]
fn zones_that_become_full_get_only_what_they_lack() {
    let mut cluster = Cluster::new(12, Shape::uneven(12), 5);
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

/// The flow that large clusters are judged by against the slow and obvious one.
#[test]
fn both_oracles_agree() {
    let mut numbers = Numbers(9);
    let mut possible = 0;
    for _ in 0..400 {
        let zones = 2 + numbers.below(4) as usize;
        let disks: Vec<usize> = (0..zones + numbers.below(6) as usize).map(|d| d % zones).collect();
        let width = 1 + numbers.below(zones as u64) as usize;
        let shards = 1 + numbers.below(12) as usize;
        let mut sets = Vec::new();
        for _ in 0..shards {
            let mut set: Vec<usize> = Vec::new();
            for _ in 0..width {
                let d = numbers.below(disks.len() as u64) as usize;
                if set.iter().all(|s| disks[*s] != disks[d]) {
                    set.push(d);
                }
            }
            sets.push(set);
        }
        let all = (width * shards) as u64;
        let bounds: Vec<(u32, u32)> = disks
            .iter()
            .map(|_| {
                let low = numbers.below(all / disks.len() as u64 + 1);
                (low as u32, (low + numbers.below(all / 2 + 2)) as u32)
            })
            .collect();
        let slow = necessary(&disks, &bounds, &sets, width as u32);
        assert_eq!(fewest(&disks, &bounds, &sets, width as u32), slow);
        possible += u32::from(slow.is_some());
    }
    assert!(possible > 100, "{possible}");
}
