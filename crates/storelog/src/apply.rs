//! A durable record changes the index. Live writes and replay go through the same code.

use crate::format::batch::{Body, Placed, Record, ZeroKind};
use crate::format::index::UNITS_PER_PAGE;
use crate::fragment::{Fragment, FreedUnit};
use crate::index::{Loaded, LoggedBlock, Step};
use crate::store::Store;
use crate::write::chunk_masks;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Version, Vid};
use std::collections::BTreeSet;
use std::ops::{Bound, Range};

/// What a change did to the bytes in memory that are in the log only.
#[derive(Default)]
struct LoggedDelta {
    bytes_in: usize,
    bytes_out: usize,
}

/// What a record does to the version of its fragment.
const fn step_of(record: &Record) -> Step {
    match record.body {
        Body::Miss => Step::Needed(record.version),
        Body::Fill { last: true, .. } => Step::Head(record.version),
        Body::Fill { .. } | Body::Forget => Step::Stay,
        Body::Write { .. } | Body::Zero { .. } | Body::DeleteVid { .. } if record.missing => {
            Step::Needed(record.version)
        }
        Body::Write { .. } | Body::Zero { .. } | Body::DeleteVid { .. } => {
            Step::Head(record.version)
        }
    }
}

impl LoggedDelta {
    /// Blocks of a vid are not in the log any more.
    fn remove_range(&mut self, loaded: &mut Loaded, vid: Vid, blocks: Range<u32>) {
        let range = (vid, blocks.start)..(vid, blocks.end);
        let gone: Vec<_> = loaded.logged.range(range).map(|(key, _)| *key).collect();
        for key in gone {
            self.removed(loaded.logged.remove(&key));
        }
    }

