//! A checkpoint: bring home what is in the log only, write changed pages of the index to fresh
//! places, then switch to them with one durable write of a slot. Only then is the log's space,
//! and that of the pages replaced, used again.
//!
//! Order: reads begun before end (drain) → units and blocks given back to the host, logged blocks
//! written home (destage) → fragment pages → entry pages, allocation pages, root → flush →
//! slots, durable, one after the other. A crash before the last step leaves the old checkpoint and
//! its log whole; only when both slots name the new one is anything of the old one used again.

use crate::checksum::block_crc;
use crate::command::{Answer, CommandId, Effect};
use crate::format::fragment_page;
use crate::format::index::{PageRun, Root, UNITS_PER_PAGE, encode_entries, encode_space};
use crate::format::superblock::{CheckpointSlot, LogPosition, SLOT_OFFSETS};
use crate::fragment::FreedUnit;
use crate::io::{Area, DiskError, DiskErrorKind, DiskOp};
use crate::store::{Purpose, Store};
use crate::write::{PendingWrite, mask_runs};
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, FragmentId, PageBuf, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// Disk operations a checkpoint keeps in flight.
const OPS_MAX: u32 = 64;
/// Milliseconds after the last write before space is given back to the host.
const IDLE_MS: u64 = 1000;
/// Checkpoints that give space back after the last write: the first replaces pages of the index,
/// the second gives those back too.
const IDLE_CHECKPOINTS: u8 = 2;
/// Milliseconds that something may stay in the log only.
const DIRTY_MS: u64 = 30_000;
/// Times that a block is read from the log before it is given up.
const FETCH_TRIES: u8 = 3;
/// Milliseconds before a checkpoint that found no space is tried again.
const RETRY_MS: u64 = 1000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Drain,
    Destage,
    Pages,
    Index,
    Flush,
    FirstSlot,
    SecondSlot,
}

/// The one in progress.
pub(crate) struct Checkpoint {
    phase: Phase,
    /// Where replay will start.
    replay: LogPosition,
    /// Operations begun before this ticket must end first.
    barrier: u64,
    /// Fragments that were dirty when it began, and those the present phase has still to do.
    fragments: Vec<FragmentId>,
    todo: Vec<FragmentId>,
    /// Blocks on their way from the log, by fragment.
    fetching: BTreeMap<FragmentId, u32>,
    in_flight: u32,
    /// Recycled units to be given back to the host.
    units: Vec<u32>,
    /// Pages to be free once it is installed.
    replaced: Vec<PageRun>,
    /// Units to be recycled once it is installed.
    held: Vec<u32>,
    entry_pages: Vec<(u32, PageRun)>,
    space_pages: Vec<(u32, PageRun)>,
    root: PageRun,
    root_bytes: u64,
    no_space: bool,
    pub waiters: Vec<CommandId>,
}

/// Part of a checkpoint on its way.
pub(crate) enum CheckpointOp {
    /// A logged block is read back.
    Fetch {
        fragment: FragmentId,
        vid: Vid,
        block: u32,
        seq: u64,
        pos: u64,
        ticket: u64,
        tries: u8,
    },
    /// Logged blocks go home: first block, batches that brought them.
    Home {
        fragment: FragmentId,
        vid: Vid,
        unit: u32,
        first: u32,
        seqs: Vec<u64>,
        ticket: u64,
    },
    /// Blocks of a chunk in use go back to the host. Like a write it holds a ticket: the unit may
    /// be freed meanwhile, and must not be written by another use before the punch has ended.
    PunchBlocks {
        fragment: FragmentId,
        vid: Vid,
        chunk: u8,
        unit: u32,
        mask: u16,
        ticket: u64,
    },
    /// Whole units do.
    PunchUnits { first: u32, count: u32 },
    /// A fragment's page is written.
    Page { fragment: FragmentId, run: PageRun },
    /// A page of the index is written.
    IndexPage,
    /// The data area is flushed.
    Flush,
    /// A slot is written.
    Slot,
}

