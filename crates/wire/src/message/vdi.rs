//! Messages about the table of VDIs.

use super::{RedundancyInfo, Time};

/// Names a VDI: the working one when neither tag nor snapshot id is given.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiSelector {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A snapshot by tag; empty for none.
    #[prost(string, tag = "2")]
    pub tag: String,
    /// A snapshot by id; 0 for none. Not together with a tag.
    #[prost(uint32, tag = "3")]
    pub snapshot_id: u32,
}

/// Everything the table says about one VDI, and what it occupies.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiEntry {
    /// Its id.
    #[prost(uint32, tag = "1")]
    pub vid: u32,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Tag of a snapshot; may be empty.
    #[prost(string, tag = "3")]
    pub tag: String,
    /// The snapshot counter: id of a snapshot, or, of a working VDI, the id its next snapshot
    /// gets (so 1 before the first).
    #[prost(uint32, tag = "4")]
    pub snapshot_id: u32,
    /// It is a snapshot.
    #[prost(bool, tag = "5")]
    pub snapshot: bool,
    /// Bytes, as its users see it.
    #[prost(uint64, tag = "6")]
    pub size: u64,
    /// Object size as a power of two.
    #[prost(uint32, tag = "7")]
    pub object_shift: u32,
    /// Redundancy.
    #[prost(message, optional, tag = "8")]
    pub redundancy: Option<RedundancyInfo>,
    /// VDI it was made from; 0 for none.
    #[prost(uint32, tag = "9")]
    pub parent: u32,
    /// Lineage it belongs to.
    #[prost(uint64, tag = "10")]
    pub lineage: u64,
    /// When it was made.
    #[prost(message, optional, tag = "11")]
    pub created: Option<Time>,
    /// When it became a snapshot.
    #[prost(message, optional, tag = "12")]
    pub snapshotted: Option<Time>,
    /// It may grow beyond 2^20 objects.
    #[prost(bool, tag = "13")]
    pub hyper: bool,
    /// An import did not finish: doors refuse it.
    #[prost(bool, tag = "14")]
    pub incomplete: bool,
    /// Object size times objects it owns anything of. Not filled by [`VdiLookup`].
    #[prost(uint64, tag = "15")]
    pub used: u64,
    /// Object size times other objects that show through from where it was made. Not filled by
    /// [`VdiLookup`].
    #[prost(uint64, tag = "16")]
    pub shared: u64,
    /// Bytes of one copy that it really stores. Not filled by [`VdiLookup`].
    #[prost(uint64, tag = "17")]
    pub stored: u64,
    /// Bytes really stored on disks, all copies together. Not filled by [`VdiLookup`].
    #[prost(uint64, tag = "18")]
    pub stored_total: u64,
    /// Handles that are open on it at present. Not filled by [`VdiLookup`].
    #[prost(uint32, tag = "19")]
    pub open: u32,
    /// It was made with its space reserved.
    #[prost(bool, tag = "20")]
    pub preallocated: bool,
}

/// Asks for VDIs by ascending id.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiList {
    /// Only ids above this one: for reading page by page.
    #[prost(uint32, tag = "1")]
    pub above: u32,
    /// Only VDIs (snapshots too) of exactly this name; empty for all.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// At most [`crate::VDI_PAGE_MAX`] VDIs.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiListReply {
    /// By ascending id.
    #[prost(message, repeated, tag = "1")]
    pub vdis: Vec<VdiEntry>,
    /// There may be more.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// Asks what the table says about a VDI, without its counters. NotFound or NoTag when missing.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiLookup {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub vdi: Option<VdiSelector>,
}

/// Asks for one VDI with its counters.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiInfo {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub vdi: Option<VdiSelector>,
}

/// The reply to [`VdiLookup`] and [`VdiInfo`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiInfoReply {
    /// It.
    #[prost(message, optional, tag = "1")]
    pub vdi: Option<VdiEntry>,
}

/// Makes an empty VDI. Exists when there is a working one of that name.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiCreate {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Bytes; 0 is fine.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Object size as a power of two; 0 for the cluster's default.
    #[prost(uint32, tag = "3")]
    pub object_shift: u32,
    /// Absent or 0 for the cluster's default.
    #[prost(message, optional, tag = "4")]
    pub redundancy: Option<RedundancyInfo>,
    /// It may have more than 2^20 objects.
    #[prost(bool, tag = "5")]
    pub hyper: bool,
    /// For the record: the client reserves all its space next, by [`super::WriteZeroes`].
    #[prost(bool, tag = "6")]
    pub preallocated: bool,
}

/// The reply to requests that made or changed a VDI.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiChanged {
    /// The VDI as it is now, without its counters.
    #[prost(message, optional, tag = "1")]
    pub vdi: Option<VdiEntry>,
}

/// Deletes a VDI or snapshot. Locked while someone else has it open.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiDelete {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub vdi: Option<VdiSelector>,
}

/// Makes a working VDI larger. Invalid when it would shrink or is beyond its largest size.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiResize {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// New bytes; the present size is fine and changes nothing.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// Gives a VDI with all its snapshots another name. Exists when that name is taken.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiRename {
    /// Present name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// New name.
    #[prost(string, tag = "2")]
    pub new_name: String,
}

/// Begins an import: makes an empty VDI marked incomplete and opens it. When an incomplete VDI of
/// that name is there, it is replaced by a new, empty one (whatever an interrupted import wrote is
/// gone); a complete one is Exists, one that another import has open is Locked.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ImportBegin {
    /// The VDI to make.
    #[prost(message, optional, tag = "1")]
    pub create: Option<VdiCreate>,
}

/// Ends an import: the VDI becomes complete. Its handle stays open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ImportFinish {
    /// From [`ImportBegin`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
}
