//! Destaging: blocks that are in the log only go home, space that nobody wants goes back to the
//! host before anything new is written. What memory no longer holds is fetched from the log first.

use super::{CheckpointOp, Home, PunchBlocks};
use crate::checksum::block_crc;
use crate::command::Effect;
use crate::fragment::BlockMask;
use crate::io::{Area, DiskError, DiskOp};
use crate::store::Store;
use crate::write::mask_runs;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, FragmentId, Vid};
use std::collections::BTreeMap;

impl Store {
    /// Writes the logged blocks of a fragment home; fetches from the log first what memory does not
    /// hold.
    pub(super) fn destage(&mut self, id: FragmentId, out: &mut Vec<Effect>) {
        let oldest = self.tickets.oldest();
        let begun = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.replay.seq);
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        let fetch: Vec<(Vid, u32, u64, u64)> = loaded
            .logged
            .iter()
            .filter(|(_, block)| block.bytes.is_none() && block.seq < begun)
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
        // What goes home, by chunk. What came since the checkpoint began may count on space that
        // only the next one gives back. A block whose home may still be read by an older operation
        // stays in the log too; it is behind this one's replay position.
        let per_chunk = self.geometry().blocks_per_chunk();
        let mut chunks: BTreeMap<(Vid, u8), BTreeMap<u32, (Bytes, u64)>> = BTreeMap::new();
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        for ((vid, block), logged) in &loaded.logged {
            if let Some(bytes) = &logged.bytes
                && logged.seq < begun
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
            let has_space = self
                .index
                .loaded(id)
                .and_then(|loaded| loaded.fragment.chunk(vid, index))
                .map_or(0, |chunk| chunk.backed | chunk.stale);
            for (slot, count) in mask_runs(mask) {
                let run = blocks.range(slot..slot + count).map(|(_, block)| block);
                let (data, seqs): (Vec<Bytes>, Vec<u64>) = run.cloned().unzip();
                let ticket = self.tickets.begin();
                let first = u32::from(index) * per_chunk + slot;
                let lacking = run_mask(slot, count) & !has_space;
                let asked = u64::from(lacking.count_ones());
                self.asked_blocks += asked;
                let home = Home { fragment: id, vid, unit, first, seqs, ticket, asked };
                let what = CheckpointOp::Home(home);
                let offset = self.unit_offset(unit) + u64::from(slot) * BLOCK_SIZE as u64;
                let op = DiskOp::Write { area: Area::Data, offset, data, durable: false };
                self.checkpoint_op(what, op, out);
            }
        }
    }

    /// Gives the stale blocks of a fragment back.
    pub(super) fn punch_stale(&mut self, id: FragmentId, out: &mut Vec<Effect>) {
        let oldest = self.tickets.oldest();
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        // A reservation on its way counts on the space that is there.
        let reserving = self.active.get(&id).is_some_and(|active| active.exclusive);
        if reserving || loaded.stale_ticket > oldest {
            self.stale_pending = true;
            return;
        }
        let stale: Vec<(Vid, u8, u32, u16, u16)> = loaded
            .fragment
            .chunks()
            .filter(|(_, _, chunk)| chunk.stale | chunk.doubtful != 0)
            .filter_map(|(vid, index, chunk)| {
                Some((vid, index, chunk.unit?, chunk.stale, chunk.doubtful))
            })
            .collect();
        for (vid, index, unit, stale, doubtful) in stale {
            let mask = stale | doubtful;
            self.asked_blocks += u64::from(stale.count_ones());
            self.index.change_space(id, |loaded| {
                loaded.fragment.forget_stale(vid, index);
                loaded.punching += mask_runs(mask).count() as u32;
            });
            for (slot, count) in mask_runs(mask) {
                let op = DiskOp::Punch {
                    offset: self.unit_offset(unit) + u64::from(slot) * BLOCK_SIZE as u64,
                    len: u64::from(count) * BLOCK_SIZE as u64,
                };
                let run = run_mask(slot, count);
                let punch = PunchBlocks {
                    fragment: id,
                    vid,
                    chunk: index,
                    unit,
                    stale: stale & run,
                    doubtful: doubtful & run,
                    ticket: self.tickets.begin(),
                };
                self.checkpoint_op(CheckpointOp::PunchBlocks(punch), op, out);
            }
        }
    }

    /// A punch of stale blocks ended; if the host refused it, it may have done a part.
    pub(super) fn blocks_punched(&mut self, punch: PunchBlocks, done: bool, out: &mut Vec<Effect>) {
        let PunchBlocks { fragment, vid, chunk, unit, stale, doubtful, .. } = punch;
        self.index.change_space(fragment, |loaded| {
            loaded.punching = loaded.punching.saturating_sub(1);
            if !done {
                loaded.fragment.add_doubtful(vid, chunk, unit, stale | doubtful);
            }
        });
        self.drain_waiting(fragment, out);
    }

    /// The unit of a chunk, claimed now if it has none.
    pub(super) fn home_of(&mut self, id: FragmentId, vid: Vid, index: u8) -> Option<u32> {
        let own = self.index.loaded(id)?.fragment.chunk(vid, index)?.unit;
        if own.is_some() {
            return own;
        }
        // What a reservation got may have been used before, and so may a free unit until all of
        // them were given back after a crash.
        let (unit, unsure) = match self.unit_on_its_way(id, vid, index) {
            Some(unit) => (unit, true),
            None => {
                let unit = self.space.claim(1)?.unit;
                (unit, self.give_back_from.is_some_and(|from| unit >= from))
            }
        };
        let held = self.space.becomes_home(unit);
        self.index.change_space(id, |loaded| {
            loaded.fragment.give_home(vid, index, unit);
            loaded.fragment.set_backed(vid, index, unit, held);
            if unsure {
                loaded.fragment.doubt_rest(vid, index);
            }
        });
        // The next checkpoint gives it back.
        self.stale_pending |= unsure;
        Some(unit)
    }

    pub(super) fn fetch(&mut self, what: CheckpointOp, pos: u64, out: &mut Vec<Effect>) {
        let op = DiskOp::Read {
            area: Area::Log,
            offset: pos % self.superblock.log_bytes,
            len: BLOCK_SIZE,
        };
        self.checkpoint_op(what, op, out);
    }

    pub(super) fn fetched(&mut self, op: &CheckpointOp, result: Result<Bytes, DiskError>) {
        let CheckpointOp::Fetch { fragment, vid, block, seq, .. } = *op else {
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

    pub(super) fn home_written(&mut self, home: &Home) {
        let Home { fragment, vid, unit, first, ref seqs, .. } = *home;
        let per_chunk = self.geometry().blocks_per_chunk();
        let (chunk, slot) = ((first / per_chunk) as u8, first % per_chunk);
        let mask = run_mask(slot, seqs.len() as u32);
        let (mut freed_blocks, mut freed_bytes) = (0, 0);
        if let Some(loaded) = self.index.loaded(fragment) {
            for (block, seq) in (first..).zip(seqs) {
                if loaded.logged.get(&(vid, block)).is_some_and(|logged| logged.seq == *seq)
                    && let Some(logged) = loaded.logged.remove(&(vid, block))
                {
                    freed_blocks += 1;
                    freed_bytes += logged.bytes.map_or(0, |bytes| bytes.len());
                }
            }
        }
        self.logged_bytes -= freed_bytes;
        let mut at_home = false;
        self.index.change_space(fragment, |loaded| {
            at_home = loaded.fragment.set_backed(vid, chunk, unit, mask);
        });
        if !at_home {
            // The chunk left the unit meanwhile; this write keeps it from being used again.
            self.space.given(unit, mask);
        }
        self.stats.destaged_blocks += freed_blocks;
    }
}

/// Blocks `at..at + count` of a unit.
const fn run_mask(at: u32, count: u32) -> BlockMask {
    (((1u32 << count) - 1) << at) as BlockMask
}
