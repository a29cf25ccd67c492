//! The storage daemon: options, start and stop of the process, its log, the cluster as one node
//! sees it, the control server that `dog` talks to, and the data worker.

pub mod daemonize;
pub mod log;
pub mod options;
pub mod pidfile;
