//! The path of a write until it is queued for the log: admit, write fresh extents, queue in the
//! fragment's order. `group_commit` makes it durable.
//!
//! Crash order: an extent's bytes are on the device before the batch that names it is submitted,
//! and the data area is flushed together with the log before the batch counts as durable. A batch
//! that was cut short by a crash is recognised by its checksums and was never acknowledged.

mod fill;
mod reserve;
mod shard;

use crate::checksum::block_crc;
use crate::command::{Answer, CommandId, Effect};
use crate::format::batch::{Body, Placed, Record};
use crate::fragment::{BlockMask, FreedUnit};
use crate::io::{Area, DiskError, DiskErrorKind, DiskOp};
use crate::space::UnitRun;
use crate::store::{Purpose, Store, out_of_range};
use bytes::Bytes;
use sheepdog_types::{
    BLOCK_SIZE, Error, ErrorKind, FragmentId, PageBuf, RequestId, ShardId, Version, Vid,
};

pub(crate) use shard::PendingShard;

/// Whose request a write is.
pub(crate) type Request = Option<(ShardId, RequestId)>;

/// An admitted write until its batch is durable.
pub(crate) struct PendingWrite {
    pub command: CommandId,
    pub record: Record,
    /// Bytes of the blocks that travel in the batch, in order.
    pub payload: Vec<Bytes>,
    /// All its bytes, while some of them are on their way to fresh extents.
    data: Vec<Bytes>,
    /// Counted in the store's pending bytes.
    pub need: u64,
    ops_left: u32,
    /// Blocks that the host is being asked for: counted in the store's asked blocks.
    pub asked: u64,
    /// Blocks of its own homes that a reservation got, and those it may have got or not.
    given: Vec<(u32, BlockMask)>,
    doubtful: Vec<(u32, BlockMask)>,
    /// The data area must be flushed with the batch.
    pub flush_data: bool,
    /// Units claimed for it.
    pub units: Vec<UnitRun>,
    pub failed: Option<DiskError>,
}

impl PendingWrite {
    /// One that holds nothing and waits for nothing.
    const fn new(command: CommandId, record: Record) -> Self {
        Self {
            command,
            record,
            payload: Vec::new(),
            data: Vec::new(),
            need: 0,
            ops_left: 0,
            asked: 0,
            given: Vec::new(),
            doubtful: Vec::new(),
            flush_data: false,
            units: Vec::new(),
            failed: None,
        }
    }

    /// Units claimed for it.
    pub fn units(&self) -> impl Iterator<Item = u32> {
        self.units.iter().flat_map(|run| run.unit..run.unit + run.count)
    }
}

