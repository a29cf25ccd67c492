//! Placement
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod hash;
pub mod map;
pub mod placement;

mod level;
mod quota;
mod rendezvous;

pub use hash::{BITS_MAX, shard_of};
pub use map::{ClusterMap, DISKS_MAX, Disk, Node, NodeId, Policy, State, VNODES_MAX};
pub use placement::{DiskLoad, Exception, Move, Placement, movement, total_loads};
