//! The deterministic simulator: what surrounds the core in a run that one seed names, and what
//! judges it. Owns chance, time, the net, the disks, the registry, the clients, the checker of
//! histories and the shrinking of runs that failed; the nodes that it surrounds are the product's
//! own state machines.
//!
//! Nothing here knows a clock, a thread or a hash order: the same seed is the same run.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod check;
pub mod controller;
pub mod disk;
pub mod history;
pub mod net;
pub mod node;
pub mod queue;
pub mod registry;
pub mod report;
pub mod rng;
pub mod shrink;
pub mod stamp;
pub mod workload;
pub mod world;

pub use queue::{Queue, Token};
pub use report::Counts;
pub use rng::{Delay, Rng};
pub use world::{Outcome, Plan, World};

/// A simulated machine, numbered from 0. It runs at most one process of sheep at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Host(pub u16);

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000 * MS;