impl Store {
    /// Time passes: dirt grows old, idle time is used.
    pub(crate) fn tick(&mut self, _out: &mut Vec<Effect>) {
        if self.index.dirty().is_empty() && !self.index.has_dirty_entry_pages() {
            self.dirty_since = None;
        }
    }

    fn checkpoint_due(&self) -> bool {
        if !self.checkpoint_wanted.is_empty() {
            return true;
        }
        if self.now < self.retry_checkpoint_at {
            return false;
        }
        let log_used = self.log.next.pos - self.log.head.pos;
        let idle = self.now.saturating_sub(self.last_write) >= IDLE_MS;
        self.short_of_space
            || log_used > self.superblock.log_bytes / 2
            || (self.index.cached_bytes() > self.limits.cache_bytes * 2
                && !self.index.dirty().is_empty())
            || self.space.recycled_units() > 2 * self.limits.recycled_units
            || (idle
                && self.idle_checkpoints < IDLE_CHECKPOINTS
                && (self.stale_pending || self.space.recycled_units() > 0))
            || self
                .dirty_since
                .is_some_and(|since| self.now.saturating_sub(since) >= DIRTY_MS)
    }

    pub(crate) fn start_checkpoint_if_due(&mut self, out: &mut Vec<Effect>) {
        if self.failed.is_some() || self.checkpoint.is_some() || !self.checkpoint_due() {
            return;
        }
        let waiters = std::mem::take(&mut self.checkpoint_wanted);
        let busy = self.now.saturating_sub(self.last_write) < IDLE_MS && waiters.is_empty();
        let keep = if busy { self.limits.recycled_units } else { 0 };
        self.idle_checkpoints = self.idle_checkpoints.saturating_add(u8::from(!busy));
        let units = self.space.take_recycled(self.log.durable, keep);
        let fragments: Vec<_> = self.index.dirty().iter().rev().copied().collect();
        self.dirty_since = None;
        self.stale_pending = false;
        self.checkpoint = Some(Checkpoint {
            phase: Phase::Drain,
            replay: self.log.next,
            barrier: self.tickets.next(),
            todo: fragments.clone(),
            fragments,
            fetching: BTreeMap::new(),
            in_flight: 0,
            units,
            replaced: std::mem::take(&mut self.replaced_pages),
            held: std::mem::take(&mut self.held_units),
            entry_pages: Vec::new(),
            space_pages: Vec::new(),
            root: PageRun::default(),
            root_bytes: 0,
            no_space: false,
            waiters,
        });
        self.advance_checkpoint(out);
    }

    /// Takes the checkpoint as far as it can go now.
    pub(crate) fn advance_checkpoint(&mut self, out: &mut Vec<Effect>) {
        loop {
            let oldest = self.tickets.oldest();
            let Some(checkpoint) = &mut self.checkpoint else {
                return;
            };
            if checkpoint.no_space {
                if checkpoint.in_flight == 0 {
                    self.abandon_checkpoint(out);
                }
                return;
            }
            match checkpoint.phase {
                Phase::Drain => {
                    if oldest < checkpoint.barrier {
                        return;
                    }
                    checkpoint.phase = Phase::Destage;
                    self.punch_units(out);
                }
                Phase::Destage | Phase::Pages => {
                    if checkpoint.in_flight >= OPS_MAX {
                        return;
                    }
                    let destage = checkpoint.phase == Phase::Destage;
                    if let Some(fragment) = checkpoint.todo.pop() {
                        if destage {
                            self.destage(fragment, out);
                        } else {
                            self.write_page(fragment, out);
                        }
                    } else if checkpoint.in_flight > 0 {
                        return;
                    } else if destage {
                        checkpoint.phase = Phase::Pages;
                        checkpoint.todo.clone_from(&checkpoint.fragments);
                    } else {
                        checkpoint.phase = Phase::Index;
                        self.write_index(out);
                    }
                }
                Phase::Index => {
                    if checkpoint.in_flight > 0 {
                        return;
                    }
                    checkpoint.phase = Phase::Flush;
                    let op = DiskOp::Sync { area: Area::Data };
                    self.checkpoint_op(CheckpointOp::Flush, op, out);
                }
                Phase::Flush => {
                    if checkpoint.in_flight > 0 {
                        return;
                    }
                    checkpoint.phase = Phase::FirstSlot;
                    self.write_slot(0, out);
                }
                Phase::FirstSlot => {
                    if checkpoint.in_flight > 0 {
                        return;
                    }
                    checkpoint.phase = Phase::SecondSlot;
                    self.write_slot(1, out);
                }
                Phase::SecondSlot => {
                    if checkpoint.in_flight > 0 {
                        return;
                    }
                    self.install_checkpoint(out);
                    return;
                }
            }
        }
    }

