//! The running store: one owner of all state, one entry for every event.
//!
//! The index holds what is *durable*: a record changes it when its batch is on stable storage and
//! not before, so reads and checkpoints never see anything that a crash could take back.

use crate::checkpoint::{Checkpoint, CheckpointOp};
use crate::command::{Answer, Command, CommandId, Effect, Input, ZeroKind};
use crate::format::batch::LogRecordRef;
use crate::format::index::PageRun;
use crate::format::superblock::{LogPosition, Superblock};
use crate::fragment::OwnerSummary;
use crate::group_commit::InFlightBatch;
use crate::index::Index;
use crate::io::{Completion, DiskError, DiskOp, OpId};
use crate::read::PendingRead;
use crate::shards::Shards;
use crate::space::Space;
use crate::tickets::Tickets;
use crate::write::{PendingShard, PendingWrite};
use sheepdog_types::{
    Error, ErrorKind, FragmentId, Geometry, LineageId, Result, ShardId, Version, Vid,
};
use std::collections::{BTreeMap, VecDeque};

/// What the store may use. All in bytes unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory for the bookkeeping of fragments in use.
    pub cache_bytes: usize,
    /// Memory for bytes that are in the log and not home yet; beyond it they are read back from
    /// the log.
    pub logged_bytes: usize,
    /// Units of the data area there may be.
    pub units_max: u32,
    /// Units are all the space there is, as on a raw device; a chunk takes a whole one. Otherwise
    /// the host gives space by the block, and says how much it has.
    pub whole_units: bool,
    /// Freed units kept for fresh extents while the store is busy.
    pub recycled_units: usize,
    /// Pages of the index whose space is held ready, so that a host that somebody else filled
    /// does not keep a checkpoint from being written.
    pub spare_pages: u32,
    /// Free units that one checkpoint gives back to the host after a crash.
    pub give_back_units: u32,
    /// Acknowledge batches before they are durable. What a power failure leaves then may be no
    /// store any more.
    pub nosync: bool,
    /// Writes that cover whole chunks of at least that many blocks go to fresh extents.
    pub extent_blocks_min: u32,
}

impl Limits {
    /// For a disk in production: 64 MiB each of bookkeeping and logged bytes, 256 TiB of address
    /// space, 64 MiB of recycled units, 4 MiB for pages.
    pub const STANDARD: Self = Self {
        cache_bytes: 64 << 20,
        logged_bytes: 64 << 20,
        units_max: u32::MAX - 1,
        whole_units: false,
        recycled_units: 1024,
        spare_pages: 1024,
        give_back_units: 1 << 14,
        nosync: false,
        extent_blocks_min: 16,
    };
}

/// Counters since the store was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Commands taken.
    pub commands: u64,
    /// Durable batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Checkpoints installed.
    pub checkpoints: u64,
    /// Blocks brought home.
    pub destaged_blocks: u64,
    /// Blocks whose checksum was wrong when they were read.
    pub checksum_errors: u64,
}

/// Space of a store, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Held by data and index.
    pub used: u64,
    /// What may still be written.
    pub free: u64,
    /// What the host holds for the store now, as far as is certain: never more than it does.
    pub held: u64,
    /// What can be written to new places at once: never more than the host has left, if nobody
    /// else took of it since it last reported.
    pub host_room: u64,
}

/// Commands of one fragment that are on their way.
#[derive(Default)]
pub(crate) struct Active {
    /// Its page is being read.
    pub loading: bool,
    /// Admitted writes that are not queued for the log yet, in order.
    pub writes: VecDeque<u64>,
    /// Admitted writes that are not applied yet.
    pub unapplied: u32,
    /// Those of them that may give space back: until then nobody knows what a write will need.
    pub clearing: u32,
    /// Commands that wait for the page, or behind one that must be alone.
    pub waiting: VecDeque<(CommandId, Command)>,
    /// A write that must be alone is on its way.
    pub exclusive: bool,
}

/// Why a disk operation was begun.
pub(crate) enum Purpose {
    /// Part of a write's fresh extents or reservations, at that place in the data area.
    Extent { write: u64, offset: u64, len: u64 },
    /// Part of the batch in flight.
    Batch,
    /// A piece of a read.
    Read { read: u64, piece: usize },
    /// A fragment's page.
    Page(FragmentId),
    /// See the checkpoint.
    Checkpoint(CheckpointOp),
}

