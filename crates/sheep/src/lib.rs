//! The storage daemon: options, start and stop of the process, its log, the cluster as one node
//! sees it, the control server that `dog` talks to, and the data worker.

pub mod cluster;
pub mod control;
pub mod daemonize;
pub mod data;
pub mod log;
pub mod node;
pub mod offline;
pub mod options;
pub mod pidfile;
pub mod process;
mod regular;
pub mod worker;
