//! A checkpoint: bring home what is in the log only, write changed pages of the index to fresh
//! places, then switch to them with one durable write of a slot. Only then is the log's space,
//! and that of the pages replaced, used again.
//!
//! Order: reads begun before end (drain) → units and blocks given back to the host, so that there
//! is room for what follows; space for spare pages (punch) → logged blocks written home (destage)
//! → fragment pages → entry pages, allocation pages, root → flush → slots, durable, one after the
//! other. A crash before the last step leaves the old checkpoint and its log whole; only when both
//! slots name the new one is anything of the old one used again.

mod destage;
mod pages;
mod spares;

use crate::command::{Answer, Command, CommandId, Effect};
use crate::format::index::PageRun;
use crate::format::superblock::{CheckpointSlot, LogPosition, SLOT_OFFSETS};
use crate::fragment::{BlockMask, FreedUnit};
use crate::io::{Area, DiskError, DiskErrorKind, DiskOp};
use crate::store::{Purpose, Store};
use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, FragmentId, PageBuf, ShardId, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// Disk operations a checkpoint keeps in flight. Enough to keep a disk busy, few enough that the
/// flush of a client's batch does not wait for many of them.
const OPS_MAX: u32 = 16;
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
    Punch,
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
    entry_pages: Vec<(u32, PageRun)>,
    space_pages: Vec<(u32, PageRun)>,
    /// `None`: there is no such page any more.
    missing_pages: Vec<(u32, Option<PageRun>)>,
    /// Of each part; none of a shard that is gone.
    shard_pages: Vec<(ShardId, Vec<PageRun>)>,
    root: PageRun,
    root_bytes: u64,
    no_space: bool,
    pub waiters: Vec<CommandId>,
}

/// Part of a checkpoint on its way.
pub(crate) enum CheckpointOp {
    /// A logged block is read back.
    Fetch { fragment: FragmentId, vid: Vid, block: u32, seq: u64, pos: u64, ticket: u64, tries: u8 },
    /// Logged blocks go home.
    Home(Home),
    /// Blocks of a chunk in use go back to the host.
    PunchBlocks(PunchBlocks),
    /// Whole units do.
    PunchUnits { first: u32, count: u32 },
    /// A spare unit gets its space.
    Spare { unit: u32 },
    /// A fragment's page is written.
    Page { fragment: FragmentId, run: PageRun },
    /// A page of the index is written.
    IndexPage(PageRun),
    /// The data area is flushed.
    Flush,
    /// A slot is written.
    Slot,
}

/// Logged blocks on their way home.
pub(crate) struct Home {
    fragment: FragmentId,
    vid: Vid,
    unit: u32,
    first: u32,
    /// Batches that brought them.
    seqs: Vec<u64>,
    ticket: u64,
    /// Those that the host may not have space for yet.
    asked: u64,
}

/// Stale blocks of a chunk on their way back to the host. Like a write it holds a ticket: the unit
/// may be freed meanwhile, and must not be written by another use before the punch has ended.
#[derive(Clone, Copy)]
pub(crate) struct PunchBlocks {
    fragment: FragmentId,
    vid: Vid,
    chunk: u8,
    unit: u32,
    /// Blocks that the host holds, and those it may hold.
    stale: BlockMask,
    doubtful: BlockMask,
    ticket: u64,
}

impl Checkpoint {
    /// Units that are on their way back.
    pub(crate) fn units_to_free(&self) -> usize {
        self.units.len()
    }
}