    /// Blocks of no vid are.
    fn remove_of_all(&mut self, loaded: &mut Loaded, blocks: Range<u32>) {
        let mut from = Bound::Unbounded;
        while let Some(((vid, _), _)) = loaded.logged.range((from, Bound::Unbounded)).next() {
            let vid = *vid;
            self.remove_range(loaded, vid, blocks.clone());
            from = Bound::Excluded((vid, u32::MAX));
        }
    }

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
        self.note_request(record);
        let new_homes = self.new_homes(record);
        let step = step_of(record);
        let (freed, unneeded) = self.change_index(record, payload, payload_pos, seq, step);
        // Nothing but replay of an older program's log finds another home than the one named.
        assert!(unneeded.is_empty(), "a reservation's unit is its chunk's home");
        let homes = record.homes();
        for (vid, placed) in &homes {
            let held = self.space.becomes_home(placed.unit);
            // An extent has all its space. A unit that was used before may hold more than was
            // reserved or filled, and more than is known.
            if !matches!(record.body, Body::Write { .. }) {
                self.index.change_space(record.fragment, |loaded| {
                    loaded.fragment.set_backed(*vid, placed.chunk, placed.unit, held);
                    if new_homes.contains(&placed.unit) {
                        loaded.fragment.doubt_rest(*vid, placed.chunk);
                    }
                });
            }
        }
        // A checkpoint may have written them as free while the record was on its way.
        self.space.mark_dirty(homes.iter().map(|(_, placed)| placed.unit / UNITS_PER_PAGE));
        let ticket = self.tickets.next();
        for unit in freed {
            self.space.recycle(unit, seq, ticket);
        }
        self.drop_if_gone(record);
    }

    /// The table of its shard knows the request of a durable record.
    pub(crate) fn note_request(&mut self, record: &Record) {
        if let Some((shard, id)) = record.request {
            self.shards.note(shard, id, record.version, record.fragment);
        }
    }

    /// Units that a reservation or a fill makes homes.
    fn new_homes(&mut self, record: &Record) -> Vec<u32> {
        let named = match &record.body {
            Body::Zero { .. } | Body::Fill { .. } => record.homes(),
            _ => return Vec::new(),
        };
        let loaded = self.index.loaded(record.fragment).map(|loaded| &loaded.fragment);
        let home = |vid, chunk| loaded.and_then(|fragment| fragment.chunk(vid, chunk)?.unit);
        let new = |(vid, placed): &(_, Placed)| home(*vid, placed.chunk) != Some(placed.unit);
        named.iter().filter(|named| new(named)).map(|(_, placed)| placed.unit).collect()
    }

    /// As [`Store::apply`] at replay: `freed` collects units that no record uses any more. What the
    /// fragment's slot says of its version includes the record if it is `settled`. Whether the
    /// fragment is gone.
    pub(crate) fn replay(
        &mut self,
        record: &Record,
        payload_pos: u64,
        seq: u64,
        settled: bool,
        freed: &mut BTreeSet<u32>,
    ) -> bool {
        let step = if settled { Step::Stay } else { step_of(record) };
        let (left, unneeded) = self.change_index(record, None, payload_pos, seq, step);
        let homes = record.homes();
        for (_, placed) in &homes {
            self.space.replay(placed.unit, true);
            freed.remove(&placed.unit);
        }
        for unit in left.into_iter().map(|freed| freed.unit).chain(unneeded) {
            self.space.replay(unit, false);
            freed.insert(unit);
        }
        match record.body {
            Body::Zero { vid, start, count, .. } => {
                let per_chunk = self.geometry().blocks_per_chunk();
                self.index.change_space(record.fragment, |loaded| {
                    // The space of what it zeroed may be gone: then it must not count for what a
                    // later record writes there.
                    loaded.fragment.doubt_stale();
                    // What was in the log only may have been brought home by a checkpoint that never
                    // was installed, and a home that a reservation got may have been used before.
                    for (chunk, _) in chunk_masks(start, count, per_chunk) {
                        loaded.fragment.doubt_rest(vid, chunk);
                    }
                });
            }
            Body::Fill { .. } => self.index.change_space(record.fragment, |loaded| {
                for (vid, placed) in &homes {
                    loaded.fragment.doubt_rest(*vid, placed.chunk);
                }
            }),
            _ => {}
        }
        self.drop_if_gone(record)
    }

    /// At replay, a record that the fragment's page includes: only where the newest bytes lie in
    /// the log is not on the page. Blocks that are home already go there once more.
    pub(crate) fn replay_included(&mut self, record: &Record, payload_pos: u64, seq: u64) {
        let geometry = self.geometry();
        let per_chunk = geometry.blocks_per_chunk();
        let mut delta = LoggedDelta::default();
        let change = |loaded: &mut Loaded| -> Vec<FreedUnit> {
            match &record.body {
                Body::Write { vid, start, crcs, extents } => {
                    let (vid, start, count) = (*vid, *start, crcs.len() as u32);
                    delta.remove_range(loaded, vid, start..start + count);
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
                Body::Zero { vid, start, count, .. } => {
                    delta.remove_range(loaded, *vid, *start..start + count);
                }
                Body::DeleteVid { vid, .. } => delta.remove_range(loaded, *vid, 0..u32::MAX),
                Body::Fill { chunks, .. } => {
                    for filled in chunks {
                        let first = u32::from(filled.chunk) * per_chunk;
                        delta.remove_of_all(loaded, first..first + per_chunk);
                    }
                }
                Body::Miss | Body::Forget => {}
            }
            Vec::new()
        };
        self.index.update(record.fragment, || Fragment::new(geometry), Step::Stay, change);
        self.logged_bytes -= delta.bytes_out;
    }

    /// Drops a fragment that the record leaves without anything, if it says so. Whether it did.
    fn drop_if_gone(&mut self, record: &Record) -> bool {
        let may_go = match record.body {
            Body::DeleteVid { forget, .. } => forget && !record.missing,
            Body::Fill { last, .. } => last && record.version == Version::ZERO,
            Body::Forget => true,
            Body::Write { .. } | Body::Zero { .. } | Body::Miss => false,
        };
        let Some(entry) = self.index.get(record.fragment).filter(|_| may_go) else {
            return false;
        };
        // What is not in memory is home, and as its slot says.
        let holds_nothing = entry.loaded.as_deref().map_or(entry.owners.is_none(), |loaded| {
            loaded.fragment.is_empty() && loaded.logged.is_empty()
        });
        if !holds_nothing {
            return false;
        }
        let page = self.index.remove(record.fragment);
        if page.count > 0 {
            self.replaced_pages.push(page);
        }
        true
    }

    fn change_index(
        &mut self,
        record: &Record,
        payload: Option<&[Bytes]>,
        payload_pos: u64,
        seq: u64,
        step: Step,
    ) -> (Vec<FreedUnit>, Vec<u32>) {
        self.stale_pending |= matches!(record.body, Body::Zero { .. } | Body::Fill { .. });
        let geometry = self.geometry();
        let per_chunk = geometry.blocks_per_chunk();
        let ticket = self.tickets.next();
        let keep_bytes = self.logged_bytes < self.limits.logged_bytes;
        match record.body {
            Body::Miss => {
                if let Step::Needed(needed) = step {
                    self.index.miss(record.fragment, || Fragment::new(geometry), needed);
                }
                return (Vec::new(), Vec::new());
            }
            Body::Forget => return (Vec::new(), Vec::new()),
            _ => {}
        }
        // Of bytes that came over others nobody knew, nobody knows what they are.
        let touched = if record.missing { Version::UNKNOWN } else { record.version };
        let mut delta = LoggedDelta::default();
        // Units that a reservation named and its chunk does not need: its page has another home,
        // given by destaging.
        let mut unneeded = Vec::new();
        let change = |loaded: &mut Loaded| -> Vec<FreedUnit> {
            let mut freed = Vec::new();
            match &record.body {
                Body::Write { vid, start, crcs, extents } => {
                    let vid = *vid;
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
                            delta.remove_range(loaded, vid, from..to);
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
                        loaded.fragment.touch(chunk, touched);
                    }
                }
                Body::Zero { vid, start, count, kind, units } => {
                    let vid = *vid;
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
                        loaded.fragment.touch(chunk, touched);
                    }
                    delta.remove_range(loaded, vid, *start..start + count);
                    loaded.stale_ticket = ticket;
                }
                Body::DeleteVid { vid, .. } => {
                    let vid = *vid;
                    let chunks: Vec<u8> = loaded
                        .fragment
                        .chunks()
                        .filter(|(owner, ..)| *owner == vid)
                        .map(|(_, chunk, _)| chunk)
                        .collect();
                    freed.extend(loaded.fragment.delete_vid(vid));
                    for chunk in chunks {
                        loaded.fragment.touch(chunk, touched);
                    }
                    delta.remove_range(loaded, vid, 0..u32::MAX);
                }
                Body::Fill { chunks, .. } => {
                    let vids: Vec<Vid> = loaded.fragment.owners().map(|owner| owner.vid).collect();
                    let full = loaded.fragment.full();
                    for filled in chunks {
                        for vid in &vids {
                            freed.extend(loaded.fragment.clear(*vid, filled.chunk, full, false));
                        }
                        let first = u32::from(filled.chunk) * per_chunk;
                        delta.remove_of_all(loaded, first..first + per_chunk);
                        for vid in &filled.vids {
                            loaded.fragment.set_filled(filled.chunk, vid);
                        }
                        loaded.fragment.touch(filled.chunk, filled.version);
                    }
                    // Only when replay meets its own effect again.
                    let homes = record.homes();
                    freed.retain(|left| homes.iter().all(|(_, placed)| placed.unit != left.unit));
                }
                Body::Miss | Body::Forget => {}
            }
            freed
        };
        let freed = self.index.update(record.fragment, || Fragment::new(geometry), step, change);
        self.logged_bytes = self.logged_bytes + delta.bytes_in - delta.bytes_out;
        (freed, unneeded)
    }
}
