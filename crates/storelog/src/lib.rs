//! The store of one disk as a pure state machine: commands and disk completions in, disk
//! operations and replies out (DESIGN 8).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod io;
