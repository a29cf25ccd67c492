//! The bounds of the simulation, for clusters of 10 and 100 nodes. `cargo xtask placement` does the
//! same for 1000 nodes, too, and through more changes.

use sheepdog_placement::sim::{Disks, Scenario, Shape, Weights, Zones, run, scenarios};

#[track_caller]
fn all_hold(nodes: usize, rounds: u32, every: usize) {
    for scenario in scenarios(nodes, rounds).iter().step_by(every) {
        let row = run(scenario);
        assert_eq!(row.broken(), Vec::<String>::new(), "{row:#?}");
    }
}

#[test]
fn ten_nodes() {
    all_hold(10, 2, 1);
}

/// Every third: with 2 and 3 copies, one disk and several, of every kind of zones.
#[test]
fn a_hundred_nodes() {
    all_hold(100, 1, 3);
}

/// Hardly more zones than copies: the cheapest step is not always part of the cheapest way, and only
/// what takes needless moves back keeps these within their bounds.
#[test]
fn few_zones_through_many_changes() {
    let even = Shape { weights: Weights::Even, zones: Zones::Equal(4), disks: Disks::Several };
    let uneven = Shape { weights: Weights::Uneven, zones: Zones::Halving(5), disks: Disks::One };
    for shape in [even, uneven] {
        let row = run(&Scenario { nodes: 10, shape, copies: 3, rounds: 10 });
        assert_eq!(row.broken(), Vec::<String>::new(), "{row:#?}");
    }
}
