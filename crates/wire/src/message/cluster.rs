//! Messages about the cluster as a whole.

use super::{RedundancyInfo, Time};

/// What the cluster is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum ClusterState {
    /// Not said; never sent.
    Unknown = 0,
    /// Serving.
    Running = 1,
    /// Never formatted.
    WaitForFormat = 2,
    /// Nodes are missing: see [`ClusterInfoReply::waiting_for`].
    WaitForJoin = 3,
    /// Leaving.
    ShuttingDown = 4,
}

/// Asks for the state of the cluster and its history, newest epoch first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterInfo {
    /// Only epochs below this one; 0 for all. For reading a long history page by page.
    #[prost(uint64, tag = "1")]
    pub epochs_below: u64,
}

/// The state of the cluster. Answered whatever the state is.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterInfoReply {
    /// What it is doing.
    #[prost(enumeration = "ClusterState", tag = "1")]
    pub state: i32,
    /// Nodes, disks or stores it waits for, as people know them.
    #[prost(string, repeated, tag = "2")]
    pub waiting_for: Vec<String>,
    /// Names the cluster for ever; 16 bytes, empty when unformatted.
    #[prost(bytes = "vec", tag = "3")]
    pub cluster_id: Vec<u8>,
    /// When it was formatted; absent when unformatted.
    #[prost(message, optional, tag = "4")]
    pub created: Option<Time>,
    /// Redundancy of VDIs that do not ask for another.
    #[prost(message, optional, tag = "5")]
    pub redundancy: Option<RedundancyInfo>,
    /// Object size of VDIs that do not ask for another, as a power of two.
    #[prost(uint32, tag = "6")]
    pub object_shift: u32,
    /// Name of the store as given to format (`plain`).
    #[prost(string, tag = "7")]
    pub store: String,
    /// Weights are set by hand, not by space.
    #[prost(bool, tag = "8")]
    pub fixed_vnodes: bool,
    /// Data that lost a copy is not copied anew at present.
    #[prost(bool, tag = "9")]
    pub recovery_disabled: bool,
    /// The epochs asked for, newest first.
    #[prost(message, repeated, tag = "10")]
    pub epochs: Vec<EpochInfo>,
    /// There are older epochs than those.
    #[prost(bool, tag = "11")]
    pub more: bool,
    /// The registry's driver string (`local`).
    #[prost(string, tag = "12")]
    pub registry: String,
    /// VDIs there are, snapshots included: whether a cluster is empty.
    #[prost(uint64, tag = "13")]
    pub vdis: u64,
}

/// One version of the cluster map.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct EpochInfo {
    /// Its number, from 1.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// When it began.
    #[prost(message, optional, tag = "2")]
    pub time: Option<Time>,
    /// Its nodes in the order of `dog node list`.
    #[prost(message, repeated, tag = "3")]
    pub nodes: Vec<EpochNode>,
}

/// A node as an epoch names it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct EpochNode {
    /// Address without port (`127.0.0.1`, `::1`).
    #[prost(string, tag = "1")]
    pub address: String,
    /// Port of the sheepdog protocol.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Its weight; 0 for a gateway.
    #[prost(uint32, tag = "3")]
    pub vnodes: u32,
    /// Its disks.
    #[prost(uint32, tag = "4")]
    pub disks: u32,
}

/// Formats the cluster: all VDIs are gone afterwards.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterFormat {
    /// `plain` or `tree`; both mean the only store there is. Others are refused as Invalid.
    #[prost(string, tag = "1")]
    pub store: String,
    /// Redundancy of VDIs that do not ask for another; absent or 0 for the default.
    #[prost(message, optional, tag = "2")]
    pub redundancy: Option<RedundancyInfo>,
    /// Object size of VDIs that do not ask for another; 0 for the default.
    #[prost(uint32, tag = "3")]
    pub object_shift: u32,
    /// Opening a VDI for writing takes its lock.
    #[prost(bool, tag = "4")]
    pub lock: bool,
    /// Writes are refused when fewer zones than copies are there.
    #[prost(bool, tag = "5")]
    pub strict: bool,
    /// Weights are set by hand.
    #[prost(bool, tag = "6")]
    pub fixed_vnodes: bool,
    /// Ids of deleted VDIs may be used again.
    #[prost(bool, tag = "7")]
    pub recycle_vids: bool,
    /// Recovery that could fill a disk is refused.
    #[prost(bool, tag = "8")]
    pub avoid_diskfull: bool,
    /// Format although there are VDIs; without it, and VDIs there, the answer is Exists. For a
    /// look-then-format that must not race with a create.
    #[prost(bool, tag = "9")]
    pub force: bool,
}

/// What the format made.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterFormatReply {
    /// Names the new cluster.
    #[prost(bytes = "vec", tag = "1")]
    pub cluster_id: Vec<u8>,
    /// Redundancy it was given.
    #[prost(message, optional, tag = "2")]
    pub redundancy: Option<RedundancyInfo>,
    /// Object size it was given.
    #[prost(uint32, tag = "3")]
    pub object_shift: u32,
}

/// Makes all sheep finish their requests and leave. Answered before they leave.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterShutdown {}
