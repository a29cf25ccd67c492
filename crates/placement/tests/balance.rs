//! Balance and movement of clusters of 10 and 100 nodes through sequences of changes. The example
//! `balance` prints the same as a table, for 1000 nodes too.

use sheepdog_placement::sim::{Cluster, History, Shape, exceptions, worst_load};
use sheepdog_placement::{Placement, Policy};

struct Limits {
    /// Exceptions, in percent, of the fresh placement and after the changes.
    fresh: f64,
    table: f64,
    /// Movement over what the quotas grew by, in all.
    moved: f64,
    /// Replicas that one change may move beyond 1.05 times what the quotas grew by.
    excess: f64,
}

fn simulate(nodes: usize, shape: Shape, bits: u8, changes: u32, limits: &Limits) {
    let mut cluster = Cluster::new(nodes, shape, 77);
    let mut now = Placement::fresh(&cluster.map, Policy::Copies(3), bits).expect("valid");
    assert!(worst_load(&now, 100) < 2.0);
    assert!(exceptions(&now) < limits.fresh, "{}", exceptions(&now));
    let mut history = History::default();
    for _ in 0..changes {
        cluster.change();
        let next = now.after(&cluster.map).expect("valid");
        history.step(&now, &next);
        now = next;
    }
    assert!(history.worst_load < 2.0, "{history:?}");
    assert!(history.ratio() < limits.moved, "{history:?}");
    assert!(history.worst_excess <= limits.excess, "{history:?}");
    assert!(history.worst_exceptions < limits.table, "{history:?}");
    let tidy = now.tidied(u64::MAX);
    assert!(worst_load(&tidy, 100) < 2.0);
    let fresh = Placement::fresh(&cluster.map, Policy::Copies(3), bits).expect("valid");
    let (ours, least) = (exceptions(&tidy), exceptions(&fresh));
    assert!(ours < least * 1.5 + 1.0, "{ours} {least}");
}

#[test]
fn ten_even_nodes() {
    let limits = Limits { fresh: 2.0, table: 10.0, moved: 1.01, excess: 2.0 };
    simulate(10, Shape::EVEN, 12, 20, &limits);
}

/// Five zones for three copies: the zone rule asks for more than quotas tell (see the crate).
#[test]
fn ten_uneven_nodes() {
    let limits = Limits { fresh: 5.0, table: 25.0, moved: 1.10, excess: 400.0 };
    simulate(10, Shape::uneven(10), 11, 20, &limits);
}

#[test]
fn a_hundred_even_nodes() {
    let limits = Limits { fresh: 5.0, table: 10.0, moved: 1.01, excess: 2.0 };
    simulate(100, Shape::EVEN, 12, 40, &limits);
}

#[test]
fn a_hundred_uneven_nodes() {
    let limits = Limits { fresh: 5.0, table: 10.0, moved: 1.01, excess: 2.0 };
    simulate(100, Shape::uneven(100), 14, 10, &limits);
}