/// The log's ends.
pub(crate) struct Log {
    /// Where the next batch goes.
    pub next: LogPosition,
    /// Where replay would start; space before it is free.
    pub head: LogPosition,
    /// The head after a checkpoint, once reads of the log begun before that ticket have ended.
    pub next_head: Option<(LogPosition, u64)>,
    /// The last batch known to be on stable storage.
    pub durable: u64,
    /// Writes in the order of the log.
    pub queue: VecDeque<u64>,
    /// The batch on its way.
    pub in_flight: Option<InFlightBatch>,
}

/// See the module.
pub struct Store {
    pub(crate) superblock: Superblock,
    pub(crate) limits: Limits,
    pub(crate) index: Index,
    pub(crate) space: Space,
    pub(crate) log: Log,
    pub(crate) active: BTreeMap<FragmentId, Active>,
    pub(crate) writes: BTreeMap<u64, PendingWrite>,
    /// Numbered together with `writes`.
    pub(crate) shard_writes: BTreeMap<u64, PendingShard>,
    /// Fragments with a fill that waits for a checkpoint to end, and how many had ended when it came.
    pub(crate) space_wanted: BTreeMap<FragmentId, u64>,
    pub(crate) shards: Shards,
    pub(crate) reads: BTreeMap<u64, PendingRead>,
    pub(crate) ops: BTreeMap<OpId, Purpose>,
    pub(crate) tickets: Tickets,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Requests for a checkpoint that the running one came too late for.
    pub(crate) checkpoint_wanted: Vec<CommandId>,
    pub(crate) serial: u64,
    /// Of this opening; the slots say it.
    pub(crate) mark: u64,
    /// Pages on disk of the installed index, by number.
    pub(crate) entry_pages: Vec<u64>,
    pub(crate) space_pages: Vec<u64>,
    /// Of those entry pages that have one.
    pub(crate) missing_pages: BTreeMap<u32, u64>,
    pub(crate) shard_pages: BTreeMap<ShardId, Vec<PageRun>>,
    pub(crate) root: PageRun,
    /// Pages that no index in memory uses but the one on disk may.
    pub(crate) replaced_pages: Vec<PageRun>,
    pub(crate) logged_bytes: usize,
    pub(crate) pending_bytes: u64,
    /// Blocks whose space is on its way from the host or back to it: in neither's books.
    pub(crate) asked_blocks: u64,
    /// Units claimed by admitted writes that are not applied yet.
    pub(crate) claimed_units: u64,
    pub(crate) host_free: u64,
    pub(crate) held_at_report: u64,
    pub(crate) now: u64,
    pub(crate) last_write: u64,
    pub(crate) dirty_since: Option<u64>,
    /// Something was zeroed since the last checkpoint began: there may be space to give back.
    pub(crate) stale_pending: bool,
    /// After a crash the host may hold space for units that are free: reservations and extents
    /// that never got into the log, pages of an unfinished checkpoint. From this unit on the free
    /// ones are still to be given back.
    pub(crate) give_back_from: Option<u32>,
    /// Checkpoints begun while idle since the last write.
    pub(crate) idle_checkpoints: u8,
    pub(crate) retry_checkpoint_at: u64,
    /// The host has nothing for spare units until then.
    pub(crate) retry_spares_at: u64,
    /// The last checkpoint found no space: what is left of the log is for deletes and discards.
    pub(crate) short_of_space: bool,
    /// A batch waits until a checkpoint has made fragments clean: there are no pages for more.
    pub(crate) pages_wanted: bool,
    pub(crate) stats: Stats,
    pub(crate) failed: Option<String>,
    pub(crate) next_op: u64,
    pub(crate) next_write: u64,
    pub(crate) next_read: u64,
}

