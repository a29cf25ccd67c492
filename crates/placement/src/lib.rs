//! Which disks hold which shard: a pure function of the cluster map, a redundancy policy and a
//! short table of exceptions.
//!
//! * A fragment belongs to the shard [`shard_of`] says: `hash(lineage, number) mod 2^b`. Each
//!   [`Policy`] has its own set of `2^b` shards and its own [`Placement`]. `b` is a parameter.
//! * A shard **wants** the disks that weighted rendezvous hashing gives it: one per zone, from the
//!   zones, and in them the nodes and disks, with the best scores. Weights are a node's vnodes,
//!   divided among its disks by their weights (module `rendezvous`).
//! * An **exception** says that a shard has another disk than one it wants, so that loads are
//!   level. [`Placement::acting_set`] is what a shard wants, with its exceptions applied.
//!
//! All decisions are made with integers. `tests/vectors/` pins hashes, draws, wanted disks and
//! levelled placements; a change that breaks one of them moves the data of every cluster.
//!
//! # Why there is a table, and how it is kept
//!
//! Rendezvous hashing alone strays by chance: 10 % at 100 replicas per disk. No function of the
//! *present* map alone can keep all loads within 2 % and also move little when the map changes,
//! because which replica fills which gap depends on everything else (`examples/balance.rs` prints
//! what it costs: several times what is necessary). So levelling has a memory, the table:
//!
//! * [`Placement::fresh`], for shards without data, levels every disk to its quota rounded up or
//!   down. The exceptions are about the mean deviation of chance: 1 to 4 % of the replicas.
//! * [`Placement::after`] follows a change of the map from the placement before it. It keeps every
//!   replica that may stay, and of the replicas that have to move prefers those moves that end an
//!   exception to those that make one.
//! * [`Placement::tidied`] ends exceptions at a price in copies that the caller names, for a
//!   cluster that is idle.
//!
//! The coordinator computes the table with each change of the map and publishes both together;
//! everyone else rebuilds the placement with [`Placement::with_exceptions`], which involves no
//! levelling at all. All three are deterministic.
//!
//! The table stays stable because it changes only where replicas move. It grows with churn, up to a
//! point: of the replicas that a leaving node gives up, about a quarter find the disk they want
//! full, and whatever moves again drops out. With 100 nodes replaced one by one it goes from 3.5 %
//! of the replicas (430 entries) to 6.5 % after 20 changes, and stays at 11 % from 200 on, however
//! many follow. Where each change moves a large part of everything (10 nodes in 5 zones) it can
//! reach a fifth. Tidying brings it back to about what a fresh placement has, at one copy or less
//! per exception that ends.
//!
//! # What is promised, exactly
//!
//! * **Zone rule.** Never two replicas of a shard in one zone. With fewer zones than the policy
//!   asks for, one replica in each.
//! * **Balance.** The *best that the zone rule allows* is found by filling zones like vessels: each
//!   gets replicas in proportion to its weight, none more than one of each shard; what a full zone
//!   cannot take goes to the others, in proportion. Within a zone a disk gets its share by weight.
//!   That is the disk's *quota*. Every load is within 1/64 (1.56 %) of the quota, or is the quota
//!   rounded up or down where that is more (below 64 replicas). That is under 2 % from 50 replicas
//!   per disk on.
//! * **Movement.** *Necessary* is the least number of replicas that any placement must copy to come
//!   within those bounds under the new map; the simulation finds it by a minimum-cost flow where
//!   zones are few. Where they are many it is what the quotas grow by in all
//!   ([`Placement::unavoidable`]). What moves is at most 1.05 times the larger of the two, plus 2
//!   replicas for rounding; over a sequence of changes it is 1.00 to 1.01 times.
//! * **Corner.** With hardly more zones than replicas and zones of very different weight, the least
//!   is itself above what the quotas grow by, by up to a quarter: a zone that becomes full must get
//!   a replica of each shard it lacks, whichever shards have lost one. There, and with 30 replicas
//!   per disk, a single change was once 6 % above the least; with 100 replicas per disk it stays
//!   within the bound since needless moves are taken back (`level/home.rs`). Before,
//!   3 of 7200 simulated changes of clusters of 5 to 10 nodes moved 5 to 8 % too much.
//! * `docs/placement.md` is a table of what the simulation finds.
//! * **Not levelled**: which disk is first in an acting set (each member is equally likely), and
//!   the bytes in shards. Nor has the order of an acting set to do with strips of an erasure code:
//!   which member holds which strip is for the shard record to say.
//!
//! # Cost
//!
//! A fresh placement draws once for each shard and disk, about 10 ns: 40 ms for 4096 shards and
//! 1000 disks. [`Placement::after`] draws anew only for disks that came or became heavier, and for
//! shards that wanted one that went or became lighter. Levelling is small beside that, except with
//! few zones and far more shards than the thousands meant. A placement takes 24
//! bytes per replica.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod hash;
pub mod map;
pub mod placement;

#[cfg(feature = "sim")]
pub mod sim;

mod level;
mod quota;
mod rendezvous;

pub use hash::{BITS_MAX, shard_of};
pub use map::{ClusterMap, DISKS_MAX, Disk, Node, Policy, State, VNODES_MAX, WIDTH_MAX};
pub use placement::{DiskLoad, Exception, Move, Placement, movement, total_loads};
