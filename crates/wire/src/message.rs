//! Every message of the protocol. Fields may be added, never changed or reused: what an older
//! peer does not know it skips, what it does not send reads as zero or empty.

mod cluster;
mod io;
mod node;
mod vdi;

pub use cluster::*;
pub use io::*;
pub use node::*;
pub use vdi::*;

/// Why a request failed; its kind is the status in the header.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Failure {
    /// One line without a full stop; empty when the kind says it all.
    #[prost(string, tag = "1")]
    pub context: String,
}

/// The reply to a request that has nothing to say but success.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Done {}

/// A point in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00 UTC.
    #[prost(uint64, tag = "1")]
    pub seconds: u64,
    /// Nanoseconds within the second.
    #[prost(uint32, tag = "2")]
    pub nanos: u32,
}

/// How data is protected: `data` copies without parity, or `data` strips with `parity` strips.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct RedundancyInfo {
    /// Copies if `parity` is 0, else data strips. 0 asks for the default.
    #[prost(uint32, tag = "1")]
    pub data: u32,
    /// Parity strips; 0 for copies.
    #[prost(uint32, tag = "2")]
    pub parity: u32,
}
