//! Messages about nodes.

/// Asks for the nodes of the current epoch, ordered by (address bytes, port).
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeList {
    /// Skip this many: for reading page by page.
    #[prost(uint32, tag = "1")]
    pub skip: u32,
}

/// The nodes, at most [`crate::NODE_PAGE_MAX`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeListReply {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NodeEntry>,
    /// There are more.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeEntry {
    /// Address without port.
    #[prost(string, tag = "1")]
    pub address: String,
    /// Port of the sheepdog protocol.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Weight; 0 for a gateway.
    #[prost(uint32, tag = "3")]
    pub vnodes: u32,
    /// Failure domain.
    #[prost(uint32, tag = "4")]
    pub zone: u32,
    /// Uuids of its disks, 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub disks: Vec<Vec<u8>>,
    /// Version of its program; empty when not known.
    #[prost(string, tag = "6")]
    pub version: String,
    /// Its weight was set by hand.
    #[prost(bool, tag = "7")]
    pub fixed_vnodes: bool,
}

/// Asks for the space of all nodes. The sheep asked collects the answers of the others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeInfo {
    /// Skip this many nodes: for reading page by page.
    #[prost(uint32, tag = "1")]
    pub skip: u32,
}

/// Space by node.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeInfoReply {
    /// In the order of [`NodeList`].
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NodeSpace>,
    /// There are more.
    #[prost(bool, tag = "2")]
    pub more: bool,
    /// Sum of the sizes of all VDIs that are not snapshots.
    #[prost(uint64, tag = "3")]
    pub virtual_bytes: u64,
}

/// Space of one node.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeSpace {
    /// Address without port.
    #[prost(string, tag = "1")]
    pub address: String,
    /// Port of the sheepdog protocol.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// It answered; the numbers count only then.
    #[prost(bool, tag = "3")]
    pub reachable: bool,
    /// Bytes its store occupies.
    #[prost(uint64, tag = "4")]
    pub used: u64,
    /// Bytes it may still take.
    #[prost(uint64, tag = "5")]
    pub available: u64,
    /// Its disks, lost ones too, if it tells.
    #[prost(message, repeated, tag = "7")]
    pub disks: Vec<DiskInfo>,
    /// It is the node that was asked.
    #[prost(bool, tag = "8")]
    pub here: bool,
}

/// A disk of a node. Counters are since its sheep was started.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DiskInfo {
    /// Uuid, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Where it is on its node.
    #[prost(string, tag = "2")]
    pub path: String,
    /// Why it cannot be used; empty if it can.
    #[prost(string, tag = "3")]
    pub lost: String,
    /// Bytes its store occupies.
    #[prost(uint64, tag = "4")]
    pub used: u64,
    /// Bytes it may still take.
    #[prost(uint64, tag = "5")]
    pub available: u64,
    /// Blocks and pages whose checksum was wrong when they were read.
    #[prost(uint64, tag = "6")]
    pub checksum_errors: u64,
    /// Writes are acknowledged before they are durable.
    #[prost(bool, tag = "7")]
    pub nosync: bool,
    /// Bytes a second that its scrub may read; 0 is never.
    #[prost(uint64, tag = "8")]
    pub scrub_rate: u64,
    /// Fragments that the scrub has read in its present pass.
    #[prost(uint64, tag = "9")]
    pub scrub_done: u64,
    /// Fragments there were when the pass began.
    #[prost(uint64, tag = "10")]
    pub scrub_total: u64,
    /// Passes that ended.
    #[prost(uint64, tag = "11")]
    pub scrub_passes: u64,
    /// Places that the scrub found bad.
    #[prost(uint64, tag = "12")]
    pub bad: u64,
    /// The first of them, a line each.
    #[prost(string, repeated, tag = "13")]
    pub findings: Vec<String>,
}
