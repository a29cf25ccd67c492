//! The replication of a shard (DESIGN 6). Pure: no clock, random source, socket, file or thread.
//!
//! So far the decisions of a primary that takes over: who may decide (`authority`, P1) and what each
//! fragment holds from then on (P2). The state machine around them grows in the simulator.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod authority;

pub use authority::{Activation, Candidates, Copy, Decision, Incomplete};
