//! Requests for ranges of a VDI, turned into commands for the fragments they touch. The atomic
//! unit is the block: a request that starts or ends inside one reads the rest of it first.

use super::disks::Disks;
use super::locks::{BlockLocks, Hold};
use super::primary::Primary;
use crate::data::View;
use bytes::Bytes;
use sheepdog_storelog::{Answer, BlockKind, Command, Piece, ZeroKind};
use sheepdog_types::{
    BLOCK_SIZE, Error, ErrorKind, FragmentId, Geometry, LineageId, PageBuf, Result, Vid,
};
use sheepdog_volume::io::{MapExtent, MapKind, Segment, Volume, ZeroMode};
use sheepdog_volume::layout::{self, pieces};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

const BLOCK: u32 = BLOCK_SIZE as u32;
/// Fragments that one request works on at a time.
const FRAGMENTS_AT_ONCE: usize = 32;
/// Fragments that one look at the map reads, and extents it gathers before it stops; the answer
/// may cover less than was asked for.
const MAP_FRAGMENTS_MAX: usize = 256;
/// See [`MAP_FRAGMENTS_MAX`].
const MAP_EXTENTS_MAX: usize = 16 << 10;

/// What all VDIs of a worker share.
pub struct Gateway {
    disks: Disks,
    geometry: Geometry,
    primary: RefCell<Primary>,
    locks: BlockLocks,
}

impl Gateway {
    /// Over these disks.
    pub fn new(disks: Disks, primary: Primary) -> Self {
        let geometry = disks.geometry();
        Self { disks, geometry, primary: RefCell::new(primary), locks: BlockLocks::default() }
    }

    /// The disks below.
    pub const fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Gives the fragment's store a write with its next version, both in one step.
    async fn order(
        &self,
        fragment: FragmentId,
        command: impl FnOnce(sheepdog_types::Version) -> Command,
    ) -> Result<Answer> {
        let disk = self.disks.of(fragment)?;
        let version = self.primary.borrow_mut().next(fragment);
        let done = disk.command(command(version)).await;
        if done.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
            self.disks.refused(fragment);
        }
        done
    }

    async fn read_blocks(
        &self,
        fragment: FragmentId,
        path: &Arc<[Vid]>,
        start: u32,
        count: u32,
    ) -> Result<Vec<Piece>> {
        let path = Arc::clone(path);
        match self
            .disks
            .of(fragment)?
            .command(Command::Read { fragment, path, start, count })
            .await?
        {
            Answer::Data(pieces) => Ok(pieces),
            other => Err(Error::new(ErrorKind::Internal, format!("a read was answered {other:?}"))),
        }
    }

    /// Deletes every block of a vid, fragment by fragment.
    pub async fn sweep(
        &self,
        lineage: LineageId,
        vid: Vid,
        progress: impl Fn(u64, u64),
    ) -> Result<()> {
        let fragments = self.disks.fragments(lineage);
        let total = fragments.len() as u64;
        progress(0, total);
        let mut done = 0;
        for group in fragments.chunks(FRAGMENTS_AT_ONCE) {
            all(group.iter().map(|fragment| {
                self.order(*fragment, |version| Command::DeleteVid {
                    fragment: *fragment,
                    vid,
                    version,
                    forget: true,
                    request: None,
                })
            }))
            .await?;
            done += group.len() as u64;
            progress(done, total);
        }
        // What a lost disk holds is still to be deleted.
        self.disks.none_lost()
    }
}

/// An open VDI on its worker thread.
pub struct Vdi {
    gateway: Rc<Gateway>,
    view: Arc<View>,
}

impl Vdi {
    /// Through this gateway.
    pub const fn new(gateway: Rc<Gateway>, view: Arc<View>) -> Self {
        Self { gateway, view }
    }

    fn fragment(&self, number: u64) -> FragmentId {
        FragmentId { lineage: self.view.lineage, number }
    }

