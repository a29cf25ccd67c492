//! The path of a read: find the newest owner of each block, fetch what is not in memory, check
//! every checksum, answer.

mod chunks;

use crate::checksum::block_crc;
use crate::command::{Answer, BlockKind, CommandId, Effect, Piece};
use crate::format::fragment_page::{self, FragmentPage};
use crate::fragment::Chunk;
use crate::index::Loaded;
use crate::io::{Area, DiskError, DiskOp};
use crate::store::{Purpose, Store, out_of_range};
use crate::write::chunk_masks;
use bytes::Bytes;
use chunks::Shape;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, FragmentId, Result, Vid};
use std::collections::BTreeMap;

/// A read whose bytes are on their way from the disk.
pub(crate) struct PendingRead {
    pub command: CommandId,
    fragment: FragmentId,
    pieces: Vec<Planned>,
    shape: Shape,
    ops_left: u32,
    ticket: u64,
    failed: Option<Error>,
}

/// A run of blocks of a read.
enum Planned {
    /// Known without I/O.
    Ready(Piece),
    /// To be fetched: first block, checksums of all, where.
    Fetch { first: u32, crcs: Vec<u32>, area: Area, offset: u64 },
}

/// Where a block's bytes are.
enum Source<'a> {
    Memory(&'a Bytes),
    Disk { area: Area, offset: u64 },
    Zeros(BlockKind),
}

impl Store {
    pub(crate) fn run_read(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        path: &[Vid],
        start: u32,
        count: u32,
        out: &mut Vec<Effect>,
    ) {
        if !self.covers(start, count) {
            return out.push(Effect::Reply(command, out_of_range()));
        }
        let pieces = self.plan(fragment, path, start, count);
        self.begin_read(command, fragment, pieces, Shape::Blocks, out);
    }

    pub(crate) fn run_map(
        &mut self,
        fragment: FragmentId,
        path: &[Vid],
        start: u32,
        count: u32,
    ) -> Result<Answer> {
        if !self.covers(start, count) {
            return out_of_range();
        }
        let mut runs: Vec<(BlockKind, u32)> = Vec::new();
        self.each_block(fragment, path, start, count, |_, source, _| {
            let kind = match source {
                Source::Memory(_) | Source::Disk { .. } => BlockKind::Data,
                Source::Zeros(kind) => kind,
            };
            match runs.last_mut() {
                Some(last) if last.0 == kind => last.1 += 1,
                _ => runs.push((kind, 1)),
            }
        });
        Ok(Answer::Map(runs))
    }

    fn covers(&self, start: u32, count: u32) -> bool {
        let blocks = self.geometry().blocks_per_fragment();
        count > 0 && start < blocks && count <= blocks - start
    }

    fn plan(&mut self, fragment: FragmentId, path: &[Vid], start: u32, count: u32) -> Vec<Planned> {
        let mut pieces: Vec<Planned> = Vec::new();
        self.each_block(fragment, path, start, count, |block, source, crc| match source {
            Source::Memory(bytes) => pieces.push(Planned::Ready(Piece::Data(bytes.clone()))),
            Source::Disk { area, offset } => {
                if let Some(Planned::Fetch { crcs, area: last, offset: from, .. }) =
                    pieces.last_mut()
                    && *last == area
                    && *from + (crcs.len() * BLOCK_SIZE) as u64 == offset
                {
                    crcs.push(crc);
                } else {
                    let crcs = vec![crc];
                    pieces.push(Planned::Fetch { first: block, crcs, area, offset });
                }
            }
            Source::Zeros(kind) => push_zeros(&mut pieces, kind),
        });
        pieces
    }

