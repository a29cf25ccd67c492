//! The books of space: what the host holds for this store, what is left, and what must stay free
//! so that checkpoints, discards and deletes work on a full disk.
//!
//! * *Held* is what the host holds now: blocks at home, reservations, stale blocks, recycled
//!   units, pages. It is never more than the host's own count (`du`); what is not certain, as the
//!   units of an extent that failed, does not count.
//! * *Asked* are blocks on their way from the host or back to it: they are in neither's books.
//! * *Host room* is what can be written at once: what the host last said, what came into the books
//!   and what was asked for since deducted. *Room* is what clients can still add: it counts what a
//!   checkpoint gives back before it needs anything (stale blocks, units that nobody uses), less
//!   what it will bring home.
//! * A raw device (`Limits::whole_units`) holds nothing for others: what is left are its free units,
//!   and a chunk takes a whole one. The same sums are made of units there.
//! * Pages of the next checkpoint come from spare units when the host has nothing: that somebody
//!   else filled it must break no promise. A batch that would dirty more fragments than there are
//!   pages for waits for a checkpoint, as it does for space in the log.

use crate::format::batch::{Body, LogRecordRef};
use crate::store::Store;
use sheepdog_types::{BLOCK_SIZE, FragmentId, ShardId};
use std::collections::BTreeSet;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Pages that a fragment which becomes dirty may cost: two of its own (one vid owns all of it),
/// and the page of its entry. (One more if it is missing, which is not said of many.)
const PAGES_PER_FRAGMENT: u64 = 3;
/// For runs that do not fit where single pages are free, and allocation pages changed by claiming.
const PAGES_MARGIN: u64 = 8;

impl Store {
    /// Bytes that the host holds for us now, as far as is certain.
    pub(crate) fn held_bytes(&self) -> u64 {
        if self.limits.whole_units {
            return u64::from(self.space.units_in_use()) * self.geometry().chunk_bytes();
        }
        let blocks = self.index.host_blocks();
        let home = self.index.stored_blocks() - blocks.unbacked;
        (home + blocks.stale + self.space.loose_blocks() + self.space.index_pages()) * BLOCK
    }

    /// Bytes there are in all.
    fn total_bytes(&self) -> u64 {
        if self.limits.whole_units {
            return u64::from(self.limits.units_max) * self.geometry().chunk_bytes();
        }
        self.host_free + self.held_at_report
    }

    /// Bytes that blocks in the log will take when they are brought home.
    pub(crate) fn homeless_bytes(&self) -> u64 {
        let blocks = self.index.host_blocks();
        if self.limits.whole_units {
            return blocks.homeless * self.geometry().chunk_bytes();
        }
        blocks.unbacked * BLOCK
    }

    /// Bytes that can be written to new places now.
    pub(crate) fn host_room(&self) -> u64 {
        if self.limits.whole_units {
            return self.total_bytes().saturating_sub(self.held_bytes());
        }
        let asked = (self.asked_blocks + self.space.pages_asked()) * BLOCK;
        (self.host_free + self.held_at_report).saturating_sub(self.held_bytes() + asked)
    }

    /// The host has less than it last said: until it says more, nothing is left.
    pub(crate) fn host_is_full(&mut self) {
        self.host_free = 0;
        self.held_at_report = self.held_bytes();
    }

    /// Bytes that clients can still add, admitted writes deducted.
    pub(crate) fn room(&self) -> u64 {
        if self.limits.whole_units {
            let punching = self.checkpoint.as_ref().map_or(0, |c| c.units_to_free());
            let loose = self.space.recycled_units() + punching;
            let returning = (loose as u64 + self.claimed_units) * self.geometry().chunk_bytes();
            return (self.host_room() + returning)
                .saturating_sub(self.homeless_bytes() + self.pending_bytes);
        }
        let blocks = self.index.host_blocks();
        // A unit claimed by a write on its way counts as returned until the write, which is
        // deducted, makes it a home.
        let returning = (blocks.stale + self.space.loose_blocks()) * BLOCK;
        let taken = (blocks.unbacked + self.space.pages_asked()) * BLOCK + self.pending_bytes;
        (self.host_free + self.held_at_report + returning).saturating_sub(self.held_bytes() + taken)
    }

