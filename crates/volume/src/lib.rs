//! What a VDI is: its record, its name and id, the table's rules, which bytes lie in which
//! fragment, and the data path's interface.
//!
//! This crate is pure: it decides, as data, what others commit, store and send.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cluster;
#[cfg(test)]
mod hex;
pub mod io;
pub mod layout;
pub mod name;
mod persist;
pub mod record;
pub mod redundancy;
pub mod size;
pub mod table;
pub mod table_copy;
pub mod vid;

pub use redundancy::Redundancy;
