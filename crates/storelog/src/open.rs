//! Preparing a disk, and opening one: superblock, slot, index, then the log from the replay
//! position on. Also a state machine, so that crash tests drive the same code.
//!
//! Torn tail or rot: never more than one batch is in flight, so only the last batch of the log can
//! be torn; it was not acknowledged and is dropped. A batch that cannot be read although a later
//! one exists was durable once: that is rot, and the store is not opened over it.

use crate::checksum::block_crc;
use crate::command::Effect;
use crate::format::batch::{self, BATCH_BYTES_MAX, BatchHeader, Body, Record};
use crate::format::codec::Malformed;
use crate::format::index::{PageRun, Root, UNITS_PER_PAGE, decode_entries, decode_space};
use crate::format::superblock::{CheckpointSlot, LogPosition, SLOT_OFFSETS, Superblock};
use crate::index::Index;
use crate::io::{Area, Completion, DiskOp, OpId};
use crate::space::Space;
use crate::store::{Limits, Log, Stats, Store};
use crate::tickets::Tickets;
use crate::write::mask_runs;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, FragmentId, PageBuf, Result, Vid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Disk operations kept in flight while opening.
const OPS_MAX: usize = 128;
/// Bytes of the log read at once.
const WINDOW_BYTES: u64 = 1 << 20;

/// What makes an empty store of a disk whose log is zeroed: do this, durably, before opening it.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the log is too small for the geometry.
pub fn prepare(superblock: &Superblock) -> Result<DiskOp> {
    let edges = 2 * u64::from(superblock.geometry.blocks_per_chunk()) * BLOCK_SIZE as u64;
    if superblock.log_bytes / 4 < edges + (16 << 10) {
        return Err(Error::new(ErrorKind::Invalid, "the log is too small"));
    }
    let slot = CheckpointSlot {
        serial: 1,
        root_page: 0,
        root_bytes: 0,
        replay: LogPosition {
            pos: 0,
            seq: 1,
            prev_crc: 0,
        },
    };
    let mut blocks = PageBuf::zeroed(3 * BLOCK_SIZE);
    let bytes = blocks.as_mut();
    let encoded = superblock.encode();
    bytes[..encoded.len()].copy_from_slice(&encoded);
    let encoded = slot.encode(superblock.log_id);
    for at in SLOT_OFFSETS.map(|at| at as usize) {
        bytes[at..at + encoded.len()].copy_from_slice(&encoded);
    }
    Ok(DiskOp::Write {
        area: Area::Data,
        offset: 0,
        data: vec![blocks.freeze()],
        durable: true,
    })
}

/// What opening found, for the log of the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// Fragments in the index, after replay.
    pub fragments: usize,
    /// Batches replayed.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Whether a torn, never acknowledged batch was dropped at the end.
    pub torn_tail: bool,
}

/// What a read is for.
#[derive(Clone, Copy)]
enum Want {
    Super,
    Root,
    Entries(u32),
    Space(u32),
    Window(u64),
    Later(u64),
    Tail {
        at: usize,
        block: u32,
        record: usize,
    },
    Page(FragmentId),
    Flush,
}

struct Replayed {
    record: Record,
    payload_pos: u64,
    seq: u64,
}

#[derive(PartialEq, Eq)]
enum Step {
    Super,
    Root,
    Index,
    Scan,
    Later,
    Tail,
    Flush,
    Pages,
}

/// A store that is being opened.
pub struct Opening {
    limits: Limits,
    step: Step,
    next_op: u64,
    ops: BTreeMap<OpId, Want>,
    queue: VecDeque<(Want, DiskOp)>,
    superblock: Option<Superblock>,
    slot: CheckpointSlot,
    /// Slots that do not say the same: torn, rotten, or not written before a crash.
    behind: Vec<usize>,
    root: Root,
    index: Index,
    space: Option<Space>,
    scan: LogPosition,
    /// Header and start of the last good batch.
    last: Option<(BatchHeader, LogPosition)>,
    /// Where the log ends unless the next lap begins with a batch: the scan is looking there.
    end_unless_wrapped: Option<u64>,
    records: Vec<Replayed>,
    torn: bool,
    /// Places in the log where a batch was cut short.
    wipe: Vec<u64>,
    pages: BTreeMap<FragmentId, Bytes>,
}