    fn checkpoint_op(&mut self, what: CheckpointOp, op: DiskOp, out: &mut Vec<Effect>) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.in_flight += 1;
        }
        self.disk(Purpose::Checkpoint(what), op, out);
    }

    fn punch_units(&mut self, out: &mut Vec<Effect>) {
        let units = self
            .checkpoint
            .as_ref()
            .map(|c| c.units.clone())
            .unwrap_or_default();
        let mut at = 0;
        while at < units.len() {
            let first = units[at];
            let mut count = 1;
            while at + (count as usize) < units.len() && units[at + count as usize] == first + count
            {
                count += 1;
            }
            at += count as usize;
            let len = u64::from(count) * self.geometry().chunk_bytes();
            let op = DiskOp::Punch {
                offset: self.unit_offset(first),
                len,
            };
            self.checkpoint_op(CheckpointOp::PunchUnits { first, count }, op, out);
        }
    }

    // ---- destage ------------------------------------------------------------------------------

    /// Writes the logged blocks of a fragment home and gives back its stale ones; fetches from the
    /// log first what memory does not hold.
    fn destage(&mut self, id: FragmentId, out: &mut Vec<Effect>) {
        let oldest = self.tickets.oldest();
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        let fetch: Vec<(Vid, u32, u64, u64)> = loaded
            .logged
            .iter()
            .filter(|(_, block)| block.bytes.is_none())
            .map(|((vid, number), block)| (*vid, *number, block.seq, block.pos))
            .collect();
        if !fetch.is_empty() {
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.fetching.insert(id, fetch.len() as u32);
            }
            for (vid, block, seq, pos) in fetch {
                let what = CheckpointOp::Fetch {
                    fragment: id,
                    vid,
                    block,
                    seq,
                    pos,
                    ticket: self.tickets.begin(),
                    tries: 1,
                };
                self.fetch(what, pos, out);
            }
            return;
        }
        self.punch_stale(id, oldest, out);

        // What goes home, by chunk. A block whose home may still be read by an older operation
        // stays in the log until the next checkpoint; it is behind this one's replay position.
        let per_chunk = self.geometry().blocks_per_chunk();
        let mut chunks: BTreeMap<(Vid, u8), BTreeMap<u32, (Bytes, u64)>> = BTreeMap::new();
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        for ((vid, block), logged) in &loaded.logged {
            if let Some(bytes) = &logged.bytes
                && logged.ticket <= oldest
            {
                let chunk = chunks.entry((*vid, (block / per_chunk) as u8)).or_default();
                chunk.insert(block % per_chunk, (bytes.clone(), logged.seq));
            }
        }
        for ((vid, index), blocks) in chunks {
            let Some(unit) = self.home_of(id, vid, index) else {
                if let Some(checkpoint) = &mut self.checkpoint {
                    checkpoint.no_space = true;
                }
                return;
            };
            let mask = blocks.keys().fold(0u16, |mask, slot| mask | (1 << slot));
            for (slot, count) in mask_runs(mask) {
                let run = blocks.range(slot..slot + count).map(|(_, block)| block);
                let (data, seqs): (Vec<Bytes>, Vec<u64>) = run.cloned().unzip();
                let ticket = self.tickets.begin();
                let first = u32::from(index) * per_chunk + slot;
                let what = CheckpointOp::Home {
                    fragment: id,
                    vid,
                    unit,
                    first,
                    seqs,
                    ticket,
                };
                let offset = self.unit_offset(unit) + u64::from(slot) * BLOCK_SIZE as u64;
                let op = DiskOp::Write {
                    area: Area::Data,
                    offset,
                    data,
                    durable: false,
                };
                self.checkpoint_op(what, op, out);
            }
        }
    }

    fn punch_stale(&mut self, id: FragmentId, oldest: u64, out: &mut Vec<Effect>) {
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        // A reservation on its way counts on the space that is there.
        let reserving = self.active.get(&id).is_some_and(|active| active.exclusive);
        if reserving || loaded.stale_ticket > oldest {
            self.stale_pending = true;
            return;
        }
        let stale: Vec<(Vid, u8, u32, u16)> = loaded
            .fragment
            .chunks()
            .filter(|(_, _, chunk)| chunk.stale != 0)
            .filter_map(|(vid, index, chunk)| Some((vid, index, chunk.unit?, chunk.stale)))
            .collect();
        for (vid, index, unit, mask) in stale {
            if let Some(loaded) = self.index.loaded(id) {
                loaded.fragment.forget_stale(vid, index);
                loaded.punching += mask_runs(mask).count() as u32;
            }
            for (slot, count) in mask_runs(mask) {
                let op = DiskOp::Punch {
                    offset: self.unit_offset(unit) + u64::from(slot) * BLOCK_SIZE as u64,
                    len: u64::from(count) * BLOCK_SIZE as u64,
                };
                let what = CheckpointOp::PunchBlocks {
                    fragment: id,
                    vid,
                    chunk: index,
                    unit,
                    mask: (((1u32 << count) - 1) << slot) as u16,
                    ticket: self.tickets.begin(),
                };
                self.checkpoint_op(what, op, out);
            }
        }
    }

    /// A punch of stale blocks ended; if the host refused it, they are stale still.
    fn blocks_punched(&mut self, op: &CheckpointOp, done: bool, out: &mut Vec<Effect>) {
        let CheckpointOp::PunchBlocks {
            fragment,
            vid,
            chunk,
            unit,
            mask,
            ..
        } = *op
        else {
            return;
        };
        if let Some(loaded) = self.index.loaded(fragment) {
            loaded.punching = loaded.punching.saturating_sub(1);
            if !done {
                loaded.fragment.add_stale(vid, chunk, unit, mask);
            }
        }
        self.drain_waiting(fragment, out);
    }

    /// The unit of a chunk, claimed now if it has none.
    fn home_of(&mut self, id: FragmentId, vid: Vid, index: u8) -> Option<u32> {
        let own = self.index.loaded(id)?.fragment.chunk(vid, index)?.unit;
        if own.is_some() {
            return own;
        }
        let unit = self.space.claim(1)?.unit;
        self.index.loaded(id)?.fragment.give_home(vid, index, unit);
        Some(unit)
    }

    fn fetch(&mut self, what: CheckpointOp, pos: u64, out: &mut Vec<Effect>) {
        let op = DiskOp::Read {
            area: Area::Log,
            offset: pos % self.superblock.log_bytes,
            len: BLOCK_SIZE,
        };
        self.checkpoint_op(what, op, out);
    }

    fn fetched(&mut self, op: &CheckpointOp, result: Result<Bytes, DiskError>) {
        let CheckpointOp::Fetch {
            fragment,
            vid,
            block,
            seq,
            ..
        } = *op
        else {
            return;
        };
        let (slot, bit) = {
            let per_chunk = self.geometry().blocks_per_chunk();
            ((block % per_chunk) as usize, (block / per_chunk) as u8)
        };
        let expected = self
            .index
            .loaded(fragment)
            .and_then(|loaded| loaded.fragment.chunk(vid, bit))
            .map(|chunk| chunk.crcs[slot]);
        let bytes = result.ok().filter(|bytes| {
            // A block that was written again since has another checksum and is fetched anew.
            expected == Some(block_crc(fragment, block, bytes))
        });
        let mut lost = false;
        if let Some(loaded) = self.index.loaded(fragment)
            && let Some(logged) = loaded.logged.get_mut(&(vid, block))
            && logged.seq == seq
        {
            match bytes {
                Some(bytes) => {
                    self.logged_bytes += bytes.len();
                    logged.bytes = Some(bytes);
                }
                None => {
                    // The log's copy is rotten. It cannot be brought home; the block keeps its
                    // checksum, so reading it is an error and never wrong bytes.
                    loaded.logged.remove(&(vid, block));
                    self.logged_blocks -= 1;
                    self.stats.checksum_errors += 1;
                    lost = true;
                }
            }
        }
        if lost {
            self.home_of(fragment, vid, bit);
        }
        if let Some(checkpoint) = &mut self.checkpoint
            && let Some(left) = checkpoint.fetching.get_mut(&fragment)
        {
            *left -= 1;
            if *left == 0 {
                checkpoint.fetching.remove(&fragment);
                checkpoint.todo.push(fragment);
            }
        }
    }

    fn home_written(&mut self, op: &CheckpointOp) {
        let CheckpointOp::Home {
            fragment,
            vid,
            unit,
            first,
            seqs,
            ..
        } = op
        else {
            return;
        };
        let Some(loaded) = self.index.loaded(*fragment) else {
            return;
        };
        let (chunk, _) = loaded.fragment.locate(*first);
        let (mut mask, mut freed_blocks, mut freed_bytes) = (0, 0, 0);
        for (block, seq) in (*first..).zip(seqs) {
            mask |= loaded.fragment.locate(block).1;
            if loaded
                .logged
                .get(&(*vid, block))
                .is_some_and(|logged| logged.seq == *seq)
                && let Some(logged) = loaded.logged.remove(&(*vid, block))
            {
                freed_blocks += 1;
                freed_bytes += logged.bytes.map_or(0, |bytes| bytes.len());
            }
        }
        loaded.fragment.set_backed(*vid, chunk, *unit, mask);
        self.logged_blocks -= freed_blocks;
        self.logged_bytes -= freed_bytes;
        self.stats.destaged_blocks += freed_blocks;
    }

    // ---- pages --------------------------------------------------------------------------------

    fn write_page(&mut self, id: FragmentId, out: &mut Vec<Effect>) {
        let geometry = self.geometry();
        // Batches are applied whole, so this is where the fragment stands.
        let batch = self.log.durable;
        let Some(head) = self.index.get(id).map(|entry| entry.head) else {
            return;
        };
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        let bytes = fragment_page::encode(id, head, batch, &loaded.fragment, geometry);
        let Some(run) = self
            .space
            .claim_pages(bytes.len().div_ceil(BLOCK_SIZE) as u32)
        else {
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.no_space = true;
            }
            return;
        };
        // From here on every change makes it dirty again.
        self.index.mark_clean(id);
        self.write_run(CheckpointOp::Page { fragment: id, run }, run, &bytes, out);
    }

    fn write_run(&mut self, what: CheckpointOp, run: PageRun, bytes: &[u8], out: &mut Vec<Effect>) {
        let op = DiskOp::Write {
            area: Area::Data,
            offset: run.offset(),
            data: vec![PageBuf::copy_of(bytes).freeze()],
            durable: false,
        };
        self.checkpoint_op(what, op, out);
    }

    fn page_written(&mut self, id: FragmentId, run: PageRun) {
        let replaced = match self.index.set_page(id, run) {
            Some(old) => old,
            // The fragment was forgotten meanwhile; nothing will ever read this page.
            None => run,
        };
        if replaced.count > 0
            && let Some(checkpoint) = &mut self.checkpoint
        {
            checkpoint.replaced.push(replaced);
        }
    }

    /// Entry pages, allocation pages and root, all decided in this one instant.
    fn write_index(&mut self, out: &mut Vec<Effect>) {
        let Some(mut checkpoint) = self.checkpoint.take() else {
            return;
        };
        // Pages of fragments forgotten since it began are not named by this index either.
        checkpoint.replaced.append(&mut self.replaced_pages);
        let claimed = self.claim_index_pages(&mut checkpoint);
        let planned = if claimed {
            self.lay_out_index(&mut checkpoint)
        } else {
            Vec::new()
        };
        checkpoint.no_space |= !claimed;
        self.checkpoint = Some(checkpoint);
        for (run, bytes) in planned {
            self.write_run(CheckpointOp::IndexPage, run, &bytes, out);
        }
    }

    /// Claims all pages the new index needs. Claiming changes allocation pages, and so does the
    /// emptying of units by the pages replaced, so it goes on until none is left without a page.
    fn claim_index_pages(&mut self, checkpoint: &mut Checkpoint) -> bool {
        let mut dirty = self.index.take_dirty_entry_pages();
        while let Some(page) = dirty.first().copied() {
            let Some(run) = self.space.claim_pages(1) else {
                self.index.mark_entry_pages_dirty(dirty);
                return false;
            };
            dirty.remove(&page);
            checkpoint.entry_pages.push((page, run));
            checkpoint
                .replaced
                .extend(installed_page(&self.entry_pages, page));
        }
        if self.root.count > 0 {
            checkpoint.replaced.push(self.root);
        }
        // Generous: the bitmap may grow by a page, and each page replaced may empty its units.
        let per_unit = self.geometry().blocks_per_chunk() as usize;
        let emptied: usize = checkpoint
            .replaced
            .iter()
            .map(|run| usize::from(run.count).div_ceil(per_unit))
            .sum();
        let bytes = Root::encoded_bytes(
            self.index.entry_pages(),
            self.space.allocation_pages() + 1,
            self.space.recycled_units()
                + self.writes.values().flat_map(PendingWrite::units).count()
                + emptied
                + 64,
        );
        match self.space.claim_pages(bytes.div_ceil(BLOCK_SIZE) as u32) {
            Some(run) => checkpoint.root = run,
            None => return false,
        }
        let mut known = BTreeSet::new();
        loop {
            let emptied = self.space.units_emptied_by(&checkpoint.replaced);
            self.space
                .mark_dirty(emptied.into_iter().map(|unit| unit / UNITS_PER_PAGE));
            let next = self
                .space
                .dirty_pages()
                .iter()
                .find(|page| !known.contains(*page))
                .copied();
            let Some(page) = next else { break };
            known.insert(page);
            match self.space.claim_pages(1) {
                Some(run) => checkpoint.space_pages.push((page, run)),
                None => return false,
            }
            checkpoint
                .replaced
                .extend(installed_page(&self.space_pages, page));
        }
        self.space.take_dirty_pages();
        true
    }

    fn lay_out_index(&mut self, checkpoint: &mut Checkpoint) -> Vec<(PageRun, Vec<u8>)> {
        let mut entry_pages = self.entry_pages.clone();
        entry_pages.resize(self.index.entry_pages(), 0);
        let mut space_pages = self.space_pages.clone();
        space_pages.resize(self.space.allocation_pages(), 0);
        let mut written = Vec::new();
        for (page, run) in &checkpoint.entry_pages {
            entry_pages[*page as usize] = run.page;
            written.push((*run, encode_entries(&self.index.slots_of_page(*page))));
        }
        for (page, run) in &checkpoint.space_pages {
            space_pages[*page as usize] = run.page;
        }
        // On disk, recycled units and those emptied of pages are free already. Units of writes that
        // are not durable yet are free still: if they become durable, replay claims them.
        let mut also_free: BTreeSet<u32> = self.space.recycled().collect();
        also_free.extend(self.writes.values().flat_map(PendingWrite::units));
        also_free.extend(checkpoint.held.iter().chain(&self.held_units));
        let mut unpunched: Vec<u32> = also_free.iter().copied().collect();
        for unit in self.space.units_emptied_by(&checkpoint.replaced) {
            if also_free.insert(unit) {
                unpunched.push(unit);
            }
        }
        for (page, run) in &checkpoint.space_pages {
            let words = self.space.page_words(*page, &also_free);
            written.push((*run, encode_space(page * UNITS_PER_PAGE, &words)));
        }
        unpunched.truncate(
            (checkpoint.root.bytes()
                - Root::encoded_bytes(entry_pages.len(), space_pages.len(), 0))
                / 4,
        );
        let root = Root {
            serial: self.serial + 1,
            entry_pages,
            space_pages,
            unpunched,
        };
        let bytes = root.encode();
        // All that was claimed, used or not: opening must find the same pages in use.
        checkpoint.root_bytes = checkpoint.root.bytes() as u64;
        written.push((checkpoint.root, bytes));
        written
    }

    fn write_slot(&mut self, which: usize, out: &mut Vec<Effect>) {
        let Some(checkpoint) = &self.checkpoint else {
            return;
        };
        let slot = CheckpointSlot {
            serial: self.serial + 1,
            root_page: checkpoint.root.page,
            root_bytes: checkpoint.root_bytes,
            replay: checkpoint.replay,
        };
        let bytes = slot.encode(self.superblock.log_id);
        let op = DiskOp::Write {
            area: Area::Data,
            offset: SLOT_OFFSETS[which],
            data: vec![PageBuf::copy_of(&bytes).freeze()],
            durable: true,
        };
        self.checkpoint_op(CheckpointOp::Slot, op, out);
    }

    fn install_checkpoint(&mut self, out: &mut Vec<Effect>) {
        let Some(checkpoint) = self.checkpoint.take() else {
            return;
        };
        self.serial += 1;
        self.short_of_space = false;
        self.stats.checkpoints += 1;
        self.entry_pages
            .resize(self.index.entry_pages().max(self.entry_pages.len()), 0);
        for (page, run) in &checkpoint.entry_pages {
            self.entry_pages[*page as usize] = run.page;
        }
        self.space_pages
            .resize(self.space.allocation_pages().max(self.space_pages.len()), 0);
        for (page, run) in &checkpoint.space_pages {
            self.space_pages[*page as usize] = run.page;
        }
        self.root = checkpoint.root;
        let ticket = self.tickets.next();
        for run in checkpoint.replaced {
            for unit in self.space.free_pages(run) {
                // No record names such a unit, and the installed index does not either.
                self.space.recycle(
                    FreedUnit {
                        unit,
                        written: false,
                    },
                    0,
                    ticket,
                );
            }
        }
        for unit in checkpoint.held {
            self.space.recycle(
                FreedUnit {
                    unit,
                    written: false,
                },
                0,
                ticket,
            );
        }
        self.log.next_head = Some((checkpoint.replay, ticket));
        self.release_log();
        out.extend(
            checkpoint
                .waiters
                .into_iter()
                .map(|id| Effect::Reply(id, Ok(Answer::Done))),
        );
        let active = &self.active;
        self.index
            .shrink(self.limits.cache_bytes, usize::MAX, |id| {
                active.contains_key(&id)
            });
    }

    /// Log space before the replay position is free once nobody reads it any more.
    pub(crate) fn release_log(&mut self) {
        if let Some((head, ticket)) = self.log.next_head
            && self.tickets.oldest() >= ticket
        {
            self.log.head = head;
            self.log.next_head = None;
        }
    }

    /// It found no space: nothing on disk refers to what was written; try again later.
    fn abandon_checkpoint(&mut self, out: &mut Vec<Effect>) {
        let Some(checkpoint) = self.checkpoint.take() else {
            return;
        };
        self.retry_checkpoint_at = self.now + RETRY_MS;
        self.short_of_space = true;
        self.stale_pending = true;
        self.dirty_since.get_or_insert(self.now);
        let ticket = self.tickets.next();
        // Units not punched stay recycled, as freed before this moment.
        for unit in checkpoint.units {
            self.space.recycle(
                FreedUnit {
                    unit,
                    written: false,
                },
                0,
                ticket,
            );
        }
        self.held_units.extend(checkpoint.held);
        let mut fresh: Vec<PageRun> = Vec::new();
        for (page, run) in checkpoint.entry_pages {
            self.index.mark_entry_pages_dirty([page]);
            fresh.push(run);
        }
        for (page, run) in checkpoint.space_pages {
            self.space.mark_dirty([page]);
            fresh.push(run);
        }
        fresh.extend((checkpoint.root.count > 0).then_some(checkpoint.root));
        for run in &fresh {
            for unit in self.space.free_pages(*run) {
                self.space.recycle(
                    FreedUnit {
                        unit,
                        written: false,
                    },
                    0,
                    ticket,
                );
            }
        }
        // Entry pages, allocation pages and the root of the installed index stay in use.
        let installed: BTreeSet<u64> = self
            .entry_pages
            .iter()
            .chain(&self.space_pages)
            .copied()
            .chain((self.root.count > 0).then_some(self.root.page))
            .collect();
        self.replaced_pages.extend(
            checkpoint
                .replaced
                .into_iter()
                .filter(|run| !installed.contains(&run.page)),
        );
        for id in checkpoint.fragments {
            self.index.mark_dirty(id);
        }
        for waiter in checkpoint.waiters {
            out.push(Effect::Reply(waiter, Err(Error::from(ErrorKind::NoSpace))));
        }
    }

    pub(crate) fn checkpoint_done(
        &mut self,
        mut op: CheckpointOp,
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.in_flight -= 1;
        }
        if let CheckpointOp::Fetch { tries, pos, .. } = &mut op
            && *tries < FETCH_TRIES
            && result.is_err()
        {
            // Giving a block up is for ever; the disk may think better of it.
            *tries += 1;
            let pos = *pos;
            return self.fetch(op, pos, out);
        }
        let op = &op;
        if let CheckpointOp::Fetch { ticket, .. }
        | CheckpointOp::Home { ticket, .. }
        | CheckpointOp::PunchBlocks { ticket, .. } = op
        {
            self.tickets.end(*ticket);
        }
        let error = match (op, result) {
            // What cannot be read back is dealt with there.
            (CheckpointOp::Fetch { .. }, result) => {
                self.fetched(op, result);
                None
            }
            (_, result) => result.err(),
        };
        if let Some(error) = error {
            // A flush that failed may have lost what was written, whatever the reason.
            if error.kind == DiskErrorKind::Io
                || matches!(op, CheckpointOp::Flush | CheckpointOp::Slot)
            {
                return self.fail_op("write a checkpoint", &error, out);
            }
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.no_space = true;
            }
            self.blocks_punched(op, false, out);
            if let CheckpointOp::Page { fragment, run } = *op {
                self.index.mark_dirty(fragment);
                let ticket = self.tickets.next();
                for unit in self.space.free_pages(run) {
                    self.space.recycle(
                        FreedUnit {
                            unit,
                            written: false,
                        },
                        0,
                        ticket,
                    );
                }
            }
            return;
        }
        match *op {
            CheckpointOp::Home { .. } => self.home_written(op),
            CheckpointOp::PunchBlocks { .. } => self.blocks_punched(op, true, out),
            CheckpointOp::PunchUnits { first, count } => {
                for unit in first..first + count {
                    self.space.release(unit);
                }
                if let Some(checkpoint) = &mut self.checkpoint {
                    checkpoint
                        .units
                        .retain(|unit| !(first..first + count).contains(unit));
                }
            }
            CheckpointOp::Page { fragment, run } => self.page_written(fragment, run),
            CheckpointOp::Fetch { .. }
            | CheckpointOp::IndexPage
            | CheckpointOp::Flush
            | CheckpointOp::Slot => {}
        }
    }
}

/// The page of the installed index that a new one replaces.
fn installed_page(pages: &[u64], number: u32) -> Option<PageRun> {
    let page = pages
        .get(number as usize)
        .copied()
        .filter(|page| *page != 0)?;
    Some(PageRun { page, count: 1 })
}
