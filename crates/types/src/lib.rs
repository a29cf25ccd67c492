//! Words that every layer of Sheepdog shares: ids, versions, the geometry of a fragment, limits,
//! sizes as people type them, aligned buffers and the few kinds of error. See `docs/glossary.md`.
//!
//! This crate owns no behaviour beyond checking and printing its own values.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod buffer;
pub mod error;
pub mod geometry;
pub mod ids;
pub mod kv;
pub mod limits;
pub mod size;

pub use buffer::PageBuf;
pub use error::{Error, ErrorKind, Result};
pub use geometry::{BLOCK_SIZE, Geometry};
pub use ids::{
    DiskId, FragmentId, GATEWAY_SLOTS, Interval, LineageId, NodeId, Process, RequestId, ShardId,
    Version, Vid,
};
