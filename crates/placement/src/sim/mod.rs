//! Made-up clusters, their histories, and judges of placements that work everything out by
//! themselves: what the zone rule allows at best, and what a change makes necessary. For the tests
//! and for `cargo xtask placement`; nothing of it is in a program.

mod cluster;
mod flow;
mod judge;
mod scenario;

pub use cluster::{
    Cluster, Disks, History, Numbers, Shape, Weights, Zones, band, exceptions, worst_load,
};
pub use flow::fewest;
pub use judge::{Spread, best, keeps_zone_rule, least, necessary, spread};
pub use scenario::{
    LOAD_MAX, MOVED_MAX, Moves, REPLICAS_MIN, ROUNDING, Row, Scenario, run, scenarios,
};
