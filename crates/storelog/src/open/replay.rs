//! The last step of opening: a running store from the index on disk and the records of the log.

use super::{OpenReport, Opening, Replayed};
use crate::format::batch::LogRecord;
use crate::format::index::PageRun;
use crate::shards::Shards;
use crate::store::{Log, Stats, Store};
use crate::tickets::Tickets;
use sheepdog_types::{Error, ErrorKind, FragmentId, Result};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

impl Opening {
    pub(super) fn replay(&mut self) -> Result<(Box<Store>, OpenReport)> {
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
            shard_writes: BTreeMap::new(),
            space_wanted: BTreeMap::new(),
            shards: Shards::new(superblock.geometry.blocks_per_chunk()),
            reads: BTreeMap::new(),
            ops: BTreeMap::new(),
            tickets: Tickets::default(),
            checkpoint: None,
            checkpoint_wanted: Vec::new(),
            serial: self.slot.serial,
            mark: self.slot.mark,
            entry_pages: std::mem::take(&mut self.root.entry_pages),
            space_pages: std::mem::take(&mut self.root.space_pages),
            missing_pages: std::mem::take(&mut self.root.missing_pages).into_iter().collect(),
            shard_pages: std::mem::take(&mut self.root.shards).into_iter().collect(),
            root: if self.slot.root_bytes > 0 { self.root_run() } else { PageRun::default() },
            replaced_pages: Vec::new(),
            logged_bytes: 0,
            pending_bytes: 0,
            asked_blocks: 0,
            claimed_units: 0,
            host_free: 0,
            held_at_report: 0,
            now: 0,
            last_write: 0,
            dirty_since: None,
            stale_pending: true,
            give_back_from: None,
            idle_checkpoints: 0,
            retry_checkpoint_at: 0,
            retry_spares_at: 0,
            short_of_space: false,
            pages_wanted: false,
            stats: Stats::default(),
            failed: None,
            next_op: self.next_op,
            next_write: 0,
            next_read: 0,
            superblock,
        });
        for (shard, page) in std::mem::take(&mut self.shards) {
            store.shards.adopt(shard, page);
        }
        let mut included: BTreeMap<FragmentId, u64> = BTreeMap::new();
        for (id, bytes) in std::mem::take(&mut self.pages) {
            match store.decode_page(id, Ok(bytes)) {
                Ok(page) => {
                    included.insert(id, page.batch);
                    store.index.load(id, page.fragment);
                }
                Err(error) => self.damage(error)?,
            }
        }
        let mut freed: BTreeSet<u32> = self.root.unpunched.iter().copied().collect();
        let mut seqs = BTreeSet::new();
        // What the index on disk says of versions, and of shards, is as of the last batch that was
        // durable when its root was written. Fragments without a slot there came to be since replay
        // starts, so the records tell all of them.
        let records = self.records.iter().filter_map(|replayed| replayed.record.fragment());
        let mut known: BTreeSet<FragmentId> = records
            .map(|record| record.fragment)
            .filter(|fragment| store.index.get(*fragment).is_some())
            .collect();
        let mut newest = store.index.newest_of_all();
        for replayed in &self.records {
            seqs.insert(replayed.seq);
            let Replayed { record, payload_pos, seq } = replayed;
            let is_new = *seq > self.root.durable;
            let record = match record {
                LogRecord::Fragment(record) => record,
                LogRecord::Shard(record) => {
                    if is_new {
                        store.shards.apply(record.clone());
                    }
                    continue;
                }
            };
            newest = newest.max(record.version);
            if is_new {
                store.note_request(record);
            }
            if !store.index.is_ready(record.fragment) {
                // Its page could not be read, which was told.
                continue;
            }
            // A page may be younger than the position where replay starts. What it includes is
            // not done again: the fragment would pass through states that never were, and could
            // keep units that it had left.
            if included.get(&record.fragment).is_some_and(|batch| batch >= seq) {
                store.replay_included(record, *payload_pos, *seq);
            } else {
                let settled = !is_new && known.contains(&record.fragment);
                if store.replay(record, *payload_pos, *seq, settled, &mut freed) {
                    known.remove(&record.fragment);
                }
            }
        }
        // Records that pages include were not counted again, others may have freed what they had
        // claimed before: what the fragments use at the end is in use.
        for unit in store.index.units_of_loaded() {
            store.space.replay(unit, true);
            freed.remove(&unit);
        }
        // A store that is only looked at asks the host for nothing.
        if self.salvage.is_none() {
            freed.extend(store.space.adopt_whole(std::mem::take(&mut self.root.whole)));
        }
        store.space.adopt_unpunched(freed);
        // A clean end leaves nothing to replay.
        store.give_back_from = (!self.records.is_empty() || self.torn).then_some(0);
        if !self.records.is_empty() || store.space.recycled_units() > 0 {
            store.dirty_since = Some(0);
        }
        let report = OpenReport {
            newest: newest.interval,
            fragments: store.index.count(),
            batches: seqs.len() as u64,
            records: self.records.len() as u64,
            torn_tail: self.torn,
            mark: self.slot.mark,
        };
        Ok((store, report))
    }
}
