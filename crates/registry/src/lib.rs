//! The registry: the small strongly consistent store that holds the cluster's configuration, map,
//! shard records, VDI table, locks and settings. One contract ([`Registry`]), several engines;
//! this crate owns the contract, the words of the `-c` option ([`Driver`]) and the engine for the
//! sheep of one machine ([`LocalRegistry`]). Every engine passes the same suite (`conformance`).
//!
//! What the keys and values mean is decided above this crate, with one exception: a cluster is
//! formatted exactly while [`FORMATTED_KEY`] exists.

pub mod check;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod driver;
pub mod local;

pub use contract::{BoxFuture, Listing, Registry, Session, SessionState, Watch, WatchEvent};
pub use driver::Driver;
pub use local::{Joined, LocalOptions, LocalRegistry, Member, RecordedStore, directory_is_empty};

/// There from `dog cluster format` on. Engines that can tell an abandoned cluster from a new one
/// look at it; its value belongs to membership.
pub const FORMATTED_KEY: &str = "cluster/format";
