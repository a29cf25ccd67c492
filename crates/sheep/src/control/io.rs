//! Requests for the bytes of an open VDI.

use super::connection::{Open, Session};
use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::io::{MapKind, Segment, ZeroMode};
use sheepdog_wire::{
    BULK_MAX, Done, Flush, MAP_EXTENTS_MAX, Map, MapReply, Read, ReadReply, ReadSegment,
    SegmentInfo, SegmentKind, Write, WriteZeroes, ZeroKind,
};
use std::sync::Arc;

/// Zeros are written in pieces of so many bytes, so that a deletion or a leave need not wait long.
const ZEROES_STEP: u64 = 256 << 20;

impl Session {
    pub(super) async fn read(&self, read: Read) -> Result<(ReadReply, Vec<Bytes>)> {
        let open = self.handle(read.handle)?;
        let _pass = open.gate.enter().await?;
        check_range(&open, read.offset, u64::from(read.len))?;
        let data = self.node.data()?;
        let segments = data.read(Arc::clone(&open.view), read.offset, read.len).await?;
        // Deleted in between: what a sweep has freed reads as zeros.
        open.gate.check()?;
        Ok(ReadReply::join(segments.into_iter().map(|s| match s {
            Segment::Data(bytes) => ReadSegment::Data(bytes),
            Segment::Hole(len) => ReadSegment::Hole(len),
            Segment::Zero(len) => ReadSegment::Zero(len),
        })))
    }

    pub(super) async fn write(&self, write: Write, bulk: Bytes) -> Result<Done> {
        let open = self.handle(write.handle)?;
        let _pass = open.gate.enter().await?;
        check_writable(&open)?;
        check_range(&open, write.offset, bulk.len() as u64)?;
        if bulk.len() > BULK_MAX {
            return Err(Error::new(ErrorKind::Invalid, "a write beyond the limit"));
        }
        if !bulk.is_empty() {
            let data = self.node.data()?;
            data.write(Arc::clone(&open.view), write.offset, bulk).await?;
        }
        Ok(Done {})
    }

    pub(super) async fn write_zeroes(&self, zeroes: WriteZeroes) -> Result<Done> {
        let open = self.handle(zeroes.handle)?;
        let mode = match ZeroKind::try_from(zeroes.kind) {
            Ok(ZeroKind::Discard) => ZeroMode::Discard,
            Ok(ZeroKind::Reserve) => ZeroMode::Reserve,
            Err(_) => return Err(Error::new(ErrorKind::Invalid, "an unknown kind of zeros")),
        };
        check_writable(&open)?;
        check_range(&open, zeroes.offset, zeroes.len)?;
        let end = zeroes.offset + zeroes.len;
        let mut at = zeroes.offset;
        while at < end {
            let _pass = open.gate.enter().await?;
            if self.node.is_leaving() {
                return Err(ErrorKind::ShuttingDown.into());
            }
            let len = (end - at).min(ZEROES_STEP);
            let data = self.node.data()?;
            data.write_zeroes(Arc::clone(&open.view), at, len, mode).await?;
            at += len;
        }
        Ok(Done {})
    }

    pub(super) async fn map(&self, map: Map) -> Result<MapReply> {
        let open = self.handle(map.handle)?;
        let _pass = open.gate.enter().await?;
        check_range(&open, map.offset, map.len)?;
        if map.len == 0 {
            return Ok(MapReply::default());
        }
        let data = self.node.data()?;
        let extents = data.map(Arc::clone(&open.view), map.offset, map.len).await?;
        open.gate.check()?;
        let extents = extents
            .into_iter()
            .take(MAP_EXTENTS_MAX)
            .map(|extent| SegmentInfo {
                kind: match extent.kind {
                    MapKind::Data => SegmentKind::Data,
                    MapKind::Hole => SegmentKind::Hole,
                    MapKind::Zero => SegmentKind::Zero,
                }
                .into(),
                len: extent.len,
            })
            .collect();
        Ok(MapReply { extents })
    }

    /// All writes are durable when they are answered.
    pub(super) async fn flush(&self, flush: Flush) -> Result<Done> {
        let open = self.handle(flush.handle)?;
        let _pass = open.gate.enter().await?;
        Ok(Done {})
    }
}

fn check_writable(open: &Open) -> Result<()> {
    if open.view.read_only {
        return Err(ErrorKind::ReadOnly.into());
    }
    Ok(())
}

fn check_range(open: &Open, offset: u64, len: u64) -> Result<()> {
    let size = open.view.size;
    if offset.checked_add(len).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("{len} bytes at {offset} reach beyond the end of the VDI at {size}"),
    ))
}
