//! The store of one disk as a pure state machine: commands and disk completions in, disk
//! operations and replies out (DESIGN 8).
//!
//! * [`Opening`] turns a prepared disk into a [`Store`]: superblock, index, replay of the log.
//! * [`Store::handle`] takes every event, [`Store::pump`] starts what has gathered.
//! * A write: `write` (admit, extents) → `group_commit` (batch, durable) → `apply` (index) → reply.
//! * A read: `read` (owner of each block, fetch, checksum) → reply.
//! * `checkpoint` brings blocks home and makes the index durable; `space` says what may be used.
//!
//! Nothing here knows a clock, a thread or a file; production, simulator and crash tests drive the
//! same code.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apply;
mod check;
mod checkpoint;
pub mod checksum;
pub mod command;
pub mod format;
pub mod fragment;
mod group_commit;
mod index;
pub mod io;
mod open;
mod read;
mod replica;
mod room;
mod shards;
mod space;
mod store;
mod tickets;
mod write;

pub use command::{Answer, BlockKind, Command, CommandId, Effect, Input, Piece, ZeroKind};
pub use format::superblock::{LOG_ELSEWHERE, LOG_HAS_OWNER, OWNER_BYTES, Superblock};
pub use open::{OpenReport, Opening, prepare};
pub use replica::{ChunkCopy, Held, REQUESTS_MAX, RequestEntry, SHARD_STATE_MAX};
pub use store::{Limits, Stats, Store, Usage};
