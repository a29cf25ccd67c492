//! A durable record changes the index. Live writes and replay go through the same code.

use crate::format::batch::{Body, Record, ZeroKind};
use crate::format::index::UNITS_PER_PAGE;
use crate::fragment::{Fragment, FreedUnit};
use crate::index::{Loaded, LoggedBlock};
use crate::store::Store;
use crate::write::chunk_masks;
use bytes::Bytes;
use sheepdog_types::BLOCK_SIZE;
use std::collections::BTreeSet;

/// What a change did to the bytes in memory that are in the log only.
#[derive(Default)]
struct LoggedDelta {
    bytes_in: usize,
    bytes_out: usize,
}

impl LoggedDelta {
    fn removed(&mut self, block: Option<LoggedBlock>) {
        if let Some(block) = block {
            self.bytes_out += block.bytes.map_or(0, |bytes| bytes.len());
        }
    }
}

impl Store {
    /// Applies a record of batch `seq` whose payload lies at `payload_pos` in the log, and is in
    /// memory if given.
    pub(crate) fn apply(
        &mut self,
        record: &Record,
        payload: Option<&[Bytes]>,
        payload_pos: u64,
        seq: u64,
    ) {
        let new_homes = self.new_homes(record);
        let (freed, unneeded) = self.change_index(record, payload, payload_pos, seq);
        // Nothing but replay of an older program's log finds another home than the one named.
        assert!(unneeded.is_empty(), "a reservation's unit is its chunk's home");
        for placed in record.placed() {
            let held = self.space.becomes_home(placed.unit);
            // An extent has all its space. A unit that was used before may hold more than was
            // reserved, and more than is known.
            if !matches!(record.body, Body::Write { .. }) {
                let (vid, chunk) = (record.vid, placed.chunk);
                self.index.change_space(record.fragment, |loaded| {
                    loaded.fragment.set_backed(vid, chunk, placed.unit, held);
                    if new_homes.contains(&placed.unit) {
                        loaded.fragment.doubt_rest(vid, chunk);
                    }
                });
            }
        }
        // A checkpoint may have written them as free while the record was on its way.
        self.space.mark_dirty(record.placed().iter().map(|p| p.unit / UNITS_PER_PAGE));
        let ticket = self.tickets.next();
        for unit in freed {
            self.space.recycle(unit, seq, ticket);
        }
        self.forget_if_empty(record);
    }

    /// Units that a reservation makes homes.
    fn new_homes(&mut self, record: &Record) -> Vec<u32> {
        let Body::Zero { units, .. } = &record.body else {
            return Vec::new();
        };
        let loaded = self.index.loaded(record.fragment).map(|loaded| &loaded.fragment);
        let home = |chunk| loaded.and_then(|fragment| fragment.chunk(record.vid, chunk)?.unit);
        let placed = units.iter().filter(|placed| home(placed.chunk) != Some(placed.unit));
        placed.map(|placed| placed.unit).collect()
    }

    /// As [`Store::apply`] at replay: `freed` collects units that no record uses any more.
    pub(crate) fn replay(
        &mut self,
        record: &Record,
        payload_pos: u64,
        seq: u64,
        freed: &mut BTreeSet<u32>,
    ) {
        let (left, unneeded) = self.change_index(record, None, payload_pos, seq);
        for placed in record.placed() {
            self.space.replay(placed.unit, true);
            freed.remove(&placed.unit);
        }
        for unit in left.into_iter().map(|freed| freed.unit).chain(unneeded) {
            self.space.replay(unit, false);
            freed.insert(unit);
        }
        if let Body::Zero { start, count, .. } = record.body {
            let (per_chunk, vid) = (self.geometry().blocks_per_chunk(), record.vid);
            self.index.change_space(record.fragment, |loaded| {
                // The space of what it zeroed may be gone: then it must not count for what a later
                // record writes there.
                loaded.fragment.doubt_stale();
                // What was in the log only may have been brought home by a checkpoint that never
                // was installed, and a home that a reservation got may have been used before.
                for (chunk, _) in chunk_masks(start, count, per_chunk) {
                    loaded.fragment.doubt_rest(vid, chunk);
                }
            });
        }
        self.forget_if_empty(record);
    }

    /// At replay, a record that the fragment's page includes: only where the newest bytes lie in
    /// the log is not on the page. Blocks that are home already go there once more.
    pub(crate) fn replay_included(&mut self, record: &Record, payload_pos: u64, seq: u64) {
        let geometry = self.geometry();
        let per_chunk = geometry.blocks_per_chunk();
        let mut delta = LoggedDelta::default();
        let change = |loaded: &mut Loaded| -> Vec<FreedUnit> {
            let vid = record.vid;
            let (start, count) = match &record.body {
                Body::Write { start, crcs, .. } => (*start, crcs.len() as u32),
                Body::Zero { start, count, .. } => (*start, *count),
                Body::DeleteVid { .. } => (0, geometry.blocks_per_fragment()),
            };
            for block in start..start + count {
                delta.removed(loaded.logged.remove(&(vid, block)));
            }
            if let Body::Write { extents, .. } = &record.body {
                let in_extent = |block: u32| {
                    let chunk = block / per_chunk;
                    extents.iter().any(|placed| u32::from(placed.chunk) == chunk)
                };
                let inline = (start..start + count).filter(|block| !in_extent(*block));
                for (block, pos) in inline.zip((payload_pos..).step_by(BLOCK_SIZE)) {
                    let logged = LoggedBlock { bytes: None, pos, seq, ticket: 0 };
                    loaded.logged.insert((vid, block), logged);
                }
            }
            Vec::new()
        };
        self.index.update(record.fragment, || Fragment::new(geometry), None, change);
        self.logged_bytes -= delta.bytes_out;
    }