impl Store {
    /// Feeds one event. Call [`Store::pump`] after all events at hand, so that writes that came
    /// together share a batch.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Command(id, command) => self.submit(id, command, out),
            Input::Completed(completion) => self.completed(completion, out),
            Input::Tick(now) => {
                self.now = self.now.max(now);
                self.tick(out);
            }
            Input::HostFree(bytes) => {
                self.host_free = bytes;
                self.held_at_report = self.held_bytes();
            }
            Input::GiveUp(why) => self.fail(&why, out),
            Input::Overdue(last) => self.give_up_if_silent(last, out),
        }
    }

    /// Starts what can be started: the next batch, a checkpoint that is due.
    pub fn pump(&mut self, out: &mut Vec<Effect>) {
        if self.failed.is_some() {
            return;
        }
        // In this order: a checkpoint that ends makes room for a batch that waits, and for the next
        // checkpoint.
        self.release_log();
        self.advance_checkpoint(out);
        self.start_batch(out);
        self.start_checkpoint_if_due(out);
    }

    // ---- what can be asked at any time ---------------------------------------------------------

    /// Who this store is.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// Why the disk was given up, if it was.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.active.is_empty() && self.log.queue.is_empty()
    }

    /// Space held and left.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            used: self.held_bytes() + self.homeless_bytes(),
            free: self.room().saturating_sub(self.reserve_bytes()),
            held: self.held_bytes(),
            host_room: self.host_room(),
        }
    }

    /// Fragments of a lineage, ascending.
    pub fn fragments(&self, lineage: LineageId) -> impl Iterator<Item = FragmentId> {
        self.index.range(FragmentId::range_of(lineage)).map(|(id, _)| id)
    }

    /// The first fragment of its lineage at or after `from` that was ever written.
    #[must_use]
    pub fn next_fragment(&self, from: FragmentId) -> Option<FragmentId> {
        let last = FragmentId { lineage: from.lineage, number: u64::MAX };
        self.index.range(from..=last).next().map(|(id, _)| id)
    }

    /// Lineages there are, ascending.
    #[must_use]
    pub fn lineages(&self) -> Vec<LineageId> {
        let mut found = Vec::new();
        let mut next = Some(LineageId(0));
        while let Some(from) = next {
            let first = FragmentId { lineage: from, number: 0 };
            let last = FragmentId { lineage: LineageId(u64::MAX), number: u64::MAX };
            let Some((id, _)) = self.index.range(first..=last).next() else {
                break;
            };
            found.push(id.lineage);
            next = id.lineage.0.checked_add(1).map(LineageId);
        }
        found
    }

    /// The version of the newest durable write of a fragment.
    #[must_use]
    pub fn head(&self, fragment: FragmentId) -> Option<Version> {
        self.index.get(fragment).map(|entry| entry.head)
    }

    /// The vids that own or hold anything in a fragment; none if it is not in memory.
    #[must_use]
    pub fn vids(&self, fragment: FragmentId) -> Vec<Vid> {
        let loaded = self.index.get(fragment).and_then(|entry| entry.loaded.as_deref());
        let owners = loaded.map(|loaded| loaded.fragment.owners().map(|owner| owner.vid));
        owners.into_iter().flatten().collect()
    }

    /// What a vid holds, by fragment; `Err` names a fragment whose page must be read first (ask
    /// for its map, then again).
    ///
    /// # Errors
    /// The fragment to read.
    pub fn owner_summaries(
        &self,
        lineage: LineageId,
        vid: Vid,
    ) -> std::result::Result<Vec<(FragmentId, OwnerSummary)>, FragmentId> {
        let mut found = Vec::new();
        for (id, entry) in self.index.range(FragmentId::range_of(lineage)) {
            match (&entry.owners, entry.loaded.as_deref()) {
                (crate::format::index::Owners::Few(owners), _) => {
                    found
                        .extend(owners.iter().flatten().filter(|o| o.vid == vid).map(|o| (id, *o)));
                }
                (_, Some(loaded)) => {
                    found
                        .extend(loaded.fragment.owners().filter(|o| o.vid == vid).map(|o| (id, o)));
                }
                _ => return Err(id),
            }
        }
        Ok(found)
    }

    // ---- shared by the parts -------------------------------------------------------------------

    pub(crate) fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    pub(crate) fn disk(&mut self, purpose: Purpose, op: DiskOp, out: &mut Vec<Effect>) {
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.ops.insert(id, purpose);
        out.push(Effect::Disk(id, op));
    }

    pub(crate) fn unit_offset(&self, unit: u32) -> u64 {
        u64::from(unit) * self.geometry().chunk_bytes()
    }

    fn completed(&mut self, completion: Completion, out: &mut Vec<Effect>) {
        // Operations of a store that failed meanwhile have no purpose any more.
        let Some(purpose) = self.ops.remove(&completion.op) else {
            return;
        };
        match purpose {
            Purpose::Extent { write, offset, len } => {
                self.extent_done(write, (offset, len), completion.result, out);
            }
            Purpose::Batch => self.batch_done(completion.result.err().as_ref(), out),
            Purpose::Read { read, piece } => self.piece_read(read, piece, completion.result, out),
            Purpose::Page(fragment) => self.page_read(fragment, completion.result, out),
            Purpose::Checkpoint(op) => self.checkpoint_done(op, completion.result, out),
        }
    }

    fn submit(&mut self, id: CommandId, command: Command, out: &mut Vec<Effect>) {
        self.stats.commands += 1;
        if let Some(why) = &self.failed {
            let error = Error::new(ErrorKind::Io, format!("the disk was given up: {why}"));
            out.push(Effect::Reply(id, Err(error)));
            return;
        }
        let Some(fragment) = command.fragment() else {
            return self.run(id, command, out);
        };
        let ready = self.is_ready_for(fragment, &command);
        let queued = self.must_wait(fragment, &command)
            || self.active.get(&fragment).is_some_and(|active| !active.waiting.is_empty());
        if ready && !queued {
            self.run(id, command, out);
        } else {
            self.active.entry(fragment).or_default().waiting.push_back((id, command));
            if !ready {
                self.load_page(fragment, out);
            }
        }
    }

    fn run(&mut self, id: CommandId, command: Command, out: &mut Vec<Effect>) {
        match command {
            Command::Write { fragment, vid, version, start, data, request } => {
                self.run_write(id, fragment, vid, version, start, data, request, out);
            }
            Command::Zero { fragment, vid, version, start, count, kind, request } => {
                self.run_zero(id, fragment, vid, version, (start, count), kind, request, out);
            }
            Command::DeleteVid { fragment, vid, version, forget, request } => {
                self.run_delete(id, fragment, vid, version, forget, request, out);
            }
            Command::Read { fragment, path, start, count } => {
                self.run_read(id, fragment, &path, start, count, out);
            }
            Command::Map { fragment, path, start, count } => {
                let answer = self.run_map(fragment, &path, start, count);
                out.push(Effect::Reply(id, answer));
            }
            Command::Checkpoint => self.checkpoint_wanted.push(id),
            Command::Miss { fragment, needed } => self.run_miss(id, fragment, needed, out),
            Command::Fill { fragment, at, chunks, last } => {
                self.run_fill(id, fragment, at, chunks, last, out);
            }
            Command::Forget { fragment, head } => self.run_forget(id, fragment, head, out),
            Command::Versions { fragment } => {
                let answer = self.run_versions(fragment);
                out.push(Effect::Reply(id, Ok(answer)));
            }
            Command::Chunks { fragment, have } => self.run_chunks(id, fragment, &have, out),
            Command::Shard { shard, state, requests } => {
                self.run_shard(id, shard, state, requests, out);
            }
            Command::DropRequests { shard, gateway } => {
                self.run_drop_requests(id, shard, gateway, out);
            }
            Command::DropShard { shard } => self.run_drop_shard(id, shard, out),
        }
    }

    /// Whether a command can run without I/O for the fragment's page first. What changes nothing but
    /// its slot needs no page.
    fn is_ready_for(&self, fragment: FragmentId, command: &Command) -> bool {
        matches!(command, Command::Miss { .. } | Command::Forget { .. })
            || self.index.is_ready(fragment)
    }

    /// Runs commands of a fragment that waited, as far as they may.
    pub(crate) fn drain_waiting(&mut self, fragment: FragmentId, out: &mut Vec<Effect>) {
        loop {
            let Some(active) = self.active.get_mut(&fragment) else {
                return;
            };
            let Some((id, command)) = active.waiting.pop_front() else {
                break;
            };
            let ready = self.is_ready_for(fragment, &command);
            if !ready || self.must_wait(fragment, &command) {
                if let Some(active) = self.active.get_mut(&fragment) {
                    active.waiting.push_front((id, command));
                }
                if !ready {
                    self.load_page(fragment, out);
                }
                return;
            }
            self.run(id, command, out);
        }
        self.drop_idle(fragment);
    }

    /// Whether what is on its way in the fragment must end before the command may run.
    fn must_wait(&mut self, fragment: FragmentId, command: &Command) -> bool {
        let active = self.active.get(&fragment);
        if active.is_some_and(|active| active.exclusive) {
            return true;
        }
        match command {
            // A reservation looks at the chunk's present home and space.
            Command::Zero { kind: ZeroKind::Reserve, .. } => {
                active.is_some_and(|active| active.unapplied > 0) || self.is_punching(fragment)
            }
            // What it does depends on what the fragment is.
            Command::Miss { .. } | Command::Forget { .. } => {
                active.is_some_and(|active| active.unapplied > 0)
            }
            Command::Fill { chunks, .. } => {
                active.is_some_and(|active| active.unapplied > 0)
                    || self.fill_must_wait(fragment, chunks)
            }
            // What it needs may be less than all of it.
            Command::Write { data, .. } => {
                active.is_some_and(|active| active.clearing > 0)
                    && !self.has_room(data.iter().map(|piece| piece.len() as u64).sum())
            }
            _ => false,
        }
    }

    /// Whether space of blocks of the fragment is just being given back.
    fn is_punching(&mut self, fragment: FragmentId) -> bool {
        self.index.loaded(fragment).is_some_and(|loaded| loaded.punching > 0)
    }

    pub(crate) fn drop_idle(&mut self, fragment: FragmentId) {
        if let Some(active) = self.active.get(&fragment)
            && !active.loading
            && active.unapplied == 0
            && active.waiting.is_empty()
        {
            self.active.remove(&fragment);
        }
    }

    /// A fault that the disk cannot go on with: everything open is answered with an error, nothing
    /// more is begun. What was acknowledged is on the disk for the next start.
    pub(crate) fn fail(&mut self, why: &str, out: &mut Vec<Effect>) {
        if self.failed.is_some() {
            return;
        }
        let error = || Error::new(ErrorKind::Io, format!("the disk was given up: {why}"));
        let mut ids: Vec<CommandId> = Vec::new();
        ids.extend(self.writes.values().map(|w| w.command));
        ids.extend(self.shard_writes.values().filter_map(|pending| pending.command));
        ids.extend(self.reads.values().map(|r| r.command));
        ids.extend(self.active.values().flat_map(|a| a.waiting.iter().map(|(id, _)| *id)));
        ids.append(&mut self.checkpoint_wanted);
        if let Some(checkpoint) = self.checkpoint.take() {
            ids.extend(checkpoint.waiters);
        }
        out.extend(ids.into_iter().map(|id| Effect::Reply(id, Err(error()))));
        self.writes.clear();
        self.shard_writes.clear();
        self.space_wanted.clear();
        self.reads.clear();
        self.active.clear();
        self.ops.clear();
        self.log.queue.clear();
        self.log.in_flight = None;
        self.failed = Some(why.to_owned());
    }

    /// Nobody is to wait for ever for a disk that does not answer.
    fn give_up_if_silent(&mut self, last: OpId, out: &mut Vec<Effect>) {
        let Some((_, purpose)) = self.ops.first_key_value().filter(|(op, _)| **op <= last) else {
            return;
        };
        let what = match purpose {
            Purpose::Extent { .. } => "write an extent",
            Purpose::Batch => "write the log",
            Purpose::Read { .. } => "read",
            Purpose::Page(_) => "read a page of the index",
            Purpose::Checkpoint(_) => "write a checkpoint",
        };
        self.fail(&format!("{what}: the disk does not answer"), out);
    }

    /// A rule of this program was broken: stop before more happens.
    pub(crate) fn broken(&mut self, rule: &str, out: &mut Vec<Effect>) {
        self.fail(&format!("broken invariant: {rule}"), out);
    }

    pub(crate) fn fail_op(&mut self, what: &str, error: &DiskError, out: &mut Vec<Effect>) {
        self.fail(&format!("{what}: {}", error.text), out);
    }

    /// A record in the log's queue, and the bytes of its payload.
    pub(crate) fn queued(&self, id: u64) -> Option<(LogRecordRef<'_>, usize)> {
        if let Some(write) = self.writes.get(&id) {
            let payload = write.payload.iter().map(bytes::Bytes::len).sum();
            return Some((LogRecordRef::Fragment(&write.record), payload));
        }
        let pending = self.shard_writes.get(&id)?;
        Some((LogRecordRef::Shard(&pending.record), 0))
    }
}

/// The answer to a request outside the fragment.
pub(crate) fn out_of_range() -> Result<Answer> {
    Err(Error::new(ErrorKind::Invalid, "blocks outside the fragment"))
}
