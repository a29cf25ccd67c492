//! Messages about the bytes of an open VDI. Ranges must lie inside the VDI: what begins or ends
//! beyond it is Invalid.

use super::{VdiEntry, VdiSelector};

/// Opens a VDI. A snapshot can be opened read-only alone; an incomplete VDI not at all
/// (Incomplete).
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiOpen {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub vdi: Option<VdiSelector>,
    /// No writes will come.
    #[prost(bool, tag = "2")]
    pub read_only: bool,
}

/// The reply to [`VdiOpen`] and [`super::ImportBegin`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiOpened {
    /// Names the open VDI on this connection; it closes with the connection.
    #[prost(uint64, tag = "1")]
    pub handle: u64,
    /// Bytes at this moment.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Writes are refused as ReadOnly.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
    /// What was opened, without its counters.
    #[prost(message, optional, tag = "4")]
    pub vdi: Option<VdiEntry>,
}

/// Reads at most [`crate::BULK_MAX`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Read {
    /// From [`VdiOpened`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
    /// Byte offset.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes.
    #[prost(uint32, tag = "3")]
    pub len: u32,
}

/// Kind of a piece of a read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum SegmentKind {
    /// Stored bytes, in the bulk data.
    Data = 0,
    /// Reads as zeros, holds no space.
    Hole = 1,
    /// Reads as zeros, has space reserved.
    Zero = 2,
}

/// A piece of a read, or of a map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SegmentInfo {
    /// What it is.
    #[prost(enumeration = "SegmentKind", tag = "1")]
    pub kind: i32,
    /// Bytes of the disk.
    #[prost(uint64, tag = "2")]
    pub len: u64,
}

/// Pieces in order and without gaps; the bytes of those of kind Data follow as bulk data. Made by
/// [`ReadReply::join`], taken apart by [`ReadReply::split`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReadReply {
    /// They cover exactly what was asked for.
    #[prost(message, repeated, tag = "1")]
    pub segments: Vec<SegmentInfo>,
}

/// Writes the bulk data, at most [`crate::BULK_MAX`] bytes. Durable when answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Write {
    /// From [`VdiOpened`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
    /// Byte offset.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// What becomes of the space of a range that is made zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum ZeroKind {
    /// It is freed.
    Discard = 0,
    /// It is kept or reserved.
    Reserve = 1,
}

/// Makes a range of any length zero. Durable when answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct WriteZeroes {
    /// From [`VdiOpened`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
    /// Byte offset.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub len: u64,
    /// What becomes of the space.
    #[prost(enumeration = "ZeroKind", tag = "4")]
    pub kind: i32,
}

/// Asks what is stored in a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Map {
    /// From [`VdiOpened`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
    /// Byte offset.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub len: u64,
}

/// At most [`crate::MAP_EXTENTS_MAX`] pieces in order and without gaps from the offset on. They
/// may cover less than was asked for, but something: ask again behind them.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MapReply {
    /// Neighbours differ in kind.
    #[prost(message, repeated, tag = "1")]
    pub extents: Vec<SegmentInfo>,
}

/// Answered when everything that was answered before on this handle is durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Flush {
    /// From [`VdiOpened`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
}

/// Closes an open VDI, after the requests that came before it on this handle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Close {
    /// From [`VdiOpened`].
    #[prost(uint64, tag = "1")]
    pub handle: u64,
}
