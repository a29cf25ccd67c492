//! A real virtual machine, small enough to make on the spot: a distribution's kernel, busybox,
//! and a root disk that it boots from over NBD. See [`machine::Machine`].

pub mod cpio;
pub mod kernel;
pub mod machine;
pub mod root;

pub use machine::{Disk, Machine};