    /// Kept free of client data, so that checkpoints, discards and deletes always work, and some
    /// for the host's own use.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        let total = self.total_bytes();
        (16 << 20).max(total / 64).min(1 << 30).min(total / 8)
    }

    /// Whether a write may go to fresh places now, before what it replaces is given back. If not
    /// it goes in place, by way of the log: nothing that the next checkpoint needs is used up.
    pub(crate) fn room_for_extents(&self, bytes: u64) -> bool {
        let taken = self.homeless_bytes() + self.pending_bytes;
        self.host_room() >= bytes + taken + self.reserve_bytes()
    }

    /// Pages that a checkpoint needs if it begins now.
    fn pages_needed(&self) -> u64 {
        let map = self.space.dirty_pages().len() as u64;
        let shards = self.shards.dirty_pages();
        self.index.pages_needed() + shards + map + u64::from(self.root.count.max(1)) + PAGES_MARGIN
    }

    /// Whether a write that adds so many bytes may be admitted. One that adds none always has
    /// room, unless the last checkpoint failed for want of it.
    pub(crate) fn has_room(&self, adds: u64) -> bool {
        if self.short_of_space {
            return false;
        }
        adds == 0 || self.room() >= adds + self.bytes_for_pages() + self.reserve_bytes()
    }

    /// Bytes of pages that a checkpoint may have to ask the host for: one more fragment becomes
    /// dirty, and so do all shards.
    fn bytes_for_pages(&self) -> u64 {
        let shards = self.shards.pages().saturating_sub(self.shards.dirty_pages());
        let pages = self.pages_needed() + shards + PAGES_PER_FRAGMENT;
        pages.saturating_sub(self.space.pages_at_hand()) * BLOCK
    }

    /// As [`Store::has_room`], for what other replicas hold already: it may use half of what client
    /// data may not, and leaves the rest to checkpoints.
    pub(crate) fn has_room_for_recovery(&self, adds: u64) -> bool {
        !self.short_of_space
            && (adds == 0
                || self.room() >= adds + self.bytes_for_pages() + self.reserve_bytes() / 2)
    }

    /// Whether so many bytes can be written to fresh places at once, and what is in the log still
    /// comes home.
    pub(crate) fn has_host_room(&self, bytes: u64) -> bool {
        let taken = self.homeless_bytes() + self.pending_bytes;
        bytes == 0 || self.host_room() >= bytes + taken + self.bytes_for_pages()
    }

    /// Pages that may be needed before a checkpoint must have ended.
    pub(crate) fn pages_to_spare(&self) -> u64 {
        let pages = self.space.pages_at_hand() + self.room().min(self.host_room()) / BLOCK;
        pages.saturating_sub(self.pages_needed())
    }

    /// Whether a batch may take one record more than those that `batch` knows of. A clean store may
    /// always take one: else nothing would ever go on.
    pub(crate) fn may_dirty(
        &self,
        record: LogRecordRef<'_>,
        batch: &mut Dirtied,
        spare: u64,
    ) -> bool {
        let mut clean = self.index.dirty().is_empty() && !self.shards.are_dirty();
        let mut pages = 0;
        let (mut fragment, mut entry_page, mut shard, mut missing) = (None, None, None, false);
        match record {
            LogRecordRef::Fragment(record) => {
                let id = record.fragment;
                if matches!(record.body, Body::Miss | Body::Forget) && self.index.get(id).is_some()
                {
                    // Its slot changes, and its page does not.
                    clean &= !self.index.has_dirty_entry_pages();
                    let page = self.index.clean_entry_page(id);
                    entry_page = page.filter(|page| !batch.entry_pages.contains(page));
                    pages += if entry_page.is_some() { 2 } else { 0 };
                } else if !self.index.dirty().contains(&id) && !batch.fragments.contains(&id) {
                    fragment = Some(id);
                    pages += PAGES_PER_FRAGMENT;
                }
                // From now on there is a missing page to each entry page.
                missing = matches!(record.body, Body::Miss)
                    && !self.index.any_missing()
                    && !batch.missing;
                pages += if missing { 1 + self.index.dirty_entry_pages() as u64 } else { 0 };
                let clean = |id: &ShardId| !self.shards.is_dirty(*id) && !batch.shards.contains(id);
                shard = record.request.map(|(shard, _)| shard).filter(clean);
                pages += shard.map_or(0, |shard| self.shards.pages_of(shard) + 1);
            }
            LogRecordRef::Shard(record) => {
                let id = record.shard;
                if !self.shards.is_dirty(id) && !batch.shards.contains(&id) {
                    shard = Some(id);
                    pages += self.shards.pages_of(id);
                }
                pages += (record.encoded_bytes() / BLOCK_SIZE) as u64 + 1;
            }
        }
        let first = batch.pages == 0 && clean && self.checkpoint.is_none();
        if pages > 0 && !first && batch.pages + pages > spare {
            return false;
        }
        batch.fragments.extend(fragment);
        batch.entry_pages.extend(entry_page);
        batch.shards.extend(shard);
        batch.missing |= missing;
        batch.pages += pages;
        true
    }
}

/// What the records of a batch need of the next checkpoint.
#[derive(Default)]
pub(crate) struct Dirtied {
    fragments: BTreeSet<FragmentId>,
    entry_pages: BTreeSet<u32>,
    shards: BTreeSet<ShardId>,
    missing: bool,
    pages: u64,
}