    fn check(&self, offset: u64, len: u64, writing: bool) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.view.size) {
            return Err(Error::new(ErrorKind::Invalid, "a range beyond the end of the VDI"));
        }
        if writing && self.view.read_only {
            return Err(ErrorKind::ReadOnly.into());
        }
        Ok(())
    }

    async fn read_piece(&self, piece: layout::Piece) -> Result<Vec<Segment>> {
        let start = piece.offset / BLOCK;
        let end = (piece.offset + piece.len).div_ceil(BLOCK);
        let fragment = self.fragment(piece.fragment);
        let read = self.gateway.read_blocks(fragment, &self.view.path, start, end - start).await?;
        Ok(trim(read, (piece.offset % BLOCK) as usize, piece.len as usize))
    }

    /// Writes bytes into one fragment.
    async fn write_piece(&self, piece: layout::Piece, data: Bytes) -> Result<()> {
        let fragment = self.fragment(piece.fragment);
        let (from, to) = (piece.offset, piece.offset + piece.len);
        let (start, end) = (from / BLOCK, to.div_ceil(BLOCK));
        let locks = &self.gateway.locks;
        if from.is_multiple_of(BLOCK) && to.is_multiple_of(BLOCK) {
            let _held = locks.hold(fragment, start..end, Hold::Shared).await;
            return self.write_blocks(fragment, start, vec![data]).await;
        }
        // Part of the first block, whole blocks, part of the last: the blocks at the edges are
        // held alone while their other bytes are read.
        let _held = locks.hold(fragment, start..end, Hold::Exclusive).await;
        let mut blocks = Vec::with_capacity(3);
        let mut at = from;
        while at < to {
            let block = at / BLOCK;
            let next = if at.is_multiple_of(BLOCK) && to - at >= BLOCK {
                to - to % BLOCK
            } else {
                to.min((block + 1) * BLOCK)
            };
            let bytes = data.slice((at - from) as usize..(next - from) as usize);
            if (next - at).is_multiple_of(BLOCK) {
                blocks.push(bytes);
            } else {
                let old = self.gateway.read_blocks(fragment, &self.view.path, block, 1).await?;
                let mut merged = PageBuf::zeroed(BLOCK_SIZE);
                for piece in &old {
                    if let Piece::Data(old) = piece {
                        merged.as_mut().copy_from_slice(old);
                    }
                }
                let within = (at % BLOCK) as usize;
                merged.as_mut()[within..within + bytes.len()].copy_from_slice(&bytes);
                blocks.push(merged.freeze());
            }
            at = next;
        }
        self.write_blocks(fragment, start, blocks).await
    }

    async fn write_blocks(&self, fragment: FragmentId, start: u32, data: Vec<Bytes>) -> Result<()> {
        let vid = self.view.vid;
        self.gateway
            .order(fragment, |version| Command::Write {
                fragment,
                vid,
                version,
                start,
                data,
                request: None,
            })
            .await?;
        Ok(())
    }

    /// Zeros a part of one fragment.
    async fn zero_piece(&self, piece: layout::Piece, mode: ZeroMode) -> Result<()> {
        let (from, to) = (piece.offset, piece.offset + piece.len);
        let (start, end) = (from.div_ceil(BLOCK), to / BLOCK);
        if start > end || (start == end && from != to) {
            // Inside one block, or parts of two neighbours.
            return self.zero_edge(piece.fragment, from, to).await;
        }
        if from < start * BLOCK {
            self.zero_edge(piece.fragment, from, start * BLOCK).await?;
        }
        if end * BLOCK < to {
            self.zero_edge(piece.fragment, end * BLOCK, to).await?;
        }
        if start == end {
            return Ok(());
        }
        let fragment = self.fragment(piece.fragment);
        let kind = match mode {
            ZeroMode::Reserve => ZeroKind::Reserve,
            // Where an ancestor could show through, its bytes must be covered.
            ZeroMode::Discard if self.view.path.len() > 1 => ZeroKind::Marker,
            ZeroMode::Discard => {
                if self.gateway.disks.of(fragment)?.next_fragment(fragment) != Some(fragment)
                    && !self.gateway.locks.is_claimed(fragment)
                {
                    // Nothing was ever written there, and nothing is being written.
                    return Ok(());
                }
                ZeroKind::Remove
            }
        };
        let vid = self.view.vid;
        let _held = self.gateway.locks.hold(fragment, start..end, Hold::Shared).await;
        self.gateway
            .order(fragment, |version| Command::Zero {
                fragment,
                vid,
                version,
                start,
                count: end - start,
                kind,
                request: None,
            })
            .await?;
        Ok(())
    }

    /// Zeros bytes that do not cover their blocks, unless they read as zeros already.
    async fn zero_edge(&self, fragment: u64, from: u32, to: u32) -> Result<()> {
        let piece = layout::Piece { fragment, offset: from, len: to - from };
        let now = self.read_piece(piece).await?;
        if now.iter().all(|segment| !matches!(segment, Segment::Data(_))) {
            return Ok(());
        }
        self.write_piece(piece, Bytes::from(vec![0; (to - from) as usize])).await
    }
}

impl Volume for Vdi {
    fn size(&self) -> u64 {
        self.view.size
    }

