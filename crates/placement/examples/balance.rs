//! Prints how level placements are, how short their tables of exceptions, and how much moves when
//! the map changes, for clusters of 10, 100 and 1000 nodes.
//!
//! `cargo run -p sheepdog-placement --example balance --release [CHANGES [NODES...]]`

use sheepdog_placement::sim::{Cluster, History, Shape, exceptions, worst_load};
use sheepdog_placement::{Placement, Policy, movement};

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let changes = args.next().unwrap_or(30);
    let mut sizes: Vec<usize> = args.collect();
    if sizes.is_empty() {
        sizes = vec![10, 100, 1000];
    }
    println!("load: worst distance of a disk's load from the best the zone rule allows");
    println!("table: exceptions in percent of all replicas; moved: of what is unavoidable");
    println!(
        "{:>5} {:7} {:>5} {:>6} {:>3} {:>8} | {:>6} {:>6} | {:>7} {:>6} {:>6} {:>7} {:>7} {:>9} | {:>6} {:>6}",
        "nodes",
        "shape",
        "zones",
        "disks",
        "b",
        "replicas",
        "load",
        "table",
        "changes",
        "load",
        "table",
        "moved",
        "worst",
        "no table",
        "table",
        "copies"
    );
    for nodes in sizes {
        for (name, shape) in [("even", Shape::EVEN), ("uneven", Shape::uneven(nodes))] {
            let mut cluster = Cluster::new(nodes, shape, nodes as u64);
            let disks: usize = cluster.map.nodes.iter().map(|n| n.disks.len()).sum();
            // At least 100 replicas on an average disk.
            let bits = (12..20).find(|b| 3 << b >= 100 * disks).unwrap_or(20);
            let policy = Policy::Copies(3);
            let first = Placement::fresh(&cluster.map, policy, bits).expect("valid map");
            let mut history = History::default();
            let mut old = first.clone();
            let mut old_fresh = first.clone();
            for _ in 0..changes {
                cluster.change();
                let new = old.after(&cluster.map).expect("valid map");
                history.step(&old, &new);
                let fresh = Placement::fresh(&cluster.map, policy, bits).expect("valid map");
                history.moved_fresh += movement(&old_fresh, &fresh).len() as u64;
                (old, old_fresh) = (new, fresh);
            }
            let tidied = old.tidied(u64::MAX);
            let mut zones: Vec<u32> = cluster.map.nodes.iter().map(|n| n.zone).collect();
            zones.sort_unstable();
            zones.dedup();
            println!(
                "{nodes:5} {:7} {:5} {disks:6} {bits:3} {:8} | {:5.2}% {:5.2}% | {changes:7} {:5.2}% {:5.2}% {:6.1}% {:6.1}% {:8.1}% | {:5.2}% {:6}",
                name,
                zones.len(),
                3u32 << bits,
                worst_load(&first, 100),
                exceptions(&first),
                history.worst_load,
                history.worst_exceptions,
                100.0 * history.ratio(),
                100.0 * history.worst_ratio,
                100.0 * history.moved_fresh as f64 / history.unavoidable as f64,
                exceptions(&tidied),
                movement(&old, &tidied).len(),
            );
        }
    }
}