    /// Visits the blocks of a range in order with the source of their newest bytes.
    fn each_block(
        &mut self,
        id: FragmentId,
        path: &[Vid],
        start: u32,
        count: u32,
        mut visit: impl FnMut(u32, Source<'_>, u32),
    ) {
        let geometry = self.geometry();
        let per_chunk = geometry.blocks_per_chunk();
        let log_bytes = self.superblock.log_bytes;
        let Some(Loaded { fragment, logged, .. }) = self.index.loaded(id) else {
            for block in start..start + count {
                visit(block, Source::Zeros(BlockKind::Hole), 0);
            }
            return;
        };
        for (index, mask) in chunk_masks(start, count, per_chunk) {
            // Usually one vid: its chunk is looked up once, not once a block.
            let own: Option<(Vid, &Chunk)> = match path {
                [vid] => fragment.chunk(*vid, index).map(|chunk| (*vid, chunk)),
                _ => None,
            };
            for slot in (0..per_chunk).filter(|slot| mask & (1 << slot) != 0) {
                let block = u32::from(index) * per_chunk + slot;
                let owner = if path.len() == 1 { own } else { fragment.owner(path, block) };
                let Some((vid, chunk)) = owner else {
                    visit(block, Source::Zeros(BlockKind::Hole), 0);
                    continue;
                };
                let bit = 1u16 << slot;
                let source = if chunk.data & bit != 0 {
                    locate(logged, (vid, block), chunk, slot, geometry.chunk_bytes(), log_bytes)
                } else if chunk.zero & bit == 0 {
                    Source::Zeros(BlockKind::Hole)
                } else if chunk.backed & bit != 0 {
                    Source::Zeros(BlockKind::Reserved)
                } else {
                    Source::Zeros(BlockKind::Zero)
                };
                visit(block, source, chunk.crcs[slot as usize]);
            }
        }
    }

    pub(crate) fn piece_read(
        &mut self,
        read: u64,
        piece: usize,
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(pending) = self.reads.get_mut(&read) else {
            return;
        };
        let fragment = pending.fragment;
        let mut errors = 0;
        if let Some(Planned::Fetch { first, crcs, .. }) = pending.pieces.get(piece) {
            match result {
                Err(error) => {
                    let what = format!("fragment {fragment} block {first}: {}", error.text);
                    pending.failed.get_or_insert(Error::new(ErrorKind::Io, what));
                }
                Ok(bytes) => {
                    for (at, (block, crc)) in bytes.chunks(BLOCK_SIZE).zip(crcs.iter()).enumerate()
                    {
                        let number = first + at as u32;
                        if block_crc(fragment, number, block) != *crc {
                            errors += 1;
                            let what =
                                format!("fragment {fragment} block {number}: wrong checksum");
                            pending.failed.get_or_insert(Error::new(ErrorKind::Io, what));
                        }
                    }
                    pending.pieces[piece] = Planned::Ready(Piece::Data(bytes));
                }
            }
        }
        self.stats.checksum_errors += errors;
        pending.ops_left -= 1;
        if pending.ops_left > 0 {
            return;
        }
        let Some(pending) = self.reads.remove(&read) else {
            return;
        };
        self.tickets.end(pending.ticket);
        let answer = match pending.failed {
            Some(error) => Err(error),
            None => Ok(pending.shape.answer(ready(pending.pieces))),
        };
        out.push(Effect::Reply(pending.command, answer));
    }

    // ---- pages of fragments -------------------------------------------------------------------

    pub(crate) fn load_page(&mut self, fragment: FragmentId, out: &mut Vec<Effect>) {
        let Some(page) = self.index.get(fragment).map(|entry| entry.page) else {
            return;
        };
        let active = self.active.entry(fragment).or_default();
        if active.loading {
            return;
        }
        active.loading = true;
        let op = DiskOp::Read { area: Area::Data, offset: page.offset(), len: page.bytes() };
        self.disk(Purpose::Page(fragment), op, out);
    }

    pub(crate) fn page_read(
        &mut self,
        id: FragmentId,
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Effect>,
    ) {
        let loaded = self.decode_page(id, result);
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        active.loading = false;
        match loaded {
            Ok(page) => {
                self.index.load(id, page.fragment);
                let active = &self.active;
                self.index.shrink(self.limits.cache_bytes, 64, |id| active.contains_key(&id));
                self.drain_waiting(id, out);
            }
            Err(error) => {
                // Nothing is known of the fragment: no read or write of it can be right.
                let waiting = std::mem::take(&mut active.waiting);
                for (command, _) in waiting {
                    let error = Error::new(error.kind(), error.context());
                    out.push(Effect::Reply(command, Err(error)));
                }
                self.drop_idle(id);
            }
        }
    }

    /// A fragment's page that was read.
    pub(crate) fn decode_page(
        &mut self,
        id: FragmentId,
        result: Result<Bytes, DiskError>,
    ) -> Result<FragmentPage> {
        let bytes = result.map_err(|error| bad_page(id, &error.text))?;
        let units_max = self.limits.units_max;
        let why = match fragment_page::decode(id, &bytes, self.geometry()) {
            Err(malformed) => malformed.to_string(),
            Ok(mut page) => {
                let units = page.fragment.chunks().filter_map(|(_, _, chunk)| chunk.unit);
                match units.max().filter(|unit| *unit >= units_max) {
                    None => {
                        // A page read in this run was written in a former one: a fragment with
                        // stale blocks stays in memory.
                        page.fragment.doubt_stale();
                        return Ok(page);
                    }
                    Some(unit) => format!("unit {unit} is outside of the disk"),
                }
            }
        };
        self.stats.checksum_errors += 1;
        Err(bad_page(id, &why))
    }
}

fn bad_page(id: FragmentId, why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("page of fragment {id}: {why}"))
}

fn locate<'a>(
    logged: &'a BTreeMap<(Vid, u32), crate::index::LoggedBlock>,
    key: (Vid, u32),
    chunk: &Chunk,
    slot: u32,
    chunk_bytes: u64,
    log_bytes: u64,
) -> Source<'a> {
    match logged.get(&key) {
        Some(block) => match &block.bytes {
            Some(bytes) => Source::Memory(bytes),
            None => Source::Disk { area: Area::Log, offset: block.pos % log_bytes },
        },
        // A block with bytes that is neither in the log nor at home cannot be: it would have been
        // lost. The checksum of whatever is read from the reserved start will not match.
        None => Source::Disk {
            area: Area::Data,
            offset: chunk.unit.map_or(0, |unit| u64::from(unit) * chunk_bytes)
                + u64::from(slot) * BLOCK_SIZE as u64,
        },
    }
}

/// Pieces that are all there.
fn ready(pieces: Vec<Planned>) -> Vec<Piece> {
    let ready = pieces.into_iter().filter_map(|piece| match piece {
        Planned::Ready(piece) => Some(piece),
        Planned::Fetch { .. } => None,
    });
    ready.collect()
}

fn push_zeros(pieces: &mut Vec<Planned>, kind: BlockKind) {
    match (pieces.last_mut(), kind) {
        (Some(Planned::Ready(Piece::Hole(n))), BlockKind::Hole)
        | (Some(Planned::Ready(Piece::Zero(n))), BlockKind::Zero)
        | (Some(Planned::Ready(Piece::Reserved(n))), BlockKind::Reserved) => *n += 1,
        (_, BlockKind::Zero) => pieces.push(Planned::Ready(Piece::Zero(1))),
        (_, BlockKind::Reserved) => pieces.push(Planned::Ready(Piece::Reserved(1))),
        (_, BlockKind::Hole | BlockKind::Data) => pieces.push(Planned::Ready(Piece::Hole(1))),
    }
}
