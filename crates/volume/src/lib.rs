//! What a VDI is: its record, its name and id, which range lies in which fragment, and the data
//! path's interface.
//!
//! This crate is pure: it decides, as data, what others commit, store and send.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod io;
