//! The bounds of the simulation, for clusters of 10 and 100 nodes. `cargo xtask placement` does the
//! same for 1000 nodes, too, and through more changes.

use sheepdog_placement::sim::{run, scenarios};

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