impl Opening {
    /// Begins.
    #[must_use]
    pub fn start(limits: Limits, out: &mut Vec<Effect>) -> Self {
        let mut opening = Self {
            limits,
            step: Step::Super,
            next_op: 0,
            ops: BTreeMap::new(),
            queue: VecDeque::new(),
            superblock: None,
            slot: CheckpointSlot::default(),
            behind: Vec::new(),
            root: Root::default(),
            index: Index::default(),
            space: None,
            scan: LogPosition::default(),
            last: None,
            end_unless_wrapped: None,
            records: Vec::new(),
            torn: false,
            wipe: Vec::new(),
            pages: BTreeMap::new(),
        };
        opening.read(Want::Super, Area::Data, 0, 3 * BLOCK_SIZE);
        opening.issue(out);
        opening
    }

    /// Feeds the end of a disk operation; gives the store once it is open, or why it cannot be.
    pub fn completed(
        &mut self,
        completion: Completion,
        out: &mut Vec<Effect>,
    ) -> Option<Result<(Box<Store>, OpenReport)>> {
        let want = self.ops.remove(&completion.op)?;
        let result = match completion.result {
            Ok(bytes) => self.arrived(want, bytes),
            Err(error) => Err(Error::new(
                ErrorKind::Io,
                format!("read the store: {}", error.text),
            )),
        };
        if let Err(error) = result {
            return Some(Err(error));
        }
        while self.ops.is_empty() && self.queue.is_empty() {
            match self.next_step() {
                Ok(Some(done)) => return Some(Ok(done)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        self.issue(out);
        None
    }

    fn read(&mut self, want: Want, area: Area, offset: u64, len: usize) {
        self.queue
            .push_back((want, DiskOp::Read { area, offset, len }));
    }

    fn issue(&mut self, out: &mut Vec<Effect>) {
        while self.ops.len() < OPS_MAX
            && let Some((want, op)) = self.queue.pop_front()
        {
            let id = OpId(self.next_op);
            self.next_op += 1;
            self.ops.insert(id, want);
            out.push(Effect::Disk(id, op));
        }
    }

    fn superblock(&self) -> Result<&Superblock> {
        self.superblock
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "no superblock yet"))
    }

    fn arrived(&mut self, want: Want, bytes: Bytes) -> Result<()> {
        match want {
            Want::Super => self.superblock_read(&bytes),
            Want::Root => {
                self.root = Root::decode(self.slot.serial, &bytes).map_err(damaged)?;
                Ok(())
            }
            Want::Entries(page) => {
                let slots = decode_entries(&bytes).map_err(damaged)?;
                let first = page * crate::format::index::SLOTS_PER_PAGE;
                for (slot, found) in (first..).zip(slots) {
                    if let Some(found) = found {
                        if let Some(space) = &mut self.space {
                            space.adopt_pages(found.page);
                        }
                        self.index.adopt(slot, found);
                    }
                }
                Ok(())
            }
            Want::Space(page) => {
                let words = decode_space(page * UNITS_PER_PAGE, &bytes).map_err(damaged)?;
                if let Some(space) = &mut self.space {
                    space.adopt_words(page, &words);
                }
                Ok(())
            }
            Want::Window(pos) => self.scan_window(pos, &bytes),
            Want::Later(pos) => self.look_for_later(pos, &bytes),
            Want::Tail { at, block, record } => {
                let Some(replayed) = self.records.get(record) else {
                    return Ok(());
                };
                let Body::Write { crcs, .. } = &replayed.record.body else {
                    return Ok(());
                };
                let crcs = &crcs[at..];
                for (i, (bytes, crc)) in bytes.chunks(BLOCK_SIZE).zip(crcs).enumerate() {
                    if block_crc(replayed.record.fragment, block + i as u32, bytes) != *crc {
                        self.torn = true;
                    }
                }
                Ok(())
            }
            Want::Page(id) => {
                self.pages.insert(id, bytes);
                Ok(())
            }
            Want::Flush => Ok(()),
        }
    }

    fn superblock_read(&mut self, bytes: &[u8]) -> Result<()> {
        let superblock = Superblock::decode(bytes).map_err(damaged)?;
        let slots = SLOT_OFFSETS.map(|at| {
            bytes
                .get(at as usize..)
                .ok_or(Malformed::new("checkpoint slot", "cut short"))
                .and_then(|bytes| CheckpointSlot::decode(superblock.log_id, bytes))
        });
        if let [Err(malformed), _] | [_, Err(malformed)] = &slots
            && malformed.newer
        {
            return Err(damaged(malformed.clone()));
        }
        let newest = slots
            .iter()
            .flatten()
            .max_by_key(|slot| slot.serial)
            .copied();
        self.slot = match (newest, &slots) {
            (Some(slot), _) => slot,
            (None, [Err(malformed), _] | [_, Err(malformed)]) => {
                return Err(damaged(malformed.clone()));
            }
            (None, _) => return Err(Error::new(ErrorKind::Internal, "no checkpoint slot")),
        };
        self.behind = (0..2)
            .filter(|which| slots[*which].as_ref().ok() != Some(&self.slot))
            .collect();
        self.superblock = Some(superblock);
        Ok(())
    }

    /// Everything asked for has arrived: what next?
    fn next_step(&mut self) -> Result<Option<(Box<Store>, OpenReport)>> {
        match self.step {
            Step::Super => {
                self.step = Step::Root;
                if self.slot.root_bytes > 0 {
                    let run = self.root_run();
                    self.read(Want::Root, Area::Data, run.offset(), run.bytes());
                }
            }
            Step::Root => {
                self.step = Step::Index;
                self.ask_for_index()?;
            }
            Step::Index => {
                self.step = Step::Scan;
                self.index.finish_adopting(self.root.entry_pages.len());
                self.scan = self.slot.replay;
                self.ask_for_window()?;
            }
            Step::Scan => {
                self.step = Step::Later;
                self.ask_for_later()?;
            }
            Step::Later => {
                self.step = Step::Tail;
                self.ask_for_tail()?;
            }
            Step::Tail => {
                self.step = Step::Flush;
                self.drop_torn_tail()?;
                self.even_slots()?;
                // What was read may be in the device's cache only; it must not be lost after it
                // was served.
                for area in [Area::Log, Area::Data] {
                    self.queue.push_back((Want::Flush, DiskOp::Sync { area }));
                }
            }
            Step::Flush => {
                self.step = Step::Pages;
                let touched: BTreeSet<FragmentId> = self
                    .records
                    .iter()
                    .map(|replayed| replayed.record.fragment)
                    .collect();
                for id in touched {
                    let page = self
                        .index
                        .get(id)
                        .map(|entry| entry.page)
                        .unwrap_or_default();
                    if page.count > 0 {
                        self.read(Want::Page(id), Area::Data, page.offset(), page.bytes());
                    }
                }
            }
            Step::Pages => return self.replay().map(Some),
        }
        Ok(None)
    }

    const fn root_run(&self) -> PageRun {
        let count = self.slot.root_bytes.div_ceil(BLOCK_SIZE as u64);
        PageRun {
            page: self.slot.root_page,
            count: count as u16,
        }
    }

    fn ask_for_index(&mut self) -> Result<()> {
        let per_unit = self.superblock()?.geometry.blocks_per_chunk();
        // Superblock and slots.
        let reserved = 3_u32.div_ceil(per_unit);
        let mut space = Space::new(self.limits.units_max, per_unit, reserved);
        for page in self.root.entry_pages.iter().chain(&self.root.space_pages) {
            if *page != 0 {
                space.adopt_pages(PageRun {
                    page: *page,
                    count: 1,
                });
            }
        }
        if self.slot.root_bytes > 0 {
            space.adopt_pages(self.root_run());
        }
        self.space = Some(space);
        let wanted = |pages: &[u64]| -> Vec<(u32, u64)> {
            (0..)
                .zip(pages.iter().copied())
                .filter(|(_, page)| *page != 0)
                .collect()
        };
        for (number, page) in wanted(&self.root.space_pages) {
            self.read(
                Want::Space(number),
                Area::Data,
                page * BLOCK_SIZE as u64,
                BLOCK_SIZE,
            );
        }
        for (number, page) in wanted(&self.root.entry_pages) {
            self.read(
                Want::Entries(number),
                Area::Data,
                page * BLOCK_SIZE as u64,
                BLOCK_SIZE,
            );
        }
        Ok(())
    }

    // ---- the log ------------------------------------------------------------------------------

    fn ask_for_window(&mut self) -> Result<()> {
        let size = self.superblock()?.log_bytes;
        let offset = self.scan.pos % size;
        let len = WINDOW_BYTES
            .max(batch::RECORDS_BYTES_MAX as u64)
            .min(size - offset);
        self.read(Want::Window(self.scan.pos), Area::Log, offset, len as usize);
        Ok(())
    }

    /// Takes batches from a window that begins at the scan's position.
    fn scan_window(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let superblock = self.superblock()?.clone();
        let size = superblock.log_bytes;
        loop {
            let at = (self.scan.pos - start) as usize;
            let lap_ends = self.scan.pos.is_multiple_of(size) && self.scan.pos != start;
            if lap_ends || at >= bytes.len() {
                return self.ask_for_window();
            }
            let rest = &bytes[at..];
            match self.take_batch(&superblock, rest) {
                Ok(true) => {}
                Ok(false) => return self.ask_for_window(),
                Err(malformed) if malformed.newer => return Err(damaged(malformed)),
                Err(_) => {
                    // Not here. A batch that did not fit behind this place is at the start of the
                    // next lap; should nothing be there either, the log ends here.
                    if let Some(end) = self.end_unless_wrapped.take() {
                        self.scan.pos = end;
                        return Ok(());
                    }
                    if self.scan.pos.is_multiple_of(size) {
                        return Ok(());
                    }
                    self.end_unless_wrapped = Some(self.scan.pos);
                    self.scan.pos = self.scan.pos.next_multiple_of(size);
                    return self.ask_for_window();
                }
            }
        }
    }

    /// Takes the batch at the start of `bytes`. `false` when the window ends before its records
    /// do.
    fn take_batch(
        &mut self,
        superblock: &Superblock,
        bytes: &[u8],
    ) -> std::result::Result<bool, Malformed> {
        const WHAT: &str = "log batch";
        let size = superblock.log_bytes;
        let offset = self.scan.pos % size;
        let window_is_whole = bytes.len() as u64 >= batch::RECORDS_BYTES_MAX as u64
            || offset + bytes.len() as u64 == size;
        if bytes.len() < superblock.log_unit as usize {
            return if window_is_whole {
                Err(Malformed::new(WHAT, "cut short"))
            } else {
                Ok(false)
            };
        }
        let header = BatchHeader::peek(bytes, superblock.log_id, superblock.log_unit)?;
        if header.seq != self.scan.seq || header.prev_crc != self.scan.prev_crc {
            return Err(Malformed::new(WHAT, "not the next one"));
        }
        if offset + header.total_bytes() > size {
            return Err(Malformed::new(WHAT, "it would not fit the log"));
        }
        if bytes.len() < header.header_bytes as usize {
            return if window_is_whole {
                Err(Malformed::new(WHAT, "cut short"))
            } else {
                Ok(false)
            };
        }
        let mut payload_pos = self.scan.pos + u64::from(header.header_bytes);
        for record in batch::decode(&header, bytes, superblock.geometry)? {
            let payload = record.payload_blocks(superblock.geometry) * BLOCK_SIZE;
            self.records.push(Replayed {
                record,
                payload_pos,
                seq: header.seq,
            });
            payload_pos += payload as u64;
        }
        self.last = Some((header, self.scan));
        self.end_unless_wrapped = None;
        self.scan = LogPosition {
            pos: self.scan.pos + header.total_bytes(),
            seq: header.seq + 1,
            prev_crc: header.crc,
        };
        Ok(true)
    }

    /// The log seems to end. Asks for what lies behind the end, where a later batch would begin.
    fn ask_for_later(&mut self) -> Result<()> {
        let size = self.superblock()?.log_bytes;
        let reach = 2 * BATCH_BYTES_MAX as u64;
        let offset = self.scan.pos % size;
        let len = reach.min(size - offset);
        self.read(Want::Later(self.scan.pos), Area::Log, offset, len as usize);
        if offset > 0 {
            let next_lap = self.scan.pos.next_multiple_of(size);
            self.read(
                Want::Later(next_lap),
                Area::Log,
                0,
                reach.min(offset) as usize,
            );
        }
        Ok(())
    }

    fn look_for_later(&mut self, pos: u64, bytes: &[u8]) -> Result<()> {
        let superblock = self.superblock()?.clone();
        if let Ok(header) = BatchHeader::peek(bytes, superblock.log_id, superblock.log_unit)
            && header.seq == self.scan.seq
        {
            // A batch that was cut short, its first sector being here: the rest of it could be
            // completed by a later batch that is cut short in the same place.
            self.wipe.push(pos);
        }
        for (at, rest) in (0..bytes.len())
            .step_by(superblock.log_unit as usize)
            .map(|at| (at, &bytes[at..]))
        {
            let Ok(header) = BatchHeader::peek(rest, superblock.log_id, superblock.log_unit) else {
                continue;
            };
            if header.seq > self.scan.seq
                && rest.len() >= header.header_bytes as usize
                && batch::decode(&header, rest, superblock.geometry).is_ok()
            {
                let offset = (pos + at as u64) % superblock.log_bytes;
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "the log is damaged: batch {} cannot be read although batch {} follows at \
                         byte {offset}",
                        self.scan.seq, header.seq
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The last batch may be torn: what it brought is compared with its checksums. Blocks that a
    /// later record of the same batch replaced do not count: if the batch was durable after all,
    /// their space may have been used again.
    fn ask_for_tail(&mut self) -> Result<()> {
        let Some((header, _)) = self.last else {
            return Ok(());
        };
        let superblock = self.superblock()?.clone();
        let per_chunk = superblock.geometry.blocks_per_chunk();
        let mut wanted = Vec::new();
        let mut replaced: BTreeSet<(FragmentId, Vid, u32)> = BTreeSet::new();
        let mut deleted: BTreeSet<(FragmentId, Vid)> = BTreeSet::new();
        for (
            record,
            Replayed {
                record: found,
                payload_pos,
                seq,
            },
        ) in self.records.iter().enumerate().rev()
        {
            if *seq != header.seq {
                break;
            }
            let owner = (found.fragment, found.vid);
            let (start, count) = match &found.body {
                Body::Write { start, crcs, .. } => (*start, crcs.len() as u32),
                Body::Zero { start, count, .. } => (*start, *count),
                Body::DeleteVid { .. } => {
                    deleted.insert(owner);
                    continue;
                }
            };
            let mut pos = *payload_pos;
            for (chunk, mask) in crate::write::chunk_masks(start, count, per_chunk) {
                let Body::Write { extents, .. } = &found.body else {
                    break;
                };
                let first = u32::from(chunk) * per_chunk;
                let (area, base) = match extents.iter().find(|placed| placed.chunk == chunk) {
                    Some(placed) => (
                        Area::Data,
                        u64::from(placed.unit) * superblock.geometry.chunk_bytes(),
                    ),
                    None => {
                        let bytes = u64::from(mask.count_ones()) * BLOCK_SIZE as u64;
                        let skipped = u64::from(mask.trailing_zeros()) * BLOCK_SIZE as u64;
                        pos += bytes;
                        // The place where the chunk's first block would be; may lie before the log.
                        (
                            Area::Log,
                            ((pos - bytes) % superblock.log_bytes).wrapping_sub(skipped),
                        )
                    }
                };
                let visible = (0..per_chunk).filter(|slot| mask & (1 << slot) != 0).fold(
                    0,
                    |visible, slot| {
                        let key = (owner.0, owner.1, first + slot);
                        let gone = deleted.contains(&owner) || replaced.contains(&key);
                        visible | (u16::from(!gone) << slot)
                    },
                );
                for (slot, blocks) in mask_runs(visible) {
                    let block = first + slot;
                    let want = Want::Tail {
                        at: (block - start) as usize,
                        block,
                        record,
                    };
                    let offset = base.wrapping_add(u64::from(slot) * BLOCK_SIZE as u64);
                    wanted.push((want, area, offset, blocks as usize * BLOCK_SIZE));
                }
            }
            replaced.extend((start..start + count).map(|block| (owner.0, owner.1, block)));
        }
        for (want, area, offset, len) in wanted {
            self.read(want, area, offset, len);
        }
        Ok(())
    }

    /// Drops the last batch if it is torn, and wipes what is left of any: the next batch has the
    /// same number and may go to another place, and then a later opening must not find this one.
    fn drop_torn_tail(&mut self) -> Result<()> {
        if let Some((header, start)) = self.last
            && self.torn
        {
            self.wipe.push(start.pos);
            self.records.retain(|replayed| replayed.seq != header.seq);
            self.scan = start;
        }
        let (size, unit) = (self.superblock()?.log_bytes, self.superblock()?.log_unit);
        for pos in std::mem::take(&mut self.wipe) {
            let op = DiskOp::Write {
                area: Area::Log,
                offset: pos % size,
                data: vec![PageBuf::zeroed(BLOCK_SIZE).freeze().slice(..unit as usize)],
                durable: true,
            };
            self.queue.push_back((Want::Flush, op));
        }
        Ok(())
    }

    /// Makes both slots say the same, as everywhere outside of a checkpoint's last step.
    fn even_slots(&mut self) -> Result<()> {
        let mut block = PageBuf::zeroed(BLOCK_SIZE);
        let encoded = self.slot.encode(self.superblock()?.log_id);
        block.as_mut()[..encoded.len()].copy_from_slice(&encoded);
        let block = block.freeze();
        for which in std::mem::take(&mut self.behind) {
            let op = DiskOp::Write {
                area: Area::Data,
                offset: SLOT_OFFSETS[which],
                data: vec![block.clone()],
                durable: true,
            };
            self.queue.push_back((Want::Flush, op));
        }
        Ok(())
    }

    // ---- the running store --------------------------------------------------------------------

    fn replay(&mut self) -> Result<(Box<Store>, OpenReport)> {
        let superblock = self.superblock()?.clone();
        let Some(space) = self.space.take() else {
            return Err(Error::new(ErrorKind::Internal, "no space map yet"));
        };
        let mut store = Box::new(Store {
            limits: self.limits,
            index: std::mem::take(&mut self.index),
            space,
            log: Log {
                next: self.scan,
                head: self.slot.replay,
                next_head: None,
                durable: self.scan.seq - 1,
                queue: VecDeque::new(),
                in_flight: None,
            },
            active: BTreeMap::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            ops: BTreeMap::new(),
            tickets: Tickets::default(),
            checkpoint: None,
            checkpoint_wanted: Vec::new(),
            serial: self.slot.serial,
            entry_pages: std::mem::take(&mut self.root.entry_pages),
            space_pages: std::mem::take(&mut self.root.space_pages),
            root: if self.slot.root_bytes > 0 {
                self.root_run()
            } else {
                PageRun::default()
            },
            replaced_pages: Vec::new(),
            held_units: Vec::new(),
            logged_blocks: 0,
            logged_bytes: 0,
            pending_bytes: 0,
            host_free: 0,
            backed_at_report: 0,
            now: 0,
            last_write: 0,
            dirty_since: None,
            stale_pending: true,
            idle_checkpoints: 0,
            retry_checkpoint_at: 0,
            short_of_space: false,
            stats: Stats::default(),
            failed: None,
            next_op: self.next_op,
            next_write: 0,
            next_read: 0,
            superblock,
        });
        let mut included: BTreeMap<FragmentId, u64> = BTreeMap::new();
        for (id, bytes) in std::mem::take(&mut self.pages) {
            let page = store.decode_page(id, Ok(bytes))?;
            included.insert(id, page.batch);
            store.index.load(id, page.fragment);
        }
        let mut freed: BTreeSet<u32> = self.root.unpunched.iter().copied().collect();
        let mut seqs = BTreeSet::new();
        for replayed in &self.records {
            seqs.insert(replayed.seq);
            let Replayed {
                record,
                payload_pos,
                seq,
            } = replayed;
            // A page may be younger than the position where replay starts. What it includes is
            // not done again: the fragment would pass through states that never were, and could
            // keep units that it had left.
            if included
                .get(&record.fragment)
                .is_some_and(|batch| batch >= seq)
            {
                store.replay_included(record, *payload_pos, *seq);
            } else {
                store.replay(record, *payload_pos, *seq, &mut freed);
            }
        }
        // Records that pages include were not counted again, others may have freed what they had
        // claimed before: what the fragments use at the end is in use.
        for unit in store.index.units_of_loaded() {
            store.space.replay(unit, true);
            freed.remove(&unit);
        }
        store.space.adopt_unpunched(freed);
        if !self.records.is_empty() || store.space.recycled_units() > 0 {
            store.dirty_since = Some(0);
        }
        let report = OpenReport {
            fragments: store.index.count(),
            batches: seqs.len() as u64,
            records: self.records.len() as u64,
            torn_tail: self.torn,
        };
        Ok((store, report))
    }
}

/// A structure of the store is not what was written.
fn damaged(malformed: Malformed) -> Error {
    let kind = if malformed.newer {
        ErrorKind::VersionMismatch
    } else {
        ErrorKind::Io
    };
    Error::with_source(kind, "the store cannot be opened", malformed)
}
