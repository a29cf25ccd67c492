//! The replication of a shard (DESIGN 6). Pure: no clock, random source, socket, file or thread.
//!
//! * [`Shard`] is what a process does for one shard: events in, effects out.
//! * `primary`: takes over (P0 to P4), orders writes, serves reads under leases, recovers.
//! * `replica`: promises, takes writes in the order of chains, grants leases.
//! * `authority`: who may decide (P1) and what each fragment holds from then on (P2).
//! * `message`, `state`: what is said, and what a replica keeps of itself.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod authority;
pub mod effect;
pub mod lineages;
pub mod message;
pub mod primary;
pub mod replica;
pub mod rules;
pub mod shard;
pub mod state;

pub use authority::{Activation, Candidates, Copy, Decision, Incomplete};
pub use effect::{Assignment, Disk, Disks, Effect, Event, Token};
pub use lineages::{Lineages, VidRecord};
pub use message::Message;
pub use rules::{Rule, Rules};
pub use shard::{Found, Shard};
pub use state::ReplicaState;
