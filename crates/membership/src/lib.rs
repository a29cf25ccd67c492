//! Membership and coordinator (DESIGN 4 and 6.2) as pure state machines over the registry's
//! contract: events and `now` in, effects out.
//!
//! * [`Member`]: one per sheep process. It joins the cluster, keeps its sign of life, looks at the
//!   records and at its peers, tells the local shards what concerns them, stands for coordinator.
//! * [`Coordinator`]: the decisions of the member that was elected; it alone changes
//!   the map and the shard records.
//! * [`MapRecord`], [`ShardRecord`] and the small [`records`]: what the registry holds.
//!
//! # Who writes what
//! A node writes its own record, its sign of life and the stamps of its disks; everything else the
//! coordinator writes. Every transaction compares the revisions of the keys it changes, those of
//! the coordinator also that of the election key, so whoever acts on old knowledge changes
//! nothing. All decisions are functions of what the registry holds and of what was reported
//! lately: one that got lost, or that may have happened, is simply made again after reading.
//!
//! # What safety rests on
//! Nothing here depends on time being right. A node that is thought dead and lives is kept from
//! doing harm by promises and leases of the shards (6.2, 6.3), not by this crate.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod acting;
pub mod api;
pub mod coordinator;
pub mod detect;
pub mod keys;
pub mod map;
pub mod member;
pub mod records;
pub mod shards;

mod persist;
mod view;

pub use api::{
    Answer, Call, Command, Config, Effect, Event, Knowledge, LocalDisk, LogLevel, Message, Now,
    Suspicion, Token,
};
pub use coordinator::Coordinator;
pub use map::{DiskEntry, DiskState, MapRecord, NodeEntry, NodeState};
pub use member::Member;
pub use records::{Fences, NodeRecord, SetRecord, Settings, Stamp};
pub use shards::{Activation, Seat, ShardPack, ShardRecord};