    fn read_only(&self) -> bool {
        self.view.read_only
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>> {
        self.check(offset, u64::from(len), false)?;
        let mut parts = pieces(self.gateway.geometry, offset, u64::from(len));
        let Some(first) = parts.next() else {
            return Ok(Vec::new());
        };
        if first.len == len {
            return self.read_piece(first).await;
        }
        let mut segments = Vec::new();
        let read = all(std::iter::once(first).chain(parts).map(|piece| self.read_piece(piece)));
        for part in read.await? {
            for segment in part {
                segment.push(&mut segments);
            }
        }
        Ok(segments)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.check(offset, data.len() as u64, true)?;
        let mut at = 0;
        let parts = pieces(self.gateway.geometry, offset, data.len() as u64).map(|piece| {
            let bytes = data.slice(at..at + piece.len as usize);
            at += piece.len as usize;
            self.write_piece(piece, bytes)
        });
        all(parts).await?;
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check(offset, len, true)?;
        let mut parts = pieces(self.gateway.geometry, offset, len).peekable();
        while parts.peek().is_some() {
            let group: Vec<_> = parts.by_ref().take(FRAGMENTS_AT_ONCE).collect();
            all(group.into_iter().map(|piece| self.zero_piece(piece, mode))).await?;
        }
        Ok(())
    }

    async fn map(&self, offset: u64, len: u64) -> Result<Vec<MapExtent>> {
        self.check(offset, len, false)?;
        let fragment_bytes = self.gateway.geometry.fragment_bytes();
        let (mut at, end) = (offset, offset + len);
        let mut map = Vec::new();
        for _ in 0..MAP_FRAGMENTS_MAX {
            if at >= end || map.len() >= MAP_EXTENTS_MAX {
                break;
            }
            // Where nothing was ever written there is nothing to look at.
            let here = self.fragment(at / fragment_bytes);
            let next = self.gateway.disks.next_fragment(here, end.div_ceil(fragment_bytes));
            let hole_end = next.map_or(end, |next| (next.number * fragment_bytes).min(end));
            if hole_end > at {
                MapExtent { len: hole_end - at, kind: MapKind::Hole }.push(&mut map);
                at = hole_end;
                continue;
            }
            let Some(piece) = pieces(self.gateway.geometry, at, end - at).next() else {
                break;
            };
            self.map_piece(piece, &mut map).await?;
            at += u64::from(piece.len);
        }
        Ok(map)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl Vdi {
    async fn map_piece(&self, piece: layout::Piece, map: &mut Vec<MapExtent>) -> Result<()> {
        let fragment = self.fragment(piece.fragment);
        let (start, end) = (piece.offset / BLOCK, (piece.offset + piece.len).div_ceil(BLOCK));
        let path = Arc::clone(&self.view.path);
        let command = Command::Map { fragment, path, start, count: end - start };
        let Answer::Map(runs) = self.gateway.disks.of(fragment)?.command(command).await? else {
            return Err(Error::new(ErrorKind::Internal, "a map was answered with something else"));
        };
        let mut skip = u64::from(piece.offset % BLOCK);
        let mut left = u64::from(piece.len);
        for (kind, blocks) in runs {
            let len = (u64::from(blocks) * BLOCK_SIZE as u64 - skip).min(left);
            (skip, left) = (0, left - len);
            let kind = match kind {
                BlockKind::Data => MapKind::Data,
                BlockKind::Reserved => MapKind::Zero,
                BlockKind::Zero | BlockKind::Hole => MapKind::Hole,
            };
            MapExtent { len, kind }.push(map);
        }
        Ok(())
    }
}

/// Runs all, at the same time, and gives their results in order, or the first error once all have
/// ended: a request that was answered has no part still under way.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, result) in &mut running {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ended) => *result = Some(ended),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, result)| result).collect()
}

/// The bytes `skip..skip + len` of pieces of whole blocks.
fn trim(read: Vec<Piece>, mut skip: usize, mut len: usize) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(read.len());
    for piece in read {
        let (bytes, whole) = match &piece {
            Piece::Data(data) => (Some(data.clone()), data.len()),
            Piece::Reserved(n) | Piece::Zero(n) | Piece::Hole(n) => {
                (None, *n as usize * BLOCK_SIZE)
            }
        };
        let take = (whole - skip.min(whole)).min(len);
        let segment = match (bytes, &piece) {
            (Some(bytes), _) => Segment::Data(bytes.slice(skip.min(whole)..skip.min(whole) + take)),
            (None, Piece::Reserved(_)) => Segment::Zero(take as u64),
            (None, _) => Segment::Hole(take as u64),
        };
        segment.push(&mut segments);
        skip -= skip.min(whole);
        len -= take;
    }
    segments
}

#[cfg(test)]
mod tests;
