//! The data path's interface: what a door may ask of an open VDI, and the pieces answers are made
//! of. The worker that owns the disk implements [`Volume`]; doors are generic over it.

use bytes::Bytes;
use sheepdog_types::Result;
use std::future::Future;

/// A piece of an answer to a read, in order, without gaps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Segment {
    /// Bytes that are stored.
    Data(Bytes),
    /// So many zeros, with no space behind them.
    Hole(u64),
    /// So many zeros, with space reserved for them.
    Zero(u64),
}

impl Segment {
    /// Bytes of the disk it covers.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(len) | Self::Zero(len) => *len,
        }
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What an allocation map says about it.
    #[must_use]
    pub const fn kind(&self) -> MapKind {
        match self {
            Self::Data(_) => MapKind::Data,
            Self::Hole(_) => MapKind::Hole,
            Self::Zero(_) => MapKind::Zero,
        }
    }

    /// Appends to an answer: nothing for an empty piece, and zeros of one kind become one piece.
    pub fn push(self, segments: &mut Vec<Self>) {
        if self.is_empty() {
            return;
        }
        match (segments.last_mut(), &self) {
            (Some(Self::Hole(have)), Self::Hole(more))
            | (Some(Self::Zero(have)), Self::Zero(more)) => *have += more,
            _ => segments.push(self),
        }
    }
}

/// What an allocation map says about a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// Data is stored.
    Data,
    /// Zeros, space reserved.
    Zero,
    /// Zeros, no space.
    Hole,
}

/// Merged, in-order pieces of an allocation map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapExtent {
    /// Bytes, never 0 in an answer.
    pub len: u64,
    /// What is there.
    pub kind: MapKind,
}

impl MapExtent {
    /// Appends to a map: nothing for an empty piece, and neighbours of one kind become one extent.
    pub fn push(self, map: &mut Vec<Self>) {
        match map.last_mut() {
            _ if self.len == 0 => {}
            Some(last) if last.kind == self.kind => last.len += self.len,
            _ => map.push(self),
        }
    }
}

/// How zeros are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroMode {
    /// Free the space.
    Discard,
    /// Keep or reserve the space: NBD's NO_HOLE, preallocation.
    Reserve,
}

/// An open VDI. The futures are not `Send`: everything of one VDI happens on its worker thread.
///
/// Any byte offset and length is served; the range must lie inside [`Volume::size`], which callers
/// check.
pub trait Volume {
    /// Bytes of the disk; grows when the VDI is resized.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The bytes of a range, in order, without gaps.
    fn read(&self, offset: u64, len: u32) -> impl Future<Output = Result<Vec<Segment>>>;

    /// Durable when it returns. For no copies, `data`'s address should be equal to `offset` modulo
    /// 4096 (a [`sheepdog_types::PageBuf`] filled from `offset % 4096` on).
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<()>>;

    /// The range reads as zeros, durably, when it returns.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<()>>;

    /// What is stored where in a range, merged and in order.
    fn map(&self, offset: u64, len: u64) -> impl Future<Output = Result<Vec<MapExtent>>>;

    /// Nothing to do while all writes are durable when acknowledged.
    fn flush(&self) -> impl Future<Output = Result<()>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_one_kind_become_one() {
        let mut map = Vec::new();
        for (len, kind) in [
            (4, MapKind::Data),
            (0, MapKind::Hole),
            (8, MapKind::Data),
            (1, MapKind::Zero),
            (2, MapKind::Hole),
            (3, MapKind::Hole),
        ] {
            MapExtent { len, kind }.push(&mut map);
        }
        let want = [(12, MapKind::Data), (1, MapKind::Zero), (5, MapKind::Hole)];
        assert_eq!(map, want.map(|(len, kind)| MapExtent { len, kind }));

        let mut segments = Vec::new();
        for segment in [
            Segment::Hole(1),
            Segment::Hole(2),
            Segment::Zero(1),
            Segment::Data(Bytes::new()),
            Segment::Zero(4),
            Segment::Data(Bytes::from_static(b"ab")),
            Segment::Data(Bytes::from_static(b"c")),
        ] {
            segment.push(&mut segments);
        }
        assert_eq!(
            segments,
            [
                Segment::Hole(3),
                Segment::Zero(5),
                Segment::Data(Bytes::from_static(b"ab")),
                Segment::Data(Bytes::from_static(b"c")),
            ]
        );
        assert_eq!(segments.iter().map(Segment::len).sum::<u64>(), 11);
        assert_eq!(segments[1].kind(), MapKind::Zero);
    }
}