impl Store {
    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(crate) fn run_write(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        vid: Vid,
        version: Version,
        start: u32,
        mut data: Vec<Bytes>,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        let bytes: usize = data.iter().map(Bytes::len).sum();
        let count = (bytes / BLOCK_SIZE) as u32;
        let whole = data.iter().all(|piece| piece.len().is_multiple_of(BLOCK_SIZE));
        if !whole || !self.in_fragment(start, count) {
            return out.push(Effect::Reply(command, out_of_range()));
        }
        if !self.takes(request) {
            return out.push(Effect::Reply(command, Err(table_full())));
        }
        let need = self.adds(fragment, vid, start, count);
        if !self.has_room(need) {
            return out.push(Effect::Reply(command, Err(no_space())));
        }
        for piece in &mut data {
            // Direct I/O needs aligned memory; doors deliver it, so this is the rare path.
            if !(piece.as_ptr() as usize).is_multiple_of(512) {
                *piece = PageBuf::copy_of(piece).freeze();
            }
        }
        let mut crcs = Vec::with_capacity(count as usize);
        for block in data.iter().flat_map(|piece| piece.chunks_exact(BLOCK_SIZE)) {
            crcs.push(block_crc(fragment, start + crcs.len() as u32, block));
        }

        let per_chunk = self.geometry().blocks_per_chunk();
        let (first, end) = (start.div_ceil(per_chunk), (start + count) / per_chunk);
        let (first, end) = if end > first
            && (end - first) * per_chunk >= self.limits.extent_blocks_min
            && self.room_for_extents(bytes as u64)
        {
            (first, end)
        } else {
            (0, 0)
        };
        let Some((units, extents)) = self.claim_chunks(first, end) else {
            return out.push(Effect::Reply(command, Err(no_space())));
        };
        let blocks = |from: u32, to: u32| slice_blocks(&data, from - start, to - from);
        let payload = if extents.is_empty() {
            data.clone()
        } else {
            let mut edges = blocks(start, first * per_chunk);
            edges.extend(blocks(end * per_chunk, start + count));
            edges
        };
        let (write, mut asked) = (self.next_write, 0);
        let mut chunk = first;
        for run in &units {
            let (offset, len) =
                (self.unit_offset(run.unit), u64::from(run.count) * self.geometry().chunk_bytes());
            let data = blocks(chunk * per_chunk, (chunk + run.count) * per_chunk);
            let op = DiskOp::Write { area: Area::Data, offset, data, durable: false };
            chunk += run.count;
            asked += self.ask(offset, len);
            self.disk(Purpose::Extent { write, offset, len }, op, out);
        }
        let body = Body::Write { vid, start, crcs, extents };
        let record = self.record(fragment, version, request, body);
        self.admit(
            PendingWrite {
                payload,
                data: if units.is_empty() { Vec::new() } else { data },
                need,
                ops_left: units.len() as u32,
                asked,
                flush_data: !units.is_empty(),
                units,
                ..PendingWrite::new(command, record)
            },
            false,
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(crate) fn run_delete(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        vid: Vid,
        version: Version,
        forget: bool,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        if !self.takes(request) {
            return out.push(Effect::Reply(command, Err(table_full())));
        }
        let idle = self.active.get(&fragment).is_none_or(|active| active.unapplied == 0);
        // Otherwise it leaves a tombstone, or an entry in a table.
        let leaves_nothing = forget && request.is_none();
        if idle && leaves_nothing && self.index.get(fragment).is_none() {
            return out.push(Effect::Reply(command, Ok(Answer::Done)));
        }
        let record = self.record(fragment, version, request, Body::DeleteVid { vid, forget });
        self.admit(PendingWrite::new(command, record), false);
    }

    /// Bytes of space that a write of these blocks will hold and does not hold yet. While
    /// something that gives space back is on its way in the fragment, that is all of it.
    fn adds(&mut self, fragment: FragmentId, vid: Vid, start: u32, count: u32) -> u64 {
        let unknown = self.active.get(&fragment).is_some_and(|active| active.clearing > 0);
        let geometry = self.geometry();
        let loaded = self.index.loaded(fragment).filter(|_| !unknown);
        if self.limits.whole_units {
            let all = chunk_masks(start, count, geometry.blocks_per_chunk()).count() as u32;
            let chunks = loaded.map_or(all, |loaded| loaded.fragment.unplaced(vid, start, count));
            return u64::from(chunks) * geometry.chunk_bytes();
        }
        let blocks = loaded.map_or(count, |loaded| loaded.fragment.unstored(vid, start, count));
        u64::from(blocks) * BLOCK_SIZE as u64
    }

    fn in_fragment(&self, start: u32, count: u32) -> bool {
        let blocks = self.geometry().blocks_per_fragment();
        count > 0 && start < blocks && count <= blocks - start
    }

    fn claim_for_log(&mut self, want: u32) -> Option<UnitRun> {
        self.space.claim_for_log(want, self.tickets.oldest())
    }

    /// Fresh units for chunks `first..end`; all or none.
    fn claim_chunks(&mut self, first: u32, end: u32) -> Option<(Vec<UnitRun>, Vec<Placed>)> {
        let mut runs: Vec<UnitRun> = Vec::new();
        let mut placed = Vec::new();
        let mut chunk = first;
        while chunk < end {
            let Some(run) = self.claim_for_log(end - chunk) else {
                self.release_units(&runs);
                return None;
            };
            for unit in run.unit..run.unit + run.count {
                placed.push(Placed { chunk: chunk as u8, unit });
                chunk += 1;
            }
            runs.push(run);
        }
        Some((runs, placed))
    }

    /// The units of a range of the data area, and the blocks in them.
    fn unit_masks(&self, offset: u64, len: u64) -> impl Iterator<Item = (u32, BlockMask)> + use<> {
        let (block, per_unit) = (BLOCK_SIZE as u64, u64::from(self.geometry().blocks_per_chunk()));
        let (start, end) = (offset / block, (offset + len) / block);
        (start / per_unit..end.div_ceil(per_unit)).map(move |unit| {
            let from = start.max(unit * per_unit) - unit * per_unit;
            let to = end.min((unit + 1) * per_unit) - unit * per_unit;
            (unit as u32, (((1u32 << (to - from)) - 1) << from) as BlockMask)
        })
    }

    /// The host is asked for the space of a range. Gives the blocks it may not hold yet.
    fn ask(&mut self, offset: u64, len: u64) -> u64 {
        let lacking = |(unit, mask): (u32, BlockMask)| {
            u64::from((mask & !self.space.loose_of(unit)).count_ones())
        };
        let asked = self.unit_masks(offset, len).map(lacking).sum();
        self.asked_blocks += asked;
        asked
    }

    /// Units of a write that will not happen. An operation may still be writing them.
    pub(crate) fn release_units(&mut self, runs: &[UnitRun]) {
        let ticket = self.tickets.next();
        for unit in runs.iter().flat_map(|run| run.unit..run.unit + run.count) {
            // What the host holds of it is in the books. No record names it; whatever freed it
            // before is durable.
            let freed = FreedUnit { unit, backed: 0 };
            self.space.recycle(freed, self.log.durable, ticket);
        }
    }

    /// A record as it is admitted: whether the fragment is missing cannot change before it is applied,
    /// the version before it is known when its batch is formed.
    fn record(
        &self,
        fragment: FragmentId,
        version: Version,
        request: Request,
        body: Body,
    ) -> Record {
        let missing = self.index.needed(fragment).is_some();
        Record { fragment, version, prev: Version::ZERO, missing, request, body }
    }

    /// Whether the request's table has room for it.
    fn takes(&self, request: Request) -> bool {
        let others = self.writes.len();
        request.is_none_or(|(shard, id)| self.shards.has_slot(shard, &id, others))
    }

    fn admit(&mut self, write: PendingWrite, exclusive: bool) {
        let fragment = write.record.fragment;
        let id = self.next_write;
        self.next_write += 1;
        let clearing = write.record.may_clear();
        self.pending_bytes += write.need;
        self.claimed_units += write.units().count() as u64;
        self.last_write = self.now;
        self.idle_checkpoints = 0;
        self.writes.insert(id, write);
        let active = self.active.entry(fragment).or_default();
        active.writes.push_back(id);
        active.unapplied += 1;
        active.clearing += u32::from(clearing);
        active.exclusive |= exclusive;
        self.queue_ready(fragment);
    }

    /// Moves writes whose extents are written to the log's queue, in the fragment's order.
    fn queue_ready(&mut self, fragment: FragmentId) {
        let Some(active) = self.active.get_mut(&fragment) else {
            return;
        };
        while let Some(id) = active.writes.front() {
            if self.writes.get(id).is_some_and(|write| write.ops_left > 0) {
                break;
            }
            self.log.queue.extend(active.writes.pop_front());
        }
    }

    pub(crate) fn extent_done(
        &mut self,
        id: u64,
        (offset, len): (u64, u64),
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Effect>,
    ) {
        if let Err(error) = &result
            && error.kind == DiskErrorKind::Io
        {
            return self.fail_op("write an extent", error, out);
        }
        if result.is_err() {
            self.host_is_full();
        }
        let parts = self.unit_masks(offset, len);
        let Some(write) = self.writes.get_mut(&id) else {
            return;
        };
        for (unit, mask) in parts {
            if write.units().any(|claimed| claimed == unit) {
                if result.is_ok() {
                    let given = self.space.given(unit, mask);
                    write.asked -= given;
                    self.asked_blocks -= given;
                }
            } else if result.is_ok() {
                write.given.push((unit, mask));
            } else {
                write.doubtful.push((unit, mask));
            }
        }
        write.failed = write.failed.take().or(result.err());
        write.ops_left -= 1;
        if write.ops_left == 0 {
            let fragment = write.record.fragment;
            if write.failed.is_some() && write.need == 0 {
                self.write_in_place(id);
            }
            self.queue_ready(fragment);
        }
    }

    /// The host had no space for fresh extents, less than it had said. A write that adds nothing
    /// has its space: it goes there by way of the log.
    fn write_in_place(&mut self, id: u64) {
        let Some(write) = self.writes.get_mut(&id).filter(|write| !write.data.is_empty()) else {
            return;
        };
        if let Body::Write { extents, .. } = &mut write.record.body {
            extents.clear();
        }
        write.payload = std::mem::take(&mut write.data);
        write.flush_data = false;
        write.failed = None;
        self.asked_blocks -= std::mem::take(&mut write.asked);
        self.claimed_units -= write.units().count() as u64;
        let units = std::mem::take(&mut write.units);
        self.release_units(&units);
    }
}

pub(crate) fn no_space() -> Error {
    ErrorKind::NoSpace.into()
}

fn table_full() -> Error {
    let what = "the request table of the shard is full: gateways that are gone were not dropped";
    Error::new(ErrorKind::Conflict, what)
}

/// Blocks `first..first + count` of pieces of whole blocks, without copies.
fn slice_blocks(pieces: &[Bytes], first: u32, count: u32) -> Vec<Bytes> {
    let (mut skip, mut left) = (first as usize * BLOCK_SIZE, count as usize * BLOCK_SIZE);
    let mut slices = Vec::new();
    for piece in pieces {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        if left == 0 {
            break;
        }
        let end = piece.len().min(skip + left);
        slices.push(piece.slice(skip..end));
        left -= end - skip;
        skip = 0;
    }
    slices
}

/// The chunks that a range of blocks touches, with the blocks touched.
pub(crate) fn chunk_masks(
    start: u32,
    count: u32,
    per_chunk: u32,
) -> impl Iterator<Item = (u8, u16)> {
    let end = start + count;
    (start / per_chunk..end.div_ceil(per_chunk)).map(move |chunk| {
        let first = chunk * per_chunk;
        let from = start.max(first) - first;
        let to = end.min(first + per_chunk) - first;
        (chunk as u8, (((1u32 << (to - from)) - 1) << from) as u16)
    })
}

/// Runs of set bits: (first, how many).
pub(crate) fn mask_runs(mask: u16) -> impl Iterator<Item = (u32, u32)> {
    let mut rest = u32::from(mask);
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let count = (rest >> first).trailing_ones();
        rest &= !(((1 << count) - 1) << first);
        Some((first, count))
    })
}