    fn forget_if_empty(&mut self, record: &Record) {
        if let Body::DeleteVid { forget: true } = record.body
            && self.index.loaded(record.fragment).is_some_and(|loaded| loaded.fragment.is_empty())
        {
            let page = self.index.remove(record.fragment);
            if page.count > 0 {
                self.replaced_pages.push(page);
            }
        }
    }

    fn change_index(
        &mut self,
        record: &Record,
        payload: Option<&[Bytes]>,
        payload_pos: u64,
        seq: u64,
    ) -> (Vec<FreedUnit>, Vec<u32>) {
        self.stale_pending |= matches!(record.body, Body::Zero { .. });
        let geometry = self.geometry();
        let per_chunk = geometry.blocks_per_chunk();
        let ticket = self.tickets.next();
        let keep_bytes = self.logged_bytes < self.limits.logged_bytes;
        let vid = record.vid;
        let mut delta = LoggedDelta::default();
        // Units that a reservation named and its chunk does not need: its page has another home,
        // given by destaging.
        let mut unneeded = Vec::new();
        let change = |loaded: &mut Loaded| -> Vec<FreedUnit> {
            let mut freed = Vec::new();
            match &record.body {
                Body::Write { start, crcs, extents } => {
                    let mut extents = extents.iter().peekable();
                    let mut blocks = payload.into_iter().flatten().flat_map(|piece| {
                        (0..piece.len())
                            .step_by(BLOCK_SIZE)
                            .map(move |at| piece.slice(at..at + BLOCK_SIZE))
                    });
                    let mut pos = payload_pos;
                    for (chunk, _) in chunk_masks(*start, crcs.len() as u32, per_chunk) {
                        let first = u32::from(chunk) * per_chunk;
                        let from = first.max(*start);
                        let to = (first + per_chunk).min(*start + crcs.len() as u32);
                        let crcs = &crcs[(from - start) as usize..(to - start) as usize];
                        if let Some(placed) = extents.next_if(|placed| placed.chunk == chunk) {
                            freed.extend(loaded.fragment.set_extent(vid, chunk, placed.unit, crcs));
                            for block in from..to {
                                delta.removed(loaded.logged.remove(&(vid, block)));
                            }
                        } else {
                            for (block, crc) in (from..to).zip(crcs) {
                                loaded.fragment.set_inline(vid, block, *crc);
                                let bytes = blocks.next().filter(|_| keep_bytes);
                                delta.bytes_in += bytes.as_ref().map_or(0, Bytes::len);
                                let logged = LoggedBlock { bytes, pos, seq, ticket };
                                delta.removed(loaded.logged.insert((vid, block), logged));
                                pos += BLOCK_SIZE as u64;
                            }
                        }
                        loaded.fragment.touch(chunk, record.version);
                    }
                }
                Body::Zero { start, count, kind, units } => {
                    let mut units = units.iter().peekable();
                    for (chunk, mask) in chunk_masks(*start, *count, per_chunk) {
                        match kind {
                            ZeroKind::Reserve => {
                                let Some(given) = units.next_if(|placed| placed.chunk == chunk)
                                else {
                                    continue;
                                };
                                let own = loaded.fragment.chunk(vid, chunk).and_then(|c| c.unit);
                                let unit = own.unwrap_or(given.unit);
                                if unit != given.unit {
                                    unneeded.push(given.unit);
                                }
                                loaded.fragment.reserve(vid, chunk, mask, unit);
                            }
                            ZeroKind::Remove => {
                                freed.extend(loaded.fragment.clear(vid, chunk, mask, false));
                            }
                            ZeroKind::Marker => {
                                freed.extend(loaded.fragment.clear(vid, chunk, mask, true));
                            }
                        }
                        loaded.fragment.touch(chunk, record.version);
                    }
                    for block in *start..start + count {
                        delta.removed(loaded.logged.remove(&(vid, block)));
                    }
                    loaded.stale_ticket = ticket;
                }
                Body::DeleteVid { .. } => {
                    let chunks: Vec<u8> = loaded
                        .fragment
                        .chunks()
                        .filter(|(owner, ..)| *owner == vid)
                        .map(|(_, chunk, _)| chunk)
                        .collect();
                    freed.extend(loaded.fragment.delete_vid(vid));
                    for chunk in chunks {
                        loaded.fragment.touch(chunk, record.version);
                    }
                    let gone: Vec<_> = loaded
                        .logged
                        .range((vid, 0)..=(vid, u32::MAX))
                        .map(|(key, _)| *key)
                        .collect();
                    for key in gone {
                        delta.removed(loaded.logged.remove(&key));
                    }
                }
            }
            freed
        };
        let freed = self.index.update(
            record.fragment,
            || Fragment::new(geometry),
            Some(record.version),
            change,
        );
        self.logged_bytes = self.logged_bytes + delta.bytes_in - delta.bytes_out;
        (freed, unneeded)
    }
}