impl Store {
    /// Time passes: dirt grows old, idle time is used.
    pub(crate) fn tick(&mut self, _out: &mut Vec<Effect>) {
        if self.index.dirty().is_empty()
            && !self.index.has_dirty_entry_pages()
            && !self.shards.are_dirty()
        {
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
            || self.pages_wanted
            || self.spares_due()
            || log_used > self.superblock.log_bytes / 2
            || (self.index.cached_bytes() > self.limits.cache_bytes * 2
                && !self.index.dirty().is_empty())
            || self.space.recycled_units() > 2 * self.limits.recycled_units
            || (idle
                && self.idle_checkpoints < IDLE_CHECKPOINTS
                && (self.stale_pending || self.space.recycled_units() > 0))
            || (idle && self.give_back_from.is_some())
            || self.dirty_since.is_some_and(|since| self.now.saturating_sub(since) >= DIRTY_MS)
    }

    pub(crate) fn start_checkpoint_if_due(&mut self, out: &mut Vec<Effect>) {
        if self.failed.is_some() || self.checkpoint.is_some() || !self.checkpoint_due() {
            return;
        }
        let waiters = std::mem::take(&mut self.checkpoint_wanted);
        let busy = self.now.saturating_sub(self.last_write) < IDLE_MS && waiters.is_empty();
        // What comes home needs its space before this checkpoint gives anything new.
        // On a raw device what comes home needs free units before this checkpoint frees more.
        let homeless = if self.limits.whole_units { self.homeless_bytes() } else { 0 };
        let short =
            self.space.spare_missing() > 0 || self.host_room() < homeless + self.reserve_bytes();
        let keep = if busy && !short { self.limits.recycled_units } else { 0 };
        self.idle_checkpoints = self.idle_checkpoints.saturating_add(u8::from(!busy));
        let mut units = self.space.take_recycled(self.log.durable, keep);
        if let Some(from) = self.give_back_from.filter(|_| !busy) {
            let (free, next) = self.space.take_free(from, self.limits.give_back_units);
            self.give_back_from = next;
            units.extend(free);
            units.sort_unstable();
        }
        self.choose_spares(&mut units);
        let fragments: Vec<_> = self.index.dirty().iter().rev().copied().collect();
        self.dirty_since = None;
        self.stale_pending = false;
        self.pages_wanted = false;
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
            entry_pages: Vec::new(),
            space_pages: Vec::new(),
            missing_pages: Vec::new(),
            shard_pages: Vec::new(),
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
            let busy = checkpoint.in_flight >= OPS_MAX;
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
                    checkpoint.phase = Phase::Punch;
                    self.punch_units(out);
                }
                Phase::Punch => {
                    if busy {
                        return;
                    }
                    if let Some(fragment) = checkpoint.todo.pop() {
                        self.punch_stale(fragment, out);
                    } else if checkpoint.in_flight > 0 {
                        return;
                    } else if !self.space.preparing().is_empty() {
                        // Of units that are spare already some may lack some of their space; it
                        // is there now.
                        self.ask_for_spares(out);
                    } else {
                        checkpoint.phase = Phase::Destage;
                        checkpoint.todo.clone_from(&checkpoint.fragments);
                    }
                }
                Phase::Destage | Phase::Pages => {
                    if busy {
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
        let units = self.checkpoint.as_ref().map(|c| c.units.clone()).unwrap_or_default();
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
            let op = DiskOp::Punch { offset: self.unit_offset(first), len };
            self.checkpoint_op(CheckpointOp::PunchUnits { first, count }, op, out);
        }
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
            mark: self.mark,
            raising: 0,
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

    /// A unit that no record and no installed index names.
    fn recycle_unit(&mut self, unit: u32, ticket: u64) {
        // What the host holds of it is in the books.
        self.space.recycle(FreedUnit { unit, backed: 0 }, 0, ticket);
    }

    fn install_checkpoint(&mut self, out: &mut Vec<Effect>) {
        let Some(checkpoint) = self.checkpoint.take() else {
            return;
        };
        self.serial += 1;
        self.short_of_space = false;
        self.stats.checkpoints += 1;
        self.entry_pages.resize(self.index.entry_pages().max(self.entry_pages.len()), 0);
        for (page, run) in &checkpoint.entry_pages {
            self.entry_pages[*page as usize] = run.page;
        }
        self.space_pages.resize(self.space.allocation_pages().max(self.space_pages.len()), 0);
        for (page, run) in &checkpoint.space_pages {
            self.space_pages[*page as usize] = run.page;
        }
        for (page, run) in &checkpoint.missing_pages {
            match run {
                Some(run) => self.missing_pages.insert(*page, run.page),
                None => self.missing_pages.remove(page),
            };
        }
        for (shard, parts) in checkpoint.shard_pages {
            if parts.is_empty() {
                self.shard_pages.remove(&shard);
            } else {
                self.shard_pages.insert(shard, parts);
            }
        }
        self.root = checkpoint.root;
        let ticket = self.tickets.next();
        for run in checkpoint.replaced {
            for unit in self.space.free_pages(run) {
                self.recycle_unit(unit, ticket);
            }
        }
        self.log.next_head = Some((checkpoint.replay, ticket));
        self.release_log();
        out.extend(checkpoint.waiters.into_iter().map(|id| Effect::Reply(id, Ok(Answer::Done))));
        self.wake_fills(out);
        let active = &self.active;
        self.index.shrink(self.limits.cache_bytes, usize::MAX, |id| active.contains_key(&id));
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
        // Units not punched stay recycled, as freed before this moment. Those that were to become
        // spare are asked for by the next one.
        for unit in checkpoint.units {
            self.recycle_unit(unit, ticket);
        }
        let mut fresh: Vec<PageRun> = Vec::new();
        for (page, run) in checkpoint.entry_pages {
            self.index.mark_entry_pages_dirty([page]);
            fresh.push(run);
        }
        for (page, run) in checkpoint.space_pages {
            self.space.mark_dirty([page]);
            fresh.push(run);
        }
        for (page, run) in checkpoint.missing_pages {
            self.index.mark_entry_pages_dirty([page]);
            fresh.extend(run);
        }
        for (shard, run) in checkpoint.shard_pages {
            self.shards.mark_dirty(shard);
            fresh.extend(run);
        }
        fresh.extend((checkpoint.root.count > 0).then_some(checkpoint.root));
        for run in &fresh {
            for unit in self.space.free_pages(*run) {
                self.recycle_unit(unit, ticket);
            }
        }
        // Entry pages, allocation pages and the root of the installed index stay in use.
        let installed: BTreeSet<u64> = self
            .entry_pages
            .iter()
            .chain(&self.space_pages)
            .chain(self.missing_pages.values())
            .copied()
            .chain(self.shard_pages.values().flatten().map(|run| run.page))
            .chain((self.root.count > 0).then_some(self.root.page))
            .collect();
        self.replaced_pages
            .extend(checkpoint.replaced.into_iter().filter(|run| !installed.contains(&run.page)));
        for id in checkpoint.fragments {
            self.index.mark_dirty(id);
        }
        for waiter in checkpoint.waiters {
            out.push(Effect::Reply(waiter, Err(Error::from(ErrorKind::NoSpace))));
        }
        self.wake_fills(out);
    }

    /// Fills that waited for a checkpoint to end look again.
    fn wake_fills(&mut self, out: &mut Vec<Effect>) {
        let waiting: Vec<FragmentId> = self.space_wanted.keys().copied().collect();
        for fragment in waiting {
            self.drain_waiting(fragment, out);
            let front = self.active.get(&fragment).and_then(|active| active.waiting.front());
            if !matches!(front, Some((_, Command::Fill { .. }))) {
                self.space_wanted.remove(&fragment);
            }
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
        | CheckpointOp::Home(Home { ticket, .. })
        | CheckpointOp::PunchBlocks(PunchBlocks { ticket, .. }) = op
        {
            self.tickets.end(*ticket);
        }
        match op {
            CheckpointOp::Home(home) => self.asked_blocks -= home.asked,
            CheckpointOp::PunchBlocks(punch) => {
                self.asked_blocks -= u64::from(punch.stale.count_ones());
            }
            _ => {}
        }
        let error = match (op, result) {
            // Without spare pages things go on as long as the host has space.
            (CheckpointOp::Spare { unit }, Err(error)) if error.kind == DiskErrorKind::NoSpace => {
                self.space.spare_prepared(*unit, false);
                self.host_is_full();
                self.retry_checkpoint_at = self.now + RETRY_MS;
                return;
            }
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
            self.host_is_full();
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.no_space = true;
            }
            if let CheckpointOp::PunchBlocks(punch) = *op {
                self.blocks_punched(punch, false, out);
            }
            if let CheckpointOp::Page { fragment, run } = *op {
                self.index.mark_dirty(fragment);
                let ticket = self.tickets.next();
                for unit in self.space.free_pages(run) {
                    self.recycle_unit(unit, ticket);
                }
            }
            return;
        }
        match *op {
            CheckpointOp::Home(ref home) => self.home_written(home),
            CheckpointOp::PunchBlocks(punch) => self.blocks_punched(punch, true, out),
            CheckpointOp::PunchUnits { first, count } => {
                for unit in first..first + count {
                    self.space.release(unit);
                }
                if let Some(checkpoint) = &mut self.checkpoint {
                    checkpoint.units.retain(|unit| !(first..first + count).contains(unit));
                }
            }
            CheckpointOp::Spare { unit } => self.space.spare_prepared(unit, true),
            CheckpointOp::Page { fragment, run } => self.page_written(fragment, run),
            CheckpointOp::IndexPage(run) => self.space.pages_written(run),
            CheckpointOp::Fetch { .. } | CheckpointOp::Flush | CheckpointOp::Slot => {}
        }
    }
}
