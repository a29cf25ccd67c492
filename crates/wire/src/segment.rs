//! The answer to a read: pieces in order, whose data travels as bulk data.

use crate::message::{ReadReply, SegmentInfo, SegmentKind};
use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, Result};

/// A piece of the answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadSegment {
    /// Stored bytes.
    Data(Bytes),
    /// This many bytes read as zeros and hold no space.
    Hole(u64),
    /// This many bytes read as zeros and have space reserved.
    Zero(u64),
}

impl ReadSegment {
    /// Bytes of the disk it stands for.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Hole(len) | Self::Zero(len) => *len,
        }
    }

    /// Whether it stands for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ReadReply {
    /// The reply message and its bulk data.
    pub fn join(segments: impl IntoIterator<Item = ReadSegment>) -> (Self, Vec<Bytes>) {
        let mut reply = Self::default();
        let mut bulk = Vec::new();
        for segment in segments {
            let kind = match segment {
                ReadSegment::Data(_) => SegmentKind::Data,
                ReadSegment::Hole(_) => SegmentKind::Hole,
                ReadSegment::Zero(_) => SegmentKind::Zero,
            };
            reply.segments.push(SegmentInfo { kind: kind.into(), len: segment.len() });
            if let ReadSegment::Data(bytes) = segment {
                bulk.push(bytes);
            }
        }
        (reply, bulk)
    }

    /// The pieces of a reply that arrived, checked to cover exactly `len` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when lengths do not add up or a kind is unknown.
    pub fn split(&self, mut bulk: Bytes, len: u64) -> Result<Vec<ReadSegment>> {
        let broken = || Error::new(ErrorKind::Internal, "the answer to a read does not add up");
        let mut covered = 0u64;
        let mut segments = Vec::with_capacity(self.segments.len());
        for info in &self.segments {
            covered = covered.checked_add(info.len).ok_or_else(broken)?;
            segments.push(match SegmentKind::try_from(info.kind) {
                Ok(SegmentKind::Data) if info.len <= bulk.len() as u64 => {
                    ReadSegment::Data(bulk.split_to(info.len as usize))
                }
                Ok(SegmentKind::Hole) => ReadSegment::Hole(info.len),
                Ok(SegmentKind::Zero) => ReadSegment::Zero(info.len),
                _ => return Err(broken()),
            });
        }
        if covered == len && bulk.is_empty() { Ok(segments) } else { Err(broken()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_survive_and_must_add_up() {
        let pieces = [
            ReadSegment::Data(Bytes::from_static(b"abc")),
            ReadSegment::Hole(5),
            ReadSegment::Zero(2),
            ReadSegment::Data(Bytes::from_static(b"de")),
        ];
        let (reply, bulk) = ReadReply::join(pieces.clone());
        let bulk = Bytes::from(bulk.concat());
        assert_eq!(reply.split(bulk.clone(), 12).expect("whole"), pieces);
        assert!(reply.split(bulk.clone(), 11).is_err());
        assert!(reply.split(bulk.slice(1..), 12).is_err());
        assert!(reply.split(Bytes::from_static(b"abcdef"), 12).is_err());
        let overflow = ReadReply {
            segments: vec![SegmentInfo { kind: SegmentKind::Hole.into(), len: u64::MAX }; 2],
        };
        assert!(overflow.split(Bytes::new(), u64::MAX - 1).is_err());
        let unknown = ReadReply { segments: vec![SegmentInfo { kind: 9, len: 1 }] };
        assert!(unknown.split(Bytes::new(), 1).is_err());
    }
}
