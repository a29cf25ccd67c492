//! Preparing a disk, and opening one: superblock, slot, whose the log is, index, then the log from
//! the replay position on. Also a state machine, so that crash tests drive the same code.
//!
//! Torn tail or rot: never more than one batch is in flight, so only the last batch of the log can
//! be torn; it was not acknowledged and is dropped. A batch that cannot be read although a later
//! one exists was durable once: that is rot, and the store is not opened over it.
//!
//! The last thing that opening does is to count itself (`mark.rs`), so that a log or data put back
//! from a copy is told from what it replaces.

mod mark;
mod replay;
mod scan;
mod sense;

use crate::checksum::block_crc;
use crate::command::Effect;
use crate::format::batch::{BatchHeader, LogRecord};
use crate::format::codec::Malformed;
use crate::format::index::{PageRun, Root, UNITS_PER_PAGE, decode_entries, decode_space};
use crate::format::shards::{ShardPage, decode_missing};
use crate::format::superblock::{
    CheckpointSlot, LogOwner, LogPosition, OWNER_BYTES, SLOT_OFFSETS, Superblock,
};
use crate::index::Index;
use crate::io::{Area, Completion, DiskOp, OpId};
use crate::space::Space;
use crate::store::{Limits, Store};
use bytes::Bytes;
use sheepdog_types::{
    BLOCK_SIZE, Error, ErrorKind, FragmentId, Interval, PageBuf, Result, ShardId, Version,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Disk operations kept in flight while opening.
const OPS_MAX: usize = 128;
/// Bytes of the log read at once.
const WINDOW_BYTES: u64 = 1 << 20;

/// What makes an empty store of a disk whose log is zeroed: do this before opening it, one after the
/// other, each durable before the next begins. The superblock comes last: once it is there, a log
/// that does not name it is one that somebody replaced.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the log is too small for the geometry.
pub fn prepare(superblock: &Superblock) -> Result<Vec<DiskOp>> {
    // A write of all of a fragment travels in one batch when it cannot go to fresh places.
    let largest = u64::from(superblock.geometry.blocks_per_fragment()) * BLOCK_SIZE as u64;
    if superblock.log_bytes / 4 < largest + (16 << 10) {
        return Err(Error::new(ErrorKind::Invalid, "the log is too small"));
    }
    let slot = CheckpointSlot {
        serial: 1,
        root_page: 0,
        root_bytes: 0,
        replay: LogPosition { pos: 0, seq: 1, prev_crc: 0 },
        mark: 0,
        raising: 0,
    };
    let mut blocks = PageBuf::zeroed(3 * BLOCK_SIZE);
    let bytes = blocks.as_mut();
    let encoded = superblock.encode();
    bytes[..encoded.len()].copy_from_slice(&encoded);
    let encoded = slot.encode(superblock.log_id);
    for at in SLOT_OFFSETS.map(|at| at as usize) {
        bytes[at..at + encoded.len()].copy_from_slice(&encoded);
    }
    let mut ops = Vec::new();
    if superblock.log_has_owner() {
        ops.push(write_block(Area::Log, superblock.log_bytes, &superblock.log_owner(0).encode()));
    }
    let data = vec![blocks.freeze()];
    ops.push(DiskOp::Write { area: Area::Data, offset: 0, data, durable: true });
    Ok(ops)
}

/// Writes one block durably: this, and zeros behind it.
fn write_block(area: Area, offset: u64, encoded: &[u8]) -> DiskOp {
    let mut block = PageBuf::zeroed(BLOCK_SIZE);
    block.as_mut()[..encoded.len()].copy_from_slice(encoded);
    DiskOp::Write { area, offset, data: vec![block.freeze()], durable: true }
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
    /// Of the newest version there is, in the index or in what was replayed: new versions must come
    /// from a later one, or the store takes none.
    pub newest: Interval,
    /// Of this opening: one more than that of any before, or 0 where the log has no owner block.
    pub mark: u64,
}

/// What a read is for.
#[derive(Clone, Copy)]
enum Want {
    Super,
    Owner,
    Root,
    Entries(u32),
    Space(u32),
    Window(u64),
    Later(u64),
    Tail(usize),
    Missing(u32),
    Shard(ShardId, usize),
    Page(FragmentId),
    Flush,
}

struct Replayed {
    record: LogRecord,
    payload_pos: u64,
    seq: u64,
}

/// Blocks of the last batch, with their checksums.
struct TailBlocks {
    fragment: FragmentId,
    first: u32,
    crcs: Vec<u32>,
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
    Mark,
}

/// A store that is being opened.
pub struct Opening {
    limits: Limits,
    /// Units the disk has; there is none in use behind them.
    units_there: u32,
    step: Step,
    next_op: u64,
    ops: BTreeMap<OpId, Want>,
    queue: VecDeque<(Want, DiskOp)>,
    superblock: Option<Superblock>,
    slot: CheckpointSlot,
    /// What the owner block has, if it can be read.
    owner: Option<LogOwner>,
    /// A mark that the store reached once, and what it is called.
    mark_once: Option<(u64, String)>,
    /// Writes that raise the mark, one after the other, and the store that is open then.
    marking: VecDeque<DiskOp>,
    opened: Option<(Box<Store>, OpenReport)>,
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
    shard_parts: BTreeMap<ShardId, BTreeMap<usize, Bytes>>,
    shards: BTreeMap<ShardId, ShardPage>,
    /// Missing fragments by entry page: those pages may come later.
    missing: BTreeMap<u32, Vec<(u8, Version)>>,
    tail: Vec<TailBlocks>,
    /// Damage found so far, if opening goes on in spite of it.
    salvage: Option<Vec<String>>,
}

impl Opening {
    /// Begins.
    #[must_use]
    pub fn start(limits: Limits, out: &mut Vec<Effect>) -> Self {
        let mut opening = Self {
            limits,
            units_there: limits.units_max,
            step: Step::Super,
            next_op: 0,
            ops: BTreeMap::new(),
            queue: VecDeque::new(),
            superblock: None,
            slot: CheckpointSlot::default(),
            owner: None,
            mark_once: None,
            marking: VecDeque::new(),
            opened: None,
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
            shard_parts: BTreeMap::new(),
            shards: BTreeMap::new(),
            missing: BTreeMap::new(),
            tail: Vec::new(),
            salvage: None,
        };
        opening.read(Want::Super, Area::Data, 0, 3 * BLOCK_SIZE);
        opening.issue(out);
        opening
    }

    /// Begins, and goes on over damage: what cannot be read is left out and told by
    /// [`Opening::take_damage`]. For looking at a disk only: the store must not be written, or what
    /// was left out would be lost.
    #[must_use]
    pub fn salvage(limits: Limits, out: &mut Vec<Effect>) -> Self {
        Self { salvage: Some(Vec::new()), ..Self::start(limits, out) }
    }

    /// Looks for what is in use behind so many units, to tell it. Unlike with
    /// [`Limits::units_max`] what lies before the end is read all the same.
    pub const fn expect_end(&mut self, units: u32) {
        self.units_there = units;
    }

    /// Refuses a store whose mark is lower: it was seen as high as that. `name` is for the line.
    pub fn expect_mark(&mut self, mark: u64, name: impl Into<String>) {
        self.mark_once = Some((mark, name.into()));
    }

    /// What was left out, a line each.
    pub fn take_damage(&mut self) -> Vec<String> {
        self.salvage.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Notes damage if opening goes on over it; otherwise it is the end.
    fn damage(&mut self, error: Error) -> Result<()> {
        let Some(salvage) = self.salvage.as_mut().filter(|_| error.kind() == ErrorKind::Io) else {
            return Err(error);
        };
        salvage.push(error.full());
        Ok(())
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
            Err(error) => {
                let error = Error::new(ErrorKind::Io, format!("read the store: {}", error.text));
                // Without the superblock nothing can be told.
                if matches!(want, Want::Super) { Err(error) } else { self.damage(error) }
            }
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
        self.queue.push_back((want, DiskOp::Read { area, offset, len }));
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
        self.superblock.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "no superblock yet"))
    }

    fn arrived(&mut self, want: Want, bytes: Bytes) -> Result<()> {
        match want {
            Want::Super => self.superblock_read(&bytes),
            Want::Owner => self.owner_read(&bytes),
            Want::Root => {
                let root = Root::decode(self.slot.serial, &bytes);
                match root.and_then(|root| self.check_root(&root).map(|()| root)) {
                    Ok(root) => self.root = root,
                    Err(malformed) => self.damage(damaged(malformed))?,
                }
                Ok(())
            }
            Want::Entries(page) => {
                let slots = decode_entries(&bytes);
                let slots = match slots.and_then(|slots| self.check_slots(&slots).map(|()| slots)) {
                    Ok(slots) => slots,
                    Err(malformed) => return self.damage(damaged(malformed)),
                };
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
                let words = match decode_space(page * UNITS_PER_PAGE, &bytes) {
                    Ok(words) => words,
                    Err(malformed) => return self.damage(damaged(malformed)),
                };
                self.check_words(page, &words).or_else(|error| self.damage(error))?;
                if let Some(space) = &mut self.space {
                    space.adopt_words(page, &words);
                }
                Ok(())
            }
            Want::Window(pos) => self.scan_window(pos, &bytes),
            Want::Later(pos) => {
                self.look_for_later(pos, &bytes).or_else(|error| self.damage(error))
            }
            Want::Tail(which) => {
                let Some(TailBlocks { fragment, first, crcs }) = self.tail.get(which) else {
                    return Ok(());
                };
                let blocks = (*first..).zip(bytes.chunks(BLOCK_SIZE));
                for ((block, bytes), crc) in blocks.zip(crcs) {
                    self.torn |= block_crc(*fragment, block, bytes) != *crc;
                }
                Ok(())
            }
            Want::Missing(page) => match decode_missing(page, &bytes) {
                Ok(missing) => {
                    self.missing.insert(page, missing);
                    Ok(())
                }
                Err(malformed) => self.damage(damaged(malformed)),
            },
            Want::Shard(shard, part) => {
                self.shard_parts.entry(shard).or_default().insert(part, bytes);
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
        let age = |slot: &&CheckpointSlot| (slot.serial, slot.mark, slot.raising == 0);
        let newest = slots.iter().flatten().max_by_key(age).copied();
        self.slot = match (newest, &slots) {
            (Some(slot), _) => slot,
            (None, [Err(malformed), _] | [_, Err(malformed)]) => {
                return Err(damaged(malformed.clone()));
            }
            (None, _) => return Err(Error::new(ErrorKind::Internal, "no checkpoint slot")),
        };
        self.behind =
            (0..2).filter(|which| slots[*which].as_ref().ok() != Some(&self.slot)).collect();
        self.superblock = Some(superblock);
        Ok(())
    }

    /// Everything asked for has arrived: what next?
    fn next_step(&mut self) -> Result<Option<(Box<Store>, OpenReport)>> {
        match self.step {
            Step::Super => {
                self.step = Step::Root;
                let superblock = self.superblock()?;
                if superblock.log_has_owner() {
                    let offset = superblock.log_bytes;
                    self.read(Want::Owner, Area::Log, offset, OWNER_BYTES as usize);
                }
                let run = self.root_run();
                if self.slot.root_bytes > run.bytes() as u64 || !self.is_inside(run)? {
                    const WHAT: &str = "checkpoint slot";
                    self.damage(damaged(Malformed::new(WHAT, "its root is outside of the disk")))?;
                    // Nothing of the index can be found.
                    self.slot.root_bytes = 0;
                }
                if self.slot.root_bytes > 0 {
                    self.read(Want::Root, Area::Data, run.offset(), run.bytes());
                }
            }
            Step::Root => {
                self.step = Step::Index;
                self.judge_mark()?;
                self.ask_for_index()?;
            }
            Step::Index => {
                self.step = Step::Scan;
                self.index.finish_adopting(self.root.entry_pages.len());
                for (page, missing) in std::mem::take(&mut self.missing) {
                    self.index.adopt_missing(page, &missing);
                }
                for (shard, parts) in std::mem::take(&mut self.shard_parts) {
                    match ShardPage::decode(shard, parts.values().map(|part| &part[..])) {
                        Ok(page) => drop(self.shards.insert(shard, page)),
                        Err(malformed) => self.damage(damaged(malformed))?,
                    }
                }
                self.scan = self.slot.replay;
                self.ask_for_window()?;
            }
            Step::Scan => {
                self.step = Step::Later;
                self.check_records()?;
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
                let records = self.records.iter();
                let touched: BTreeSet<FragmentId> = records
                    .filter_map(|replayed| Some(replayed.record.fragment()?.fragment))
                    .collect();
                for id in touched {
                    let page = self.index.get(id).map(|entry| entry.page).unwrap_or_default();
                    if page.count > 0 {
                        self.read(Want::Page(id), Area::Data, page.offset(), page.bytes());
                    }
                }
            }
            Step::Pages => {
                // Whatever can refuse the store was looked at.
                let mut opened = self.replay()?;
                if self.salvage.is_none() {
                    self.raise_mark()?;
                    let mark = self.slot.mark;
                    (opened.0.mark, opened.1.mark) = (mark, mark);
                }
                self.opened = Some(opened);
                self.step = Step::Mark;
            }
            Step::Mark => match self.marking.pop_front() {
                Some(op) => self.queue.push_back((Want::Flush, op)),
                None => return Ok(self.opened.take()),
            },
        }
        Ok(None)
    }

    const fn root_run(&self) -> PageRun {
        let count = self.slot.root_bytes.div_ceil(BLOCK_SIZE as u64);
        PageRun { page: self.slot.root_page, count: count as u16 }
    }

    fn ask_for_index(&mut self) -> Result<()> {
        let per_unit = self.superblock()?.geometry.blocks_per_chunk();
        // Superblock and slots.
        let reserved = 3_u32.div_ceil(per_unit);
        let mut space =
            Space::new(self.limits.units_max, per_unit, reserved, self.limits.spare_pages);
        for page in self.root.entry_pages.iter().chain(&self.root.space_pages) {
            if *page != 0 {
                space.adopt_pages(PageRun { page: *page, count: 1 });
            }
        }
        if self.slot.root_bytes > 0 {
            space.adopt_pages(self.root_run());
        }
        for (_, page) in &self.root.missing_pages {
            space.adopt_pages(PageRun { page: *page, count: 1 });
        }
        for run in self.root.shards.iter().flat_map(|(_, parts)| parts) {
            space.adopt_pages(*run);
        }
        self.space = Some(space);
        for (number, page) in self.root.missing_pages.clone() {
            let offset = page * BLOCK_SIZE as u64;
            self.read(Want::Missing(number), Area::Data, offset, BLOCK_SIZE);
        }
        for (shard, parts) in self.root.shards.clone() {
            for (part, run) in parts.into_iter().enumerate() {
                self.read(Want::Shard(shard, part), Area::Data, run.offset(), run.bytes());
            }
        }
        let wanted = |pages: &[u64]| -> Vec<(u32, u64)> {
            (0..).zip(pages.iter().copied()).filter(|(_, page)| *page != 0).collect()
        };
        for (number, page) in wanted(&self.root.space_pages) {
            self.read(Want::Space(number), Area::Data, page * BLOCK_SIZE as u64, BLOCK_SIZE);
        }
        for (number, page) in wanted(&self.root.entry_pages) {
            self.read(Want::Entries(number), Area::Data, page * BLOCK_SIZE as u64, BLOCK_SIZE);
        }
        Ok(())
    }
}

/// The log is not the one that was prepared with this store. Taken for an empty one, it would have
/// everything vanish that was acknowledged and is not home yet.
fn not_ours(why: Malformed) -> Error {
    let what = "the log is not this store's: it was replaced or lost its contents";
    Error::with_source(ErrorKind::Io, what, why)
}

/// A structure of the store is not what was written.
fn damaged(malformed: Malformed) -> Error {
    let kind = if malformed.newer { ErrorKind::VersionMismatch } else { ErrorKind::Io };
    Error::with_source(kind, "the store cannot be opened", malformed)
}
